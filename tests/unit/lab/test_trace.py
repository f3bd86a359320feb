"""A probe's packets are found again on their way, whatever NAT makes of their ends."""

from __future__ import annotations

import random

import pytest

from ipmasq_agent.lab.packets import Captured
from ipmasq_agent.lab.trace import stops
from tests.unit.lab.ways import BACK, LOOP, NODE, POD, THERE, masqueraded, packet, trace

PROTOCOLS = ("icmp", "tcp", "udp")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_masqueraded_packet_and_its_reply_are_followed(protocol: str) -> None:
    captured = masqueraded(protocol)
    random.Random(1).shuffle(captured)  # hosts are read one after the other
    found = trace(captured, protocol)
    assert [(c.host, c.device, c.out) for c in found.request] == list(THERE)
    assert [(c.host, c.device, c.out) for c in found.reply] == list(BACK)
    assert [c.packet.source for c in found.request] == [POD, POD, POD, NODE, NODE]
    assert [c.packet.destination for c in found.reply] == [NODE, NODE, POD, POD, POD]
    assert found.arrived("router") == NODE
    assert found.arrived("w1-pod") is None


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_is_of_another_probe_is_left_out(protocol: str) -> None:
    other = packet(protocol, POD, LOOP)._replace(payload=b"another", sequence=9, flags=0x10)
    mixed = [Captured(1, "curl-pod", "eth0", True, other), *masqueraded(protocol)]
    assert trace(mixed, protocol) == trace(masqueraded(protocol), protocol)
    elsewhere = [c._replace(packet=packet(protocol, POD, "10.10.2.200")) for c in mixed]
    assert trace(elsewhere, protocol).request == ()


def test_what_was_sent_a_second_time_is_one_packet_still() -> None:
    captured = masqueraded()
    again = [c._replace(time=c.time + 1_000_000_000) for c in captured]
    assert trace([*again, *captured]) == trace(captured)


def test_what_was_not_captured_is_not_there() -> None:
    captured = masqueraded()
    beyond = [c for c in captured if c.host != "router"]
    assert [stop.host for stop in stops(trace(beyond).request)] == ["curl-pod", "k8s-ctr"]
    assert trace(beyond).arrived("router") is None
    assert trace([c for c in captured if c.packet.source != LOOP]).reply == ()
    nothing = trace([], lost=("router",))
    assert not nothing.request
    assert not nothing.reply
    assert nothing.lost == {"router"}


def test_a_stop_is_how_a_packet_came_into_a_host_and_how_it_left() -> None:
    found = [
        (stop.host, stop.came and stop.came.device, stop.went and stop.went.device)
        for stop in stops(trace(masqueraded()).request)
    ]
    assert found == [
        ("curl-pod", None, "eth0"),
        ("k8s-ctr", "veth-curl-pod", "eth1"),
        ("router", "eth1", None),
    ]


def test_an_answer_whose_own_source_was_changed_is_an_answer_still() -> None:
    captured = [
        c._replace(packet=c.packet._replace(source="10.0.0.1")) if c.packet.source == LOOP else c
        for c in masqueraded("udp")
    ]
    assert {c.packet.source for c in trace(captured, "udp").reply} == {"10.0.0.1"}
