"""Pins of the eBPF plane that somebody removed: a pass brings them back, and flows go on.

A TCP connection and a UDP flow of each family cross the node. After each removal a pass is
made by the agent that runs, which holds descriptors; by another one, which may open objects
by their numbers; or by one that may not (CAP_SYS_ADMIN), as the DaemonSet's.
"""

from __future__ import annotations

import contextlib
import ctypes
import random
import shutil
import socket
import struct
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from ipmasq_agent.agent.reconcile import clean
from ipmasq_agent.planes.bpf import layout, strays
from ipmasq_agent.planes.bpf.layout import SettingsFlag
from ipmasq_agent.planes.bpf.maps import PinnedMaps
from ipmasq_agent.planes.bpf.pins import PinDirectory
from ipmasq_agent.planes.bpf.plane import BpfPlane
from ipmasq_agent.planes.bpf.programs import NodePrograms
from ipmasq_agent.policy.addresses import Family
from tests.kernel.pins import placement
from tests.kernel.test_bpf_survival import (
    KIND,
    NODE,
    POD,
    WORLD,
    Connection,
    Net,
    bring,
)
from tests.netns import Namespace
from tests.waiting import wait_until

INNER = [f"{kind}_{slot}" for kind in ("decisions", layout.DETAILS) for slot in range(2)]
EVERYTHING = [*layout.MAPS, *layout.PROGRAMS, *INNER]
# With a prefix for which there are details.
POLICY = "nonMasqueradeCIDRs: [10.0.0.0/8, 203.0.113.0/24]"
SEED = 20261127


@pytest.fixture(scope="module")
def net() -> Iterator[Net]:
    with Namespace("pod") as pod, Namespace("node") as node, Namespace("world") as world:
        made = Net(pod, node, world)
        with made.echoing():
            yield made


@pytest.fixture(params=[True, False], ids=["tcx", "clsact"])
def by_tcx(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(NodePrograms.__init__, "__kwdefaults__", {"tcx": request.param})
    return bool(request.param)


class Flows:
    """A TCP connection each way and a UDP flow of each family, and how the world sees them."""

    def __init__(self, net: Net) -> None:
        self._stack = contextlib.ExitStack()
        self._tcp = [Connection(net, family) for family in Family]
        self._udp = []
        for family in Family:
            with net.world.entered():
                server = self._stack.enter_context(socket.socket(KIND[family], socket.SOCK_DGRAM))
                server.bind((WORLD[family], 0))
            with net.pod.entered():
                client = self._stack.enter_context(socket.socket(KIND[family], socket.SOCK_DGRAM))
                client.connect((WORLD[family], server.getsockname()[1]))
            for one in (server, client):
                one.settimeout(5)
            self._udp.append((server, client))
        self._from_outside = [self._accepted(net, family) for family in Family]
        self._seen = [self._exchange(*pair) for pair in self._udp]
        assert [one.seen for one in self._tcp] == [NODE[family] for family in Family]
        assert [host for host, _ in self._seen] == [NODE[family] for family in Family]

    def _accepted(self, net: Net, family: Family) -> tuple[socket.socket, socket.socket]:
        """Connect from the world to the pod, and return both ends."""
        with net.pod.entered():
            server = socket.create_server((POD[family], 0), family=KIND[family])
        with server, net.world.entered():
            client = socket.create_connection(server.getsockname()[:2], timeout=5)
            accepted, _ = server.accept()
        accepted.settimeout(5)
        return self._stack.enter_context(client), self._stack.enter_context(accepted)

    @staticmethod
    def _exchange(server: socket.socket, client: socket.socket) -> tuple[str, int]:
        client.send(b"question")
        _, (host, port, *_) = server.recvfrom(100)
        server.sendto(b"answer", (host, port))
        assert client.recv(100) == b"answer"
        return str(host), int(port)

    def go_on(self, lost: Collection[str] = ()) -> None:
        """Make sure that packets still go both ways, with the same addresses and ports.

        Where the table of a flow was lost whoever began it has to speak first.
        """
        if layout.FLOWS not in lost:
            for (server, client), address in zip(self._udp, self._seen, strict=True):
                server.sendto(b"more", address)
                assert client.recv(100) == b"more"
        for one in self._tcp:
            one.exchange()
        for ends in self._from_outside:
            for sender, receiver in (ends, ends[::-1])[:: 1 if layout.KEPT in lost else -1]:
                sender.sendall(b"x")
                assert receiver.recv(1) == b"x"
        assert [self._exchange(*pair) for pair in self._udp] == self._seen

    def close(self) -> None:
        for one in self._tcp:
            one.close()
        self._stack.close()


@contextlib.contextmanager
def flows(net: Net) -> Iterator[Flows]:
    made = Flows(net)
    try:
        yield made
    finally:
        made.close()


def objects() -> Path:
    return PinDirectory(Path(placement().pins)).objects


def remove(names: Collection[str]) -> None:
    for path in (objects() / name for name in names):
        path.unlink(missing_ok=True)


def new_agent() -> BpfPlane:
    return BpfPlane(Path(placement().pins), 4096)


def assert_whole(plane: BpfPlane) -> None:
    """Nothing is missing, and a pass finds nothing to do."""
    assert not plane.disturbed()
    names = {path.name for path in objects().iterdir()}
    assert set(layout.MAPS) | set(layout.PROGRAMS) <= names
    for family in Family:
        state = plane.read(family)
        assert state.rules is not None
        assert state.rules.agree
        assert not state.damaged
        assert not state.remains


@contextlib.contextmanager
def without_sys_admin() -> Iterator[None]:
    """Take CAP_SYS_ADMIN from this thread while the block runs: capset(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = struct.pack("=Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
    held = ctypes.create_string_buffer(24)  # effective, permitted, inheritable; twice
    assert libc.capget(header, held) == 0
    before = held.raw
    effective, *others = struct.unpack("=6I", before)
    assert libc.capset(header, struct.pack("=6I", effective & ~(1 << 21), *others)) == 0
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0


def heal(plane: BpfPlane, agent: str) -> BpfPlane:
    """Make a pass, and return the agent that made it."""
    if agent == "running":
        bring(plane, POLICY)
        return plane
    plane.close()
    plane = new_agent()
    with without_sys_admin() if agent == "restricted" else contextlib.nullcontext():
        bring(plane, POLICY)
    return plane


@pytest.mark.parametrize("agent", ["running", "another", "restricted"])
def test_each_single_pin_heals_and_no_flow_ends(net: Net, by_tcx: bool, agent: str) -> None:
    with net.node.entered():
        plane = new_agent()
        bring(plane, POLICY)
        try:
            # How programs are attached matters to few.
            some = [*layout.PROGRAMS, layout.CONTROL, layout.FLOWS, layout.NODE]
            for name in EVERYTHING if by_tcx else some:
                with flows(net) as crossing:
                    remove([name])
                    # One of a policy that is not in force may be there or not.
                    assert plane.disturbed() or name in INNER
                    plane = heal(plane, agent)
                    assert_whole(plane)
                    crossing.go_on([name] if agent == "restricted" else ())
        finally:
            clean(plane, Family)


def test_flows_outlive_a_secret_that_is_lost_again_and_again(net: Net, by_tcx: bool) -> None:
    with net.node.entered():
        plane = new_agent()
        bring(plane, POLICY)
        try:
            with flows(net) as crossing:
                for _ in range(3):
                    remove([layout.NODE])
                    plane = heal(plane, "restricted")
                    assert_whole(plane)
                    crossing.go_on()
        finally:
            clean(plane, Family)


@pytest.mark.parametrize("agent", ["running", "another", "restricted"])
def test_any_subset_of_pins_heals(net: Net, by_tcx: bool, agent: str) -> None:
    chance = random.Random(SEED)
    with net.node.entered():
        plane = new_agent()
        bring(plane, POLICY)
        try:
            for _ in range(4):
                links = [path.name for path in PinDirectory(Path(placement().pins)).links()]
                gone = [name for name in EVERYTHING + links if chance.random() < 0.4]
                with flows(net) as crossing:
                    remove(set(gone) - set(links))
                    for name in set(gone) & set(links):
                        (Path(placement().pins) / name).unlink()
                    plane = heal(plane, agent)
                    assert_whole(plane)
                    # What only the table of flows and the secret tell goes with both.
                    lost = set(gone if agent == "restricted" else ())
                    if not {layout.FLOWS, layout.NODE} <= lost:
                        crossing.go_on(lost)
                with flows(net):
                    assert not plane.disturbed()
        finally:
            clean(plane, Family)


@pytest.mark.parametrize("agent", ["running", "started since", "another", "restricted"])
def test_all_pins_at_once_heal(net: Net, by_tcx: bool, agent: str) -> None:
    with net.node.entered():
        plane = new_agent()
        bring(plane, POLICY)
        if agent == "started since":  # it found all there, and had nothing to do
            plane.close()
            plane, agent = new_agent(), "running"
            bring(plane, POLICY)
        try:
            with flows(net) as crossing:
                shutil.rmtree(placement().pins)
                if agent == "running":
                    time.sleep(0.2)  # a link that nobody holds ends a moment after its pin
                    crossing.go_on()
                plane = heal(plane, agent)
                assert_whole(plane)
                # A filter keeps the maps of its program, which is asked for by its number.
                if agent == "running" or (agent == "another" and not by_tcx):
                    crossing.go_on()
            with flows(net):
                assert not plane.disturbed()
        finally:
            clean(plane, Family)


@pytest.mark.parametrize("agent", ["running", "another", "restricted"])
def test_cleanup_removes_whatever_is_left(net: Net, by_tcx: bool, agent: str) -> None:
    chance = random.Random(SEED)
    with net.node.entered():
        for _ in range(2):
            plane = new_agent()
            bring(plane, POLICY)
            pins = PinDirectory(Path(placement().pins))
            remove([name for name in EVERYTHING if chance.random() < 0.5])
            for link in pins.links():
                if chance.random() < 0.5:
                    link.unlink()
            if agent != "running":
                plane.close()
                plane = new_agent()
            with without_sys_admin() if agent == "restricted" else contextlib.nullcontext():
                outcomes = clean(plane, Family)
            assert [str(one.error) for one in outcomes.values() if one.error] == []
            assert not pins.root.exists()
            assert list(strays.find(frozenset(), strict=False)) == []


def programs_on_devices() -> int:
    """How many programs are on the node's devices, at both hooks, whosesoever."""
    return len(list(strays.find(frozenset(), strict=False)))


def test_programs_of_an_agent_with_other_pins_give_way_and_their_flows_go_on(
    net: Net, by_tcx: bool
) -> None:
    with net.node.entered():
        other = BpfPlane(objects().parent.with_name("other"), 4096)
        bring(other, POLICY)
        other.close()
        with flows(net) as crossing:
            plane = new_agent()
            assert plane.read(Family.IPV4).remains
            bring(plane, POLICY)
            assert_whole(plane)
            crossing.go_on()
            assert programs_on_devices() == len(layout.TcHook)
        clean(plane, Family)
        assert programs_on_devices() == 0


def test_what_another_agent_puts_beside_ours_is_taken_away(net: Net, by_tcx: bool) -> None:
    with net.node.entered():
        plane = new_agent()
        bring(plane, POLICY)
        other = NodePrograms(objects().parent.with_name("other"), 4096)
        other.load()
        # On a device that has none of ours: a filter there would be replaced.
        device = socket.if_nametoindex("cali0")
        other.attach(device)
        assert programs_on_devices() == 2 * len(layout.TcHook)
        assert plane.read(Family.IPV4).remains
        bring(plane, POLICY)
        assert_whole(plane)
        assert programs_on_devices() == len(layout.TcHook)
        other.close()
        clean(plane, Family)
        assert programs_on_devices() == 0


def _altered(maps: PinnedMaps, family: Family, what: str) -> None:
    """Write something else where a policy is in force, as bpftool would."""
    slot = layout.slot(family, maps.generation(family))
    match what:
        case "settings":
            held = maps.settings(slot)
            maps.set_settings(slot, held._replace(flags=held.flags ^ SettingsFlag.RANDOM_FULLY))
        case "device":
            entry = next(iter(maps.devices().values()))
            maps.set_device(entry._replace(egress={**entry.egress, family: 0}))
        case "own":
            maps.drop_own(family, list(maps.own(family))[:1])
        case "trie":
            with maps.inner.open("decisions", slot) as trie:
                assert trie is not None
                key, value = max(trie.entries())
                other = layout.MASQUERADE + layout.NON_MASQUERADE - value[0]
                trie.update(key, bytes([other]))
        case "bitmap":
            key, block = next((k, v) for k, v in maps[layout.OUTLINE].entries() if any(v))
            maps[layout.OUTLINE].update(key, bytes(len(block)))


@pytest.mark.parametrize("what", ["settings", "device", "own", "trie", "bitmap"])
def test_an_entry_that_somebody_changed_is_seen_and_put_right(net: Net, what: str) -> None:
    families = [Family.IPV4] if what == "bitmap" else list(Family)
    with net.node.entered(), contextlib.closing(BpfPlane(Path(placement().pins))) as plane:
        try:
            bring(plane, POLICY)
            for family in families:
                assert not plane.disturbed()
                with PinnedMaps(PinDirectory(Path(placement().pins)).objects) as maps:
                    _altered(maps, family, what)
                wait_until(plane.disturbed, f"{what} of {family.value} is seen")
                bring(plane, POLICY)
            assert not plane.disturbed()
            assert plane.read(Family.IPV4).rules == plane.recall(Family.IPV4).rules
        finally:
            clean(plane, Family)
