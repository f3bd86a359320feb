"""From the first layout of the eBPF plane to that of today: policy and flows go on.

What the first one left is made here: its maps with the flows that are open, as its programs
recorded them, and programs of its names on the devices, in the place of those of today.
"""

from __future__ import annotations

import contextlib
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipmasq_agent.agent.reconcile import clean
from ipmasq_agent.bpf.maps import open_pinned
from ipmasq_agent.bpf.objects import closing, get_pinned
from ipmasq_agent.planes import detect
from ipmasq_agent.planes.bpf import clsact, layout, libbpf, strays, tcx
from ipmasq_agent.planes.bpf.bitmap_maps import BitmapMaps
from ipmasq_agent.planes.bpf.layout import TcHook
from ipmasq_agent.planes.bpf.maps import PinnedMaps
from ipmasq_agent.planes.bpf.pins import PinDirectory
from ipmasq_agent.planes.bpf.plane import BpfPlane
from ipmasq_agent.planes.bpf.programs import NodePrograms
from ipmasq_agent.policy.addresses import Family
from tests.bpf.datapath import find_clang
from tests.kernel.pins import placement
from tests.kernel.test_bpf_pins import (
    Flows,
    assert_whole,
    by_tcx,
    flows,
    net,
    new_agent,
    without_sys_admin,
)
from tests.kernel.test_bpf_survival import (
    KEEPING,
    MASQUERADING,
    NODE,
    POD,
    Connection,
    Net,
    bring,
)

__all__ = ["by_tcx", "net"]
OF_TODAY = struct.Struct("=16s16s2s2sBB2x"), struct.Struct("=16s2s2xIQ")  # key, flow
OF_FIRST = struct.Struct("=16s16s2s2sBBBx"), struct.Struct("=16s2s2xII")  # key, flow
TRANSLATED = 1 << 0
NAMES = {"control", "settings", "decisions", "flows", "inward", "outward", "sweep"}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of the first layout, compiled."""
    compiled = tmp_path_factory.mktemp("first") / "first.o"
    source = Path(__file__).with_name("first_layout.bpf.c")
    argv = [*find_clang(), "-O2", "-g", "-Wall", "-Werror", "-c", str(source), "-o", str(compiled)]
    subprocess.run(argv, check=True)
    return compiled


def root() -> Path:
    return Path(placement().pins)


def of_first(place: bytes, value: bytes) -> Iterator[tuple[bytes, bytes]]:
    """What the first layout had of a flow: under its packets, and under its replies."""
    remote, local, remote_port, port, protocol, family = OF_TODAY[0].unpack(place)
    owner, owners_port, life = local, port, int.from_bytes(value[-8:], "little")
    if len(value) == OF_TODAY[1].size:
        owner, owners_port, _, life = OF_TODAY[1].unpack(value)
    translated = (owner, owners_port) != (local, port)
    state, expires = divmod(life, 1 << 32)
    state = (state & 0b111) << 1 | state & 0b1110000 | TRANSLATED * translated
    key = OF_FIRST[0].pack(owner, remote, owners_port, remote_port, protocol, family, 0)
    if not translated:
        yield key, OF_FIRST[1].pack(bytes(16), bytes(2), state, expires)
        return
    yield key, OF_FIRST[1].pack(local, port, state, expires)
    key = OF_FIRST[0].pack(remote, local, remote_port, port, protocol, family, 1)
    yield key, OF_FIRST[1].pack(owner, owners_port, TRANSLATED, expires)


def go_back(first: Path, by_tcx: bool) -> None:
    """Put the first layout in the place of that of today, which is in force."""
    pins = PinDirectory(root())
    libbpf.load(first, root(), {}, {})
    with (
        PinnedMaps(pins.objects) as today,
        PinnedMaps(root()) as old,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(BitmapMaps, "fill", lambda *_: None)  # there was none
        for family in Family:
            slot = layout.slot(family, today.generation(family))
            rules, settings = today.rules(family, slot), today.settings(slot)
            old.fill(layout.slot(family, 1), rules, settings.stamp)
            old.switch(family, 1)
        for key, value in today[layout.DEVICES].entries():
            old[layout.DEVICES].update(key, value[:40])
        for name in (layout.FLOWS, layout.KEPT):
            for entry in today[name].entries():
                for key, value in of_first(*entry):
                    old[layout.FLOWS].update(key, value)
        devices = list(today.devices())
    for number in devices:
        for hook in TcHook:
            program = get_pinned(root() / hook.value)
            assert program is not None
            with closing(program):
                if by_tcx:
                    assert tcx.attach(number, hook, program, pins.link(number, hook))
                else:
                    clsact.attach(number, hook, program)
    shutil.rmtree(pins.objects)
    for path in root().glob("bytecode-*"):
        path.rename(root() / "bytecode-ofthefirst")


@contextlib.contextmanager
def left(net: Net, first: Path, by_tcx: bool) -> Iterator[Flows]:
    """What an agent of the first layout left, while flows cross it."""
    plane = new_agent()
    bring(plane, MASQUERADING)
    with flows(net) as crossing:
        go_back(first, by_tcx)
        plane.close()
        yield crossing


def assert_first_is_gone() -> None:
    assert {path.name.split("-")[0] for path in root().iterdir()} <= {"bytecode", "layout", "link"}
    assert len(list(root().glob("bytecode-*"))) == 1  # by which older agents know it as theirs


@pytest.mark.parametrize("privileged", [True, False], ids=["root", "restricted"])
def test_flows_go_on_and_the_new_policy_is_for_later_ones(
    net: Net, first: Path, by_tcx: bool, privileged: bool
) -> None:
    with net.node.entered(), left(net, first, by_tcx) as crossing:
        assert {path.name for path in root().iterdir()} >= NAMES
        plane = new_agent()
        assert plane.disturbed()
        with contextlib.nullcontext() if privileged else without_sys_admin():
            bring(plane, KEEPING)
        assert_whole(plane)
        assert_first_is_gone()
        crossing.go_on()
        for family in Family:
            assert Connection(net, family).seen == POD[family]
        clean(plane, Family)


def test_a_flow_that_begins_while_programs_are_replaced_goes_on(
    net: Net, first: Path, by_tcx: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with net.node.entered(), left(net, first, by_tcx) as crossing:
        late = {}
        with PinnedMaps(root()) as old:
            table = old[layout.FLOWS]
            for key, value in table.entries():
                table.delete(key)
                late[key] = value
        attach = NodePrograms.attach

        def meanwhile(programs: NodePrograms, ifindex: int) -> None:
            table = open_pinned(root() / layout.FLOWS)
            assert table is not None or not late
            while late and table is not None:
                table.update(*late.popitem())
            attach(programs, ifindex)

        monkeypatch.setattr(NodePrograms, "attach", meanwhile)
        plane = new_agent()
        bring(plane, MASQUERADING)
        assert late == {}
        crossing.go_on()
        clean(plane, Family)


@pytest.mark.parametrize(
    "gone", [["flows"], ["settings"], ["decisions_1", "inward"], sorted(NAMES)]
)
def test_an_agent_goes_on_whatever_is_missing(
    net: Net, first: Path, by_tcx: bool, gone: list[str]
) -> None:
    with net.node.entered(), left(net, first, by_tcx):
        for name in gone:
            (root() / name).unlink(missing_ok=True)
        plane = new_agent()
        bring(plane, MASQUERADING)
        assert_whole(plane)
        assert_first_is_gone()
        with flows(net) as crossing:
            crossing.go_on()
        clean(plane, Family)


def test_cleanup_takes_it_away(net: Net, first: Path, by_tcx: bool) -> None:
    with net.node.entered(), left(net, first, by_tcx):
        outcomes = clean(new_agent(), Family)
        assert [str(one.error) for one in outcomes.values() if one.error] == []
        assert not root().exists()
        assert list(strays.find(frozenset(), strict=False)) == []


def test_an_agent_that_moves_on_lets_the_flows_go_on(net: Net, first: Path, by_tcx: bool) -> None:
    with net.node.entered(), left(net, first, by_tcx) as crossing:
        there = detect.make("iptables-nft", placement())
        plane = new_agent()
        plane.announce()
        bring(there, MASQUERADING)
        assert plane.drain() >= len(Family)
        crossing.go_on()
        clean(plane, Family)
        for family in Family:
            assert Connection(net, family).seen == NODE[family]
        clean(there, Family)


def test_what_a_newer_agent_left_makes_room(net: Net, by_tcx: bool) -> None:
    with net.node.entered():
        plane = new_agent()
        bring(plane, MASQUERADING)
        plane.close()
        newer = root() / f"layout-{layout.LAYOUT + 1}"
        PinDirectory(root()).objects.rename(newer)
        plane = BpfPlane(root(), 4096)
        bring(plane, MASQUERADING)
        assert_whole(plane)
        assert not newer.exists()
        with flows(net) as crossing:
            crossing.go_on()
        clean(plane, Family)
