"""The seccomp profile of deploy/: system calls that agents of all data planes were seen to make.

``python -m tests.kernel.seccomp`` writes it anew (``make seccomp``): strace watches a short life
of an agent on each data plane, and the verbs that people run beside it. What one machine shows
is not what all do, so each call stands for those by which other libraries, interpreters and
kinds of machine do the same.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from ipmasq_agent.planes import registry
from tests.kernel.pins import PINS, bpf_file_system
from tests.kernel.work import Node, live
from tests.netns import Namespace
from tests.waiting import wait_until

PROFILE = Path(__file__).parents[2] / "deploy/seccomp/ipmasq-agent.json"
ALIKE = (
    {"access", "faccessat", "faccessat2"},
    {"chmod", "fchmod", "fchmodat"},
    {"clock_getres", "clock_gettime", "gettimeofday", "time"},
    {"clock_nanosleep", "nanosleep"},
    {"clone", "fork", "vfork"},
    {"dup", "dup2", "dup3"},
    {"epoll_create", "epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_pwait2", "epoll_wait"},
    {"eventfd", "eventfd2"},
    {"exit", "exit_group"},
    {"fdatasync", "fsync"},
    {"fstat", "lstat", "newfstatat", "stat", "statx"},
    {"fstatfs", "statfs"},
    {"getdents", "getdents64"},
    {"getegid", "geteuid", "getgid", "getgroups", "getresgid", "getresuid", "getuid"},
    {"getpeername", "getsockname"},
    {"getpgid", "getpgrp", "getpid", "getppid", "getsid", "gettid"},
    {"getrlimit", "prlimit64", "setrlimit"},
    {"inotify_add_watch", "inotify_init", "inotify_init1", "inotify_rm_watch"},
    {"kill", "tgkill", "tkill"},
    {"mkdir", "mkdirat"},
    {"brk", "madvise", "mmap", "mprotect", "mremap", "munmap"},
    {"open", "openat"},
    {"pipe", "pipe2"},
    {"poll", "ppoll", "pselect6", "select"},
    {"pread64", "preadv", "read", "readv"},
    {"pwrite64", "pwritev", "write", "writev"},
    {"readlink", "readlinkat"},
    {"recvfrom", "recvmmsg", "recvmsg"},
    {"rename", "renameat", "renameat2"},
    {"rmdir", "unlink", "unlinkat"},
    {"sendmmsg", "sendmsg", "sendto"},
    {"wait4", "waitid"},
)
"""System calls that do the same: with one of them, all are let through."""
UNSEEN = frozenset(
    {
        # What runtimes (runc, crun) do between setting the filter and becoming the program.
        *("capget", "capset", "chdir", "close", "close_range", "execve", "fchdir", "fcntl"),
        *("futex", "getdents64", "getpid", "openat", "prctl", "read", "tgkill", "write"),
        # What a short life has no need of: to end a program that hangs, to go on after a stop,
        # to take back half a line when the disk is full, to ask for the number of processors.
        *("ftruncate", "kill", "restart_syscall", "rt_sigaction", "rt_sigprocmask"),
        *("rt_sigreturn", "sched_getaffinity", "sched_yield", "sigaltstack"),
    }
)
# clone(2) without any CLONE_NEW*: threads and programs, and no namespaces. What clone3(2) is
# asked for lies in memory that no filter can read, so libraries are told that there is none.
_NAMESPACES = 0x7E020000
FAMILIES = {"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10, "AF_NETLINK": 16, "AF_PACKET": 17}
_CALL = re.compile(r"^(\w+)\(", re.MULTILINE)
_SOCKET = re.compile(r"^socket\((\w+)", re.MULTILINE)
_PROGRAM = re.compile(r'^execve\("([^"]*)".* = 0$', re.MULTILINE)


# As `doctor --probe` sends, which only sends where there are pods.
PROBING = """\
from ipmasq_agent.host.probe import ask, own_address
from ipmasq_agent.policy.addresses import Family
ask(Family.IPV4, own_address(Family.IPV4, 0xC6336409), 0xC6336409)
"""


class Seen(NamedTuple):
    """What was seen: names of system calls, families of sockets, programs that were run."""

    calls: frozenset[str]
    families: frozenset[str]
    programs: frozenset[str]


def profile(seen: Seen) -> dict[str, Any]:
    """Return what lets that through and no more, as the runtime specification has it.

    All else fails as on a kernel that has no such call, which libraries are ready for. It names
    no kind of machine: runtimes then hold the program to that of the machine itself.
    """
    calls = {*seen.calls, *UNSEEN}
    for alike in ALIKE:
        if alike & calls:
            calls |= alike
    calls -= {"clone", "clone3", "socket"}
    allow = {"action": "SCMP_ACT_ALLOW"}
    no_namespaces = {"index": 0, "op": "SCMP_CMP_MASKED_EQ", "value": _NAMESPACES, "valueTwo": 0}
    sockets = [
        {"index": 0, "op": "SCMP_CMP_EQ", "value": number}
        for name, number in FAMILIES.items()
        if name in seen.families
    ]
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 38,
        "syscalls": [
            {"names": sorted(calls), **allow},
            {"names": ["clone"], **allow, "args": [no_namespaces]},
            *({"names": ["socket"], **allow, "args": [each]} for each in sockets),
        ],
    }


def watched(traces: Path) -> list[str]:
    """Return what runs a program so that all its system calls are written to a directory."""
    # With -D the tracer is a child of the program, whose pid and end so stay its own.
    return ["strace", "-D", "-ff", "-qq", "-s", "256", "-o", str(traces / "of")]


def read(traces: Path) -> Seen:
    """Return what traces tell, once all tracers have written theirs."""
    wait_until(lambda: not being_written(traces), "traces are written")
    calls, families, programs = set(), set(), set()
    for trace in traces.iterdir():
        text = trace.read_text(errors="replace")
        calls |= {*_CALL.findall(text)}
        families |= {*_SOCKET.findall(text)}
        programs |= {*_PROGRAM.findall(text)}
    return Seen(frozenset(calls), frozenset(families), frozenset(programs))


def being_written(traces: Path) -> bool:
    """Whether a tracer is at work there."""
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it ended just now
            words = process.read_bytes().split(b"\0")
            if words[0] == b"strace" and os.fsencode(traces / "of") in words:
                return True
    return False


def main() -> None:
    """Write the profile anew, and say what was seen."""
    with tempfile.TemporaryDirectory() as place, bpf_file_system() as pins:
        os.environ[PINS] = str(pins / "pins")
        traces = Path(place, "traces")
        traces.mkdir()
        for row in registry.PLANES:
            print(f"{row.title} ...", file=sys.stderr, flush=True)
            work = Path(place, row.name)
            work.mkdir()
            with Namespace() as ns, ns.entered():
                live(Node(ns, row), work, watched(traces))
                subprocess.run([*watched(traces), sys.executable, "-c", PROBING], check=True)
        seen = read(traces)
    made = profile(seen)
    PROFILE.write_text(json.dumps(made, indent=2) + "\n")
    let_through = {name for rule in made["syscalls"] for name in rule["names"]}
    print(f"{len(seen.calls)} system calls seen, {len(let_through)} let through; programs:")
    print(*sorted(seen.programs), sep="\n")


if __name__ == "__main__":
    main()
