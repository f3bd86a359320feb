"""IPv4 is decided by the bitmap as the trie would decide, by the programs as they run."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ipmasq_agent.bpf.maps import BpfMap, open_pinned
from ipmasq_agent.bpf.objects import run_program
from ipmasq_agent.errors import KernelReadError
from ipmasq_agent.planes.bpf import bitmap_maps, layout
from ipmasq_agent.planes.bpf.compile import compile_policy
from ipmasq_agent.planes.bpf.pins import PinDirectory
from ipmasq_agent.planes.bpf.plane import BpfPlane
from ipmasq_agent.planes.bpf.state import BpfState, describe
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.decisions import DecisionMap, Entry, Stated, Verdict
from ipmasq_agent.policy.model import FamilyPolicy
from tests.bpf import syscall
from tests.kernel.pins import PINS
from tests.netns import Namespace
from tests.unit.strategies import nested_ipv4

V4 = Family.IPV4
UDP_LITE, POD = 136, bytes([10, 64, 1, 5])
PASSES, DROPPED = -1, 2
FLOWS = 1 << 14
FIRST_OF_A_LINK = 224 << 24  # multicast and what is reserved are never asked about


@dataclass
class Node:
    """A node with a device that leads out, and the data plane on it."""

    plane: BpfPlane
    pins: Path
    device: int
    mac: bytes

    def bring(self, decisions: DecisionMap) -> bool:
        """Put a policy in force; whether it was edited in place."""
        dialect = self.plane.dialect
        change = dialect.plan(self.plane.read(V4), dialect.compile(FamilyPolicy(decisions)))
        if change:
            self.plane.apply(V4, change)
        return change.steps is not None

    @property
    def objects(self) -> Path:
        """Where the maps and programs are pinned."""
        return PinDirectory(self.pins).objects

    def read(self) -> BpfState:
        plane = BpfPlane(self.pins)
        try:
            return plane.read(V4)
        finally:
            plane.close()

    @property
    def agrees(self) -> bool:
        """Whether all of the bitmap is as the trie is."""
        rules = self.read().rules
        assert rules is not None
        return rules.agree

    def masqueraded(self, addresses: Iterable[int]) -> list[int]:
        """Those to which a packet is masqueraded.

        One of UDP-Lite, of which nothing is recorded: it passes where the policy keeps it,
        and is dropped where it would have to be translated.
        """
        program, found = syscall.pinned(self.objects / "outward"), []
        try:
            for address in addresses:
                ends = POD + address.to_bytes(4)
                header = struct.pack(">BBHHHBBH", 0x45, 0, 28, 7, 0, 64, UDP_LITE, 0) + ends
                frame = b"\2" + bytes(5) + self.mac + b"\x08\0" + header + bytes(8)
                verdict, _ = syscall.run_program(program, frame, self.device)
                assert verdict in (PASSES, DROPPED)
                if verdict == DROPPED:
                    found.append(address)
        finally:
            os.close(program)
        return found

    @contextlib.contextmanager
    def outline(self) -> Iterator[BpfMap]:
        found = open_pinned(self.objects / "outline")
        assert found is not None
        with found:
            yield found

    @contextlib.contextmanager
    def by_trie_alone(self) -> Iterator[None]:
        """Have the programs ask the trie about everything."""
        with self.outline() as outline:
            held = list(outline.entries())
            keys = b"".join(key for key, _ in held)
            outline.fill(keys, bytes(64 * len(held)), len(held))
            yield
            outline.fill(keys, b"".join(value for _, value in held), len(held))


@pytest.fixture
def node(in_ns: Namespace) -> Iterator[Node]:
    for words in (
        "link add eth0 type veth peer name far",
        "link set eth0 up",
        "link set far up",
        "address add 192.0.2.1/24 dev eth0",
        "route add default via 192.0.2.2",
    ):
        in_ns.run(["ip", *words.split()])
    pins, mac = Path(os.environ[PINS]), in_ns.run(["cat", "/sys/class/net/eth0/address"]).stdout
    plane = BpfPlane(pins, FLOWS)
    yield Node(
        plane, pins, socket.if_nametoindex("eth0"), bytes.fromhex(mac.strip().replace(":", ""))
    )
    plane.apply(V4, plane.dialect.plan(plane.read(V4), None))
    plane.close()


def policy(*kept: str, except_: Iterable[str] = ()) -> DecisionMap:
    """A policy that keeps some prefixes, but not what is excepted."""
    both = [(text, Verdict.MASQUERADE) for text in except_]
    both += [(text, Verdict.NON_MASQUERADE) for text in kept]
    return DecisionMap(V4, [_entry(*one) for one in both])


def _entry(text: str, verdict: Verdict) -> Entry[Verdict]:
    network = ipaddress.IPv4Network(text)
    return Entry(int(network[0]), int(network[-1]), verdict, Stated(text))


def borders(*policies: DecisionMap) -> list[int]:
    """Addresses on both sides of all that decides, as far as they can be asked about."""
    found = {1 << 24}
    for one in policies:
        for first, last, _ in one.entries.spans():
            found |= {first - 1, first, last, last + 1}
    return sorted(address for address in found if 0 <= address < FIRST_OF_A_LINK)


def expected(decisions: DecisionMap, addresses: Iterable[int]) -> list[int]:
    return [n for n in addresses if decisions.decide(n).verdict is Verdict.MASQUERADE]


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(wanted=st.lists(nested_ipv4(), min_size=3, max_size=3))
def test_the_programs_decide_as_the_trie_and_the_policy_do(
    node: Node, wanted: list[DecisionMap]
) -> None:
    for old, new in pairwise([DecisionMap(V4, ()), *wanted]):
        node.bring(new)
        probes = borders(old, new)
        assert node.masqueraded(probes) == expected(new, probes)
        with node.by_trie_alone():
            assert node.masqueraded(probes) == expected(new, probes)
        assert node.agrees


def test_what_no_prefix_of_a_bitmap_asks_for_takes_no_room(node: Node) -> None:
    node.bring(policy("10.0.0.0/8", "172.16.0.0/12"))
    assert not list(node.objects.glob("details_*"))
    assert node.bring(policy("10.0.0.0/8", "172.16.0.0/12", "192.0.2.0/24"))
    assert len(list(node.objects.glob("details_*"))) == 1
    assert node.agrees


# Of each length that comes one stays: the last of a length is not edited away in place.
STAYS = (
    *("10.1.0.0/25", "10.1.0.192/26", "10.2.3.4/32"),
    *("10.3.0.0/23", "10.3.2.0/24", "10.3.3.0/27", "10.3.3.64/30"),
)
COMES = ("10.1.0.128/27", "10.1.7.0/24", "10.1.8.0/30", "10.2.3.5/32", "10.2.4.0/23")


def test_what_two_policies_say_alike_is_so_while_one_is_edited_into_the_other(node: Node) -> None:
    old, new = policy(*STAYS), policy(*STAYS, *COMES)
    node.bring(old)
    both = borders(old, new)
    alike = [n for n in both if old.decide(n).verdict is new.decide(n).verdict]
    assert 10 < len(alike) < len(both)
    wanted = expected(old, alike)
    ended = threading.Event()
    failed: list[BaseException] = []

    def flip() -> None:
        try:
            for _ in range(40):
                assert node.bring(new)
                assert node.bring(old)
        except BaseException as error:
            failed.append(error)
        finally:
            ended.set()

    flipping = threading.Thread(target=flip)
    flipping.start()
    rounds = 0
    try:
        while not ended.is_set():
            assert node.masqueraded(alike) == wanted
            rounds += 1
    finally:
        flipping.join()
    assert not failed
    assert rounds
    assert node.agrees


def test_what_somebody_else_writes_is_told_and_healed(node: Node) -> None:
    wanted = policy("10.0.0.0/8")
    node.bring(wanted)
    inside, outside = 10 << 24 | 1, 11 << 24
    rules = node.plane.read_at(V4, inside).rules
    assert rules is not None
    assert rules.agree
    with node.outline() as outline:
        for number in range(2 * 256):  # of both generations
            outline.update(layout.NUMBER.pack(number), bytes([0x55] * 64))
    assert node.masqueraded([inside, outside]) == [inside, outside]
    assert node.plane.read_at(V4, outside).rules is not None
    with pytest.raises(KernelReadError, match=r"to 10\.0\.0\.1 are masqueraded by the bitmap"):
        node.plane.read_at(V4, inside)
    assert "ipv4 decisions other than written" in describe(node.read())
    assert not node.bring(wanted)
    assert node.masqueraded([inside, outside]) == [outside]
    assert node.agrees


def test_who_reads_while_another_edits_waits_for_the_end(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = policy(*STAYS), policy(*STAYS, *COMES)
    node.bring(old)
    comes = next(a for a in borders(new) if expected(old, [a]) != expected(new, [a]))
    reader = BpfPlane(node.pins)
    came, go_on = threading.Event(), threading.Event()

    def slow(program: int, packet: bytes) -> int:
        came.set()
        assert go_on.wait(30)
        return run_program(program, packet)

    monkeypatch.setattr(bitmap_maps, "run_program", slow)
    with ThreadPoolExecutor() as threads:
        writing = threads.submit(node.bring, new)
        assert came.wait(30)
        # The trie has what the bitmap has not: whoever reads now would find two policies.
        one, all_of_it = threads.submit(reader.read_at, V4, comes), threads.submit(reader.read, V4)
        threading.Timer(0.1, go_on.set).start()
        assert writing.result()
    for state in (one.result(), all_of_it.result()):
        assert state.rules is not None
        assert state.rules.agree
    assert all_of_it.result().rules == node.plane.read(V4).rules
    reader.close()


def test_where_there_is_no_room_for_more_the_trie_decides_until_all_is_filled_anew(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bitmap_maps, "_SPARE", 0)
    few = [f"10.0.{n}.1/32" for n in range(3)]
    node.bring(policy(*few))
    more = policy(*few, *(f"10.{n}.{n}.1/32" for n in range(100)))
    assert node.bring(more)  # in place
    probes = borders(more)
    assert node.masqueraded(probes) == expected(more, probes)
    assert not node.agrees
    assert not node.bring(more)
    assert node.agrees
    assert node.masqueraded(probes) == expected(more, probes)


@pytest.mark.parametrize("until", range(4))
def test_an_edit_that_ends_in_the_middle_leaves_what_the_trie_says(
    node: Node, monkeypatch: pytest.MonkeyPatch, until: int
) -> None:
    old, new = policy(*STAYS), policy(*STAYS, *COMES)
    node.bring(old)
    written = 0

    def interrupted(program: int, packet: bytes) -> int:
        nonlocal written
        written += 1
        if written > until:
            raise KeyboardInterrupt
        return run_program(program, packet)

    with monkeypatch.context() as patch:
        patch.setattr(bitmap_maps, "run_program", interrupted)
        with pytest.raises(KeyboardInterrupt):
            node.bring(new)
    probes = borders(old, new)
    now = node.masqueraded(probes)
    with node.by_trie_alone():
        assert node.masqueraded(probes) == now == expected(new, probes)
    assert not node.agrees
    # Who trusts what was left in the middle, and edits it, is not misled.
    state = node.read()
    assert state.rules is not None
    trusted = replace(state, rules=replace(state.rules, agree=True))
    later = policy(*STAYS, *COMES, "10.2.3.9/32", "10.1.7.9/32")
    change = node.plane.dialect.plan(trusted, compile_policy(FamilyPolicy(later)))
    assert change.steps
    node.plane.apply(V4, change)
    assert node.masqueraded(probes) == expected(later, probes)
    assert not node.bring(later)
    assert node.agrees
