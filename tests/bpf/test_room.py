"""Room in the tables of flows: what has expired is collected, and what lives stays."""

from __future__ import annotations

import socket
import struct
from dataclasses import replace

import pytest

from tests.bpf import layout
from tests.bpf.datapath import SHED_AT_ONCE, TABLE, Datapath, Flow, Key, now
from tests.bpf.layout import CONFIRMED, FIN_OUTWARD, RESET_OUTWARD, SEEN_INWARD, SEEN_OUTWARD
from tests.bpf.packets import FAMILIES, Addresses, address, flow, frame, tcp, udp

GONE = IDLE = 2
TCP, UDP, ICMP, GRE = 6, 17, 1, 47
BOTH = SEEN_OUTWARD | SEEN_INWARD
LATER = 1000  # seconds: whatever the test takes
FILLED = 20000  # the first port of those that fill the table
TCP_ESTABLISHED = 5 * 24 * 3600


def held(masq: Datapath) -> set[int]:
    """The ports with which flows leave."""
    keys = masq.maps["flows"].entries()
    return {socket.ntohs(struct.unpack(layout.FLOW_KEY, key)[3]) for key in keys}


def put(
    masq: Datapath, family: Addresses, number: int, protocol: int, state: int, seconds: int
) -> None:
    """Put a flow of a pod into the table, that lives for so many seconds more."""
    key = Key(family.pod, number, family.outside, 443, protocol)
    at = Flow(family.node, number, state, now() + seconds, translated=True)
    masq.put_flow(family.number, key, at)


def fill(masq: Datapath, family: Addresses) -> None:
    """Give all places in the table that are free to established connections."""
    ends = address(family.outside), address(family.node)
    pod, life = address(family.pod), (BOTH | CONFIRMED) << 32 | now() + TCP_ESTABLISHED

    def put_more_than_fit() -> None:
        for port in map(socket.htons, range(FILLED, FILLED + TABLE + 1)):
            key = struct.pack(layout.FLOW_KEY, *ends, socket.htons(443), port, TCP, family.number)
            masq.maps["flows"].put(key, struct.pack(layout.FLOW, pod, port, 0, 0, life))

    with pytest.raises(OSError, match="too long"):  # E2BIG
        put_more_than_fit()


def wait_for_room(masq: Datapath, seconds: int) -> None:
    """Say that no room may be made for so many seconds, in neither table."""
    due = (now() + seconds) * 10**9
    held = masq.maps["tables"].get(bytes(4))
    assert held is not None
    masq.maps["tables"].put(bytes(4), struct.pack("=QQ", due, due) + held[16:])


# -- what has expired ----------------------------------------------------------------------


def test_what_has_expired_for_good_is_removed_and_counted(empty: Datapath) -> None:
    for family in FAMILIES:
        empty.policy(
            family.number,
            {family.everything: layout.MASQUERADE, family.kept_prefix: layout.NON_MASQUERADE},
        )
    for family in FAMILIES:
        empty.device(family)
        for number in range(3):
            empty.out(udp(family.pod, 1500 + number, family.outside, 80))
        empty.out(tcp(family.pod, 1500, family.outside, 80))
        empty.out(tcp(family.pod, 1500, family.kept, 80))
    assert empty.sweep() == 0
    empty.let_expire(layout.IPV6, UDP, since=0)
    assert empty.sweep() == 0  # who saw them alive has time
    empty.let_expire(layout.IPV6, UDP, since=GONE)
    assert empty.sweep() == 3
    assert {key.protocol for key in empty.flows(layout.IPV6)} == {TCP}
    empty.let_expire(layout.IPV4, since=GONE)
    assert empty.sweep() == 5
    assert empty.flows(layout.IPV4) == {}
    assert len(empty.flows(layout.IPV6)) == 2
    assert empty.counted(layout.IPV4)["FLOWS_COLLECTED"] == 5
    assert empty.counted(layout.IPV6)["FLOWS_COLLECTED"] == 3


def test_a_place_that_somebody_is_taking_is_left_to_them(masq: Datapath, family: Addresses) -> None:
    put(masq, family, 1500, UDP, SEEN_OUTWARD | layout.TAKING, -5)
    before = masq.flows(family.number)
    assert masq.sweep() == 0
    assert masq.flows(family.number) == before


@pytest.mark.parametrize("protocol", ["tcp", "udp", "echo"])
def test_a_place_whose_flow_has_expired_is_given_to_the_next_one_as_it_is(
    masq: Datapath, family: Addresses, protocol: str
) -> None:
    first = frame(flow(protocol, family.pod, 1500, family.outside, 80))
    second = frame(flow(protocol, family.other_pod, 1500, family.outside, 80))
    assert masq.out(first) is not None
    place = masq.port(family, family.pod)
    masq.let_expire(family.number, since=0)
    assert masq.out(second) is not None
    assert masq.port(family, family.other_pod) != place
    assert len(masq.flows(family.number)) == 2
    masq.let_expire(family.number, since=GONE)
    masq.sweep()
    assert masq.out(first) is not None
    masq.let_expire(family.number, since=GONE)
    assert masq.out(second) is not None
    ((key, taken),) = masq.flows(family.number).items()
    assert (key.source, taken.port) == (family.other_pod, place)
    back = masq.back(flow(protocol, family.outside, 80, family.node, place, reply=True))
    assert back == frame(flow(protocol, family.outside, 80, family.other_pod, 1500, reply=True))


# -- a full table --------------------------------------------------------------------------


def test_a_table_full_of_connections_takes_no_new_flow_and_they_go_on(
    masq: Datapath, family: Addresses
) -> None:
    masq.out(tcp(family.pod, 1500, family.outside, 80))
    masq.back(tcp(family.outside, 80, family.node, 1500, "SA"))
    masq.out(tcp(family.pod, 1500, family.outside, 80, "A"))
    fill(masq, family)
    before = held(masq)
    for number in range(3):
        assert masq.out(udp(family.pod, 1600 + number, family.outside, 80)) is None
    assert masq.counted(family.number)["OUT_DROPPED_TABLE"] == 3
    out = masq.out(tcp(family.pod, 1500, family.outside, 80, "A"))
    assert out == frame(tcp(family.node, 1500, family.outside, 80, "A"))
    back = masq.back(tcp(family.outside, 80, family.node, 1500, "A"))
    assert back == frame(tcp(family.outside, 80, family.pod, 1500, "A"))
    assert held(masq) == before


def test_only_what_was_never_a_connection_and_is_idle_makes_room(
    masq: Datapath, family: Addresses
) -> None:
    idle = {
        1: (UDP, SEEN_OUTWARD, 30 - IDLE),
        2: (TCP, SEEN_OUTWARD, 60 - IDLE),
        3: (TCP, BOTH, 60 - IDLE),  # whoever opened it has said no more
        4: (TCP, BOTH | CONFIRMED | RESET_OUTWARD, 10 - IDLE),
        5: (ICMP, SEEN_OUTWARD, 30 - IDLE),
    }
    others = {
        11: (UDP, SEEN_OUTWARD, 30 + LATER),
        12: (TCP, SEEN_OUTWARD, 60 + LATER),
        13: (UDP, BOTH, LATER),
        14: (TCP, BOTH | CONFIRMED, LATER),
        15: (TCP, BOTH | CONFIRMED | FIN_OUTWARD, LATER),
        16: (GRE, SEEN_OUTWARD, LATER),
    }
    for number, (protocol, state, seconds) in {**idle, **others}.items():
        put(masq, family, number, protocol, state, seconds)
    put(masq, family, 21, UDP, BOTH, -GONE)
    fill(masq, family)
    assert masq.out(udp(family.pod, 1500, family.outside, 80)) is not None
    left = held(masq)
    assert {number for number in left if number < FILLED} == {*others, 1500}
    assert len(left) == TABLE - len(idle)
    counted = masq.counted(family.number)
    assert (counted["FLOWS_SHED"], counted["FLOWS_COLLECTED"]) == (len(idle), 1)
    assert "OUT_DROPPED_TABLE" not in counted


def test_a_packet_that_makes_room_is_not_held_up_for_long(
    masq: Datapath, family: Addresses
) -> None:
    for number in range(1, 1 + 3 * SHED_AT_ONCE):
        put(masq, family, number, UDP, SEEN_OUTWARD, 30 - IDLE)
    fill(masq, family)
    assert masq.out(udp(family.pod, 30001, family.outside, 80)) is not None
    assert masq.counted(family.number)["FLOWS_SHED"] == SHED_AT_ONCE
    fill(masq, family)
    # Nor does the next one do so at once.
    wait_for_room(masq, 1000)
    assert masq.out(udp(family.pod, 30002, family.outside, 80)) is None
    assert masq.counted(family.number)["FLOWS_SHED"] == SHED_AT_ONCE
    wait_for_room(masq, 0)
    assert masq.out(udp(family.pod, 30003, family.outside, 80)) is not None
    assert masq.counted(family.number)["FLOWS_SHED"] == 2 * SHED_AT_ONCE


def test_flows_that_find_no_room_keep_their_source_and_are_counted(
    masq: Datapath, family: Addresses
) -> None:
    for number in range(1, 1 + TABLE):
        key = Key(family.pod, number, family.kept, 80, TCP)
        at = Flow(family.pod, number, BOTH | CONFIRMED, now() + TCP_ESTABLISHED)
        masq.put_flow(family.number, key, at)
    packet = frame(udp(family.pod, 1500, family.kept, 80))
    assert masq.out(packet) == packet
    assert masq.counted(family.number)["FLOWS_UNRECORDED"] == 1
    masq.put_flow(family.number, key, replace(at, state=SEEN_OUTWARD, expires=now() + 60 - IDLE))
    wait_for_room(masq, 0)
    assert masq.out(packet) == packet
    assert masq.counted(family.number)["FLOWS_UNRECORDED"] == 1
    assert masq.counted(family.number)["FLOWS_SHED"] == 1
    assert Key(family.pod, 1500, family.kept, 80, UDP).packed(family.number) in (
        masq.maps["kept"].entries()
    )
