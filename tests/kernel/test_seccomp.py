"""The seccomp profile of deploy/ lets agents do all their work, and refuses what they never do."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

from ipmasq_agent.planes import registry
from tests.kernel.container import confined
from tests.kernel.seccomp import FAMILIES, PROFILE, Seen, profile
from tests.kernel.work import VERBS, Node, live
from tests.netns import Namespace

FILTERED = [sys.executable, str(Path(__file__).with_name("filtered.py")), str(PROFILE)]
# One of each kind: what the others do is among what these do.
PLANES = ("iptables-legacy", "ipset-nft", "nftables", "bpf")
# Numbers of linux/sched.h, linux/socket.h and the machine's table, by libc's own names.
TRIED = """\
import ctypes, socket
libc = ctypes.CDLL(None, use_errno=True)
def tried(name, *words):
    code = getattr(libc, name)(*words)
    print(name, ctypes.get_errno() if code == -1 else 0)
tried("unshare", 0x10000000)
tried("mount", b"none", b"/mnt", b"tmpfs", 0, None)
tried("umount2", b"/proc", 2)
tried("setns", 0, 0)
tried("ptrace", 0, 0, None, None)
tried("process_vm_readv", 1, None, 0, None, 0, 0)
tried("swapoff", b"none")
tried("chroot", b"/proc")
tried("sethostname", b"other", 5)
tried("socket", 38, 5, 0)
tried("clone", ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 0), ctypes.c_void_p(STACK), 0x10000011, None)
tried("getpid")
""".replace("STACK", "ctypes.addressof(ctypes.create_string_buffer(65536)) + 65536")


@pytest.mark.parametrize("number", range(len(PLANES)), ids=PLANES)
def test_an_agent_and_its_verbs_do_all_their_work_under_the_profile(
    in_ns: Namespace, tmp_path: Path, mounted_pins: Path, number: int
) -> None:
    plane = registry.row(PLANES[number])
    allowed = plane.capabilities | registry.to_leave()
    under = confined(allowed, FILTERED)
    live(Node(in_ns, plane), tmp_path, under, VERBS[number :: len(PLANES)])


def test_the_profile_refuses_what_no_agent_does() -> None:
    done = subprocess.run(
        [*FILTERED, sys.executable, "-c", TRIED], capture_output=True, text=True, check=True
    )
    outcomes = dict(line.split() for line in done.stdout.splitlines())
    assert outcomes.pop("getpid") == "0"
    assert len(outcomes) == 11
    assert {*outcomes.values()} == {str(errno.ENOSYS)}, outcomes


def test_the_profile_is_of_the_form_in_which_it_is_written() -> None:
    held = json.loads(PROFILE.read_text())
    names = {name for rule in held["syscalls"] for name in rule["names"]}
    assert profile(Seen(frozenset(names), frozenset(FAMILIES), frozenset())) == held
    assert not names & {"clone3", "unshare", "mount", "ptrace", "setns", "init_module"}
