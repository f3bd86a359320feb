"""What an eBPF agent left behind, and agents that see it, see part of it, or see nothing.

They run as containers do: with these capabilities, without bpf(2) where BPF is not among
them, and with or without the host's bpf file system.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ipmasq_agent.planes import registry
from ipmasq_agent.planes.bpf import strays, tcx
from ipmasq_agent.planes.bpf.programs import NodePrograms
from tests import oracle
from tests.kernel.agent import status_of
from tests.kernel.container import contained
from tests.kernel.pins import PINS
from tests.netns import Namespace
from tests.waiting import wait_until

BPFFS = Path("/sys/fs/bpf")
# Of an agent of another plane, and what it takes to leave the programs without a break.
SHOWN, SHOWN_TO_LEAVE = registry.capabilities("auto"), registry.to_leave()
SHOWN_FOR_BPF = registry.capabilities("bpf") | SHOWN_TO_LEAVE


@dataclass(frozen=True)
class Node:
    """A node that runs agents one after the other."""

    ns: Namespace
    bpffs: Path
    work: Path

    def agent(
        self, capabilities: frozenset[str], *words: str, sees_pins: bool
    ) -> subprocess.CompletedProcess[str]:
        """Run a verb as a container of this node would."""
        mounts = {Path("/run/xtables.lock"): Path("/run/xtables.lock")}
        if sees_pins:
            mounts[self.bpffs] = BPFFS
        argv = [sys.executable, "-m", "ipmasq_agent", *words]
        return self.ns.run(contained(capabilities, argv, mounts, self.work), check=False)

    def document(self) -> str:
        path = self.work.parent / "document"
        path.write_text("nonMasqueradeCIDRs: [10.0.0.0/8, 'fd00::/8']\n")
        return f"--config={path}"


@pytest.fixture
def node(in_ns: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    bpffs, work = tmp_path / "bpf", tmp_path / "stage"
    for place in (bpffs, work):
        place.mkdir()
    Path("/run/xtables.lock").touch()
    subprocess.run(["mount", "-t", "bpf", "bpf", bpffs], check=True)
    monkeypatch.setenv(PINS, str(bpffs / "ipmasq-agent"))
    in_ns.run(["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "far"])
    for line in ("addr add 192.0.2.1/24 dev eth0", "link set eth0 up", "link set far up"):
        in_ns.run(["ip", *line.split()])
    try:
        yield Node(in_ns, bpffs, work)
    finally:
        subprocess.run(["umount", bpffs], check=True)


@pytest.fixture(params=[True, False], ids=["tcx", "clsact"])
def left(node: Node, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Node:
    """A node on which an agent of the eBPF overlay was."""
    by_tcx = {"tcx": bool(request.param)}
    monkeypatch.setattr(NodePrograms.__init__, "__kwdefaults__", by_tcx)
    assert status_of("apply", node.document(), "--backend=bpf", "--enable-ipv6") == 0
    assert in_force(node)
    return node


def in_force(node: Node) -> bool:
    """Whether the programs are on eth0, by what root on the node sees."""
    return NodePrograms(node.bpffs / "nothing").strays()


def chain_of_ours(node: Node) -> bool:
    return bool(oracle.read_chain("nft", "ipv4", "IP-MASQ", node.ns.name))


def apply(
    node: Node, capabilities: frozenset[str], *, sees_pins: bool, verb: str = "apply"
) -> tuple[int, str]:
    done = node.agent(
        capabilities,
        verb,
        node.document(),
        "--backend=iptables-nft",
        "--enable-ipv6",
        sees_pins=sees_pins,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("capabilities", [SHOWN_TO_LEAVE, SHOWN], ids=["BPF", "no bpf(2)"])
def test_an_agent_that_sees_the_pins_takes_over(left: Node, capabilities: frozenset[str]) -> None:
    assert apply(left, capabilities, sees_pins=True) == (0, "")
    assert chain_of_ours(left)
    wait_until(lambda: not in_force(left), "no program of ours is on eth0")
    assert not (left.bpffs / "ipmasq-agent").exists()


@pytest.mark.parametrize("capabilities", [SHOWN_TO_LEAVE, SHOWN], ids=["BPF", "no bpf(2)"])
def test_an_agent_that_sees_no_pins_removes_filters_and_says_so_of_links(
    left: Node, capabilities: frozenset[str], request: pytest.FixtureRequest
) -> None:
    by_link = "tcx" in request.node.name
    foretold, said = apply(left, capabilities, sees_pins=False, verb="diff")
    status, told = apply(left, capabilities, sees_pins=False)
    assert chain_of_ours(left)
    assert in_force(left) == by_link
    # With bpf(2) it sees that nothing else is on the devices.
    if by_link or capabilities == SHOWN:
        assert status == 2
        assert "eBPF programs of this agent are loaded" in told
        assert "mount the host's /sys/fs/bpf" in told
    else:
        assert (status, told) == (0, "")
    # Filters are seen, and so their removal is a difference like any other.
    assert foretold == (2 if by_link else 1)
    assert ("eBPF programs of this agent are loaded" in said) == by_link


def test_cleanup_that_sees_no_pins_removes_what_it_can_and_says_what_to_do(
    left: Node, request: pytest.FixtureRequest
) -> None:
    done = left.agent(SHOWN, "cleanup", sees_pins=False)
    assert done.returncode == 2
    assert "`ipmasq-agent cleanup --backend=bpf` as root on the node" in done.stderr
    assert in_force(left) == ("tcx" in request.node.name)


def test_root_on_the_node_removes_programs_whose_pins_are_nowhere(
    left: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PINS, str(left.bpffs / "elsewhere"))
    assert status_of("cleanup") == 0
    assert not in_force(left)


def test_questions_name_a_plane_that_was_left_until_it_is_cleaned(
    left: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    named = "bpf holds rules of ours that decide too"
    words = ("status", left.document(), "--backend=iptables-nft", "--enable-ipv6")
    assert status_of(*words) == 1
    assert named in capsys.readouterr().out
    assert status_of("explain", "8.8.8.8", *words[1:]) == 0
    assert named in capsys.readouterr().err
    assert status_of("list", "--backend=iptables-nft") == 0
    assert "in force are those of bpf: `ipmasq-agent list --backend bpf`" in capsys.readouterr().err
    assert apply(left, SHOWN_TO_LEAVE, sees_pins=True) == (0, "")
    assert status_of(*words) == 0
    assert "bpf" not in capsys.readouterr().out


def test_filters_whose_pins_were_removed_by_hand_are_found(left: Node) -> None:
    shutil.rmtree(left.bpffs / "ipmasq-agent")
    assert apply(left, SHOWN_TO_LEAVE, sees_pins=True) == (0, "")
    wait_until(lambda: not in_force(left), "no program of ours is on eth0")


def test_programs_of_others_are_not_taken_for_ours(
    node: Node, run_foreign: Callable[[], None]
) -> None:
    run_foreign()
    for capabilities in (SHOWN_FOR_BPF, SHOWN_TO_LEAVE, SHOWN):
        assert apply(node, capabilities, sees_pins=True) == (0, "")
    assert "foreign" in node.ns.run(["tc", "filter", "show", "dev", "eth0", "egress"]).stdout


@pytest.fixture
def run_foreign(node: Node, tmp_path: Path) -> Callable[[], None]:
    def run() -> None:
        source = tmp_path / "foreign.c"
        source.write_text(
            '#include <linux/bpf.h>\n__attribute__((section("tc"), used))\n'
            "int foreign(struct __sk_buff *s) { return -1; }\n"
        )
        compiled = tmp_path / "foreign.o"
        headers = f"/usr/include/{os.uname().machine}-linux-gnu"
        argv = ["clang", "-O2", "-target", "bpf", f"-I{headers}", "-c", str(source)]
        subprocess.run([*argv, "-o", compiled], check=True)
        node.ns.run(["tc", "qdisc", "add", "dev", "eth0", "clsact"])
        words = ["bpf", "da", "obj", str(compiled), "sec", "tc"]
        node.ns.run(["tc", "filter", "add", "dev", "eth0", "egress", "prio", "7", *words])

    return run


def test_where_neither_programs_nor_symbols_may_be_seen_passes_go_on(
    in_ns: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel without its list of symbols, or a profile that hides it."""

    def forbidden(*_: object) -> int:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(tcx, "bpf", forbidden)
    monkeypatch.setattr(strays, "_SYMBOLS", tmp_path / "none")
    assert list(strays.find(frozenset(), strict=True)) == []
