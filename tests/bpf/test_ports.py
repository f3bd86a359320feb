"""Which port a flow gets: the pod's own, another one, one of the policy's ranges, or none."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6

from tests.bpf import layout
from tests.bpf.datapath import Datapath, now
from tests.bpf.packets import LINK, Addresses, echo, flow, frame, tcp, udp

PROTOCOLS = ("tcp", "udp", "echo")
FOUR = [(40000, 40003)]
GRACE = 2


def policy(
    masq: Datapath, family: Addresses, *, flags: int = 0, ports: list[tuple[int, int]] | None = None
) -> None:
    everything = {family.everything: layout.MASQUERADE}
    masq.policy(family.number, everything, flags=layout.MANAGED | flags, ports=ports or ())


def port_of(sent: bytes | None, family: Addresses) -> int:
    """The source port of a TCP or UDP packet that left with the node's address."""
    assert sent is not None
    packet = (IP if family.v4 else IPv6)(sent[LINK:])
    assert packet.src == family.node
    return int(packet.payload.sport)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_port_that_another_destination_uses_is_free(
    masq: Datapath, family: Addresses, protocol: str
) -> None:
    masq.out(flow(protocol, family.other_pod, 1500, family.router, 80))
    out = masq.out(flow(protocol, family.pod, 1500, family.outside, 80))
    assert out == frame(flow(protocol, family.node, 1500, family.outside, 80))


def test_a_port_whose_flow_has_expired_is_free(masq: Datapath, family: Addresses) -> None:
    masq.out(tcp(family.other_pod, 1500, family.outside, 80))
    masq.let_expire(family.number, since=GRACE)
    out = masq.out(tcp(family.pod, 1500, family.outside, 80))
    assert out == frame(tcp(family.node, 1500, family.outside, 80))
    back = masq.back(tcp(family.outside, 80, family.node, 1500, "SA"))
    assert back == frame(tcp(family.outside, 80, family.pod, 1500, "SA"))


def test_ports_are_at_random_where_the_policy_wants_that(masq: Datapath, family: Addresses) -> None:
    policy(masq, family, flags=layout.RANDOM_FULLY)
    got = [
        port_of(masq.out(udp(family.pod, 1500 + n, family.outside, 80)), family) for n in range(40)
    ]
    assert len(set(got)) == len(got)
    assert min(got) >= 1024
    assert sum(port == 1500 + n for n, port in enumerate(got)) <= 1
    # Of 40 ports among 64,512 all within a tenth of them: about one in 10^38 runs.
    assert max(got) - min(got) > 6451


def test_ports_are_of_all_ranges_of_the_policy(masq: Datapath, family: Addresses) -> None:
    ranges = [(40000, 40063), (50000, 50000), (60000, 60063)]
    policy(masq, family, ports=ranges)
    got = [
        port_of(masq.out(udp(family.pod, 1500 + n, family.outside, 80)), family) for n in range(64)
    ]
    assert all(any(first <= port <= last for first, last in ranges) for port in got)
    assert len(set(got)) == len(got)
    # About half of each: fewer than ten of 64 in one range is out of reach.
    for first, last in (ranges[0], ranges[2]):
        assert sum(first <= port <= last for port in got) >= 10
    out = masq.out(udp(family.pod, 50000, family.router, 80))
    assert out == frame(udp(family.node, 50000, family.router, 80))  # its own, as it is in one


def test_every_port_of_fifteen_ranges_is_given_out(masq: Datapath, family: Addresses) -> None:
    ranges = [(30000 + 100 * n, 30000 + 100 * n) for n in range(15)]
    policy(masq, family, ports=ranges)
    got = set()
    for number in range(15):
        got.add(port_of(masq.out(udp(family.pod, 1500 + number, family.outside, 80)), family))
    assert got == {first for first, _ in ranges}


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_without_a_free_port_new_flows_are_dropped_and_others_go_on(
    masq: Datapath, family: Addresses, protocol: str
) -> None:
    policy(masq, family, ports=FOUR)
    sent = [masq.out(flow(protocol, family.pod, 1500 + n, family.outside, 80)) for n in range(4)]
    ports = [port_of(frame, family) for frame in sent]
    assert sorted(ports) == [40000, 40001, 40002, 40003]
    assert masq.out(flow(protocol, family.pod, 1504, family.outside, 80)) is None
    counted = masq.counted(family.number)
    assert (counted["OUT_DROPPED_PORTS"], counted["FLOWS_TRANSLATED"]) == (1, 4)
    for number, port in enumerate(ports):
        out = masq.out(flow(protocol, family.pod, 1500 + number, family.outside, 80, "A"))
        assert out == frame(flow(protocol, family.node, port, family.outside, 80, "A"))
    # To another destination each port is free.
    assert masq.out(flow(protocol, family.pod, 1504, family.router, 80)) is not None


@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_node_gets_another_port_where_a_pod_has_its_own(
    masq: Datapath, family: Addresses, protocol: str, guarded: bool
) -> None:
    everything = {family.everything: layout.MASQUERADE}
    masq.policy(family.number, everything, sources=[family.pods] if guarded else ())
    masq.out(flow(protocol, family.pod, 1500, family.outside, 80))
    masq.out(flow(protocol, family.node, 1500, family.outside, 80))
    port = masq.port(family, family.node)
    assert port != 1500
    for flags in ("A", "A"):
        out = masq.out(flow(protocol, family.node, 1500, family.outside, 80, flags))
        assert out == frame(flow(protocol, family.node, port, family.outside, 80, flags))
    back = masq.back(flow(protocol, family.outside, 80, family.node, port, reply=True))
    assert back == frame(flow(protocol, family.outside, 80, family.node, 1500, reply=True))
    back = masq.back(flow(protocol, family.outside, 80, family.node, 1500, reply=True))
    assert back == frame(flow(protocol, family.outside, 80, family.pod, 1500, reply=True))


def test_the_nodes_own_port_is_its_own_again_where_no_other_is_left(
    masq: Datapath, family: Addresses
) -> None:
    policy(masq, family, ports=[(40000, 40000)])
    masq.out(udp(family.pod, 1500, family.outside, 80))
    assert masq.out(udp(family.node, 40000, family.outside, 80)) is None
    assert masq.counted(family.number)["OUT_DROPPED_PORTS"] == 1
    masq.let_expire(family.number, since=GRACE)
    own = frame(udp(family.node, 40000, family.outside, 80))
    assert masq.out(own) == own


def test_each_of_a_hundred_ports_is_used(masq: Datapath, family: Addresses) -> None:
    policy(masq, family, ports=[(40000, 40049), (50000, 50049)], flags=layout.RANDOM_FULLY)
    sent = [masq.out(udp(family.pod, 1500 + n, family.outside, 80)) for n in range(100)]
    assert len({port_of(each, family) for each in sent}) == 100
    assert masq.out(udp(family.pod, 1600, family.outside, 80)) is None


def test_a_flow_at_a_later_place_is_found_also_when_its_first_one_is_free_again(
    masq: Datapath, family: Addresses
) -> None:
    masq.out(udp(family.other_pod, 1500, family.outside, 80))
    masq.out(udp(family.pod, 1500, family.outside, 80))
    port = masq.port(family, family.pod)
    for key, held in masq.flows(family.number).items():
        if key.source == family.other_pod:
            masq.put_flow(family.number, key, replace(held, expires=now() - GRACE))
    masq.sweep()
    out = masq.out(udp(family.pod, 1500, family.outside, 80))
    assert out == frame(udp(family.node, port, family.outside, 80))
    masq.let_expire(family.number, since=GRACE)
    masq.sweep()
    assert masq.maps["moved"].entries() == {}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_flows_stay_where_they_are_when_first_places_change(
    masq: Datapath, family: Addresses, protocol: str
) -> None:
    masq.out(flow(protocol, family.pod, 1500, family.outside, 80))
    masq.out(flow(protocol, family.node, 1501, family.outside, 80))
    masq.own(family.number, family.node, family.other_node)
    masq.index()
    policy(masq, family, flags=layout.RANDOM_FULLY, ports=None)
    masq.device(family, source="other_node")
    out = masq.out(flow(protocol, family.pod, 1500, family.outside, 80, "A"))
    assert out == frame(flow(protocol, family.node, 1500, family.outside, 80, "A"))
    own = frame(flow(protocol, family.node, 1501, family.outside, 80, "A"))
    assert masq.out(own) == own
    # Once the address has gone, what had it gets another, as with MASQUERADE.
    masq.maps["addresses"].clear()
    masq.own(family.number, family.other_node)
    out = masq.out(flow(protocol, family.pod, 1500, family.outside, 80, "A"))
    assert out is not None
    assert (IP if family.v4 else IPv6)(out[LINK:]).src == family.other_node


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_nodes_own_packets_keep_their_port(
    masq: Datapath, family: Addresses, protocol: str
) -> None:
    policy(masq, family, flags=layout.RANDOM_FULLY)
    own = frame(flow(protocol, family.node, 1500, family.outside, 80))
    assert masq.out(own) == own
    out = masq.out(flow(protocol, family.pod, 1500, family.outside, 80))
    assert out is not None
    assert out != own
    reply = frame(flow(protocol, family.outside, 80, family.node, 1500, reply=True))
    assert masq.back(reply) == reply


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_flow_of_the_node_that_is_kept_has_its_port_for_itself(
    masq: Datapath, family: Addresses, protocol: str
) -> None:
    everything = {family.everything: layout.MASQUERADE}
    masq.policy(family.number, everything, sources=[family.pods])
    own = frame(flow(protocol, family.node, 1500, family.outside, 80))
    assert masq.out(own) == own
    assert masq.counted(family.number)["OUT_KEPT_SOURCE"] == 1
    out = masq.out(flow(protocol, family.pod, 1500, family.outside, 80))
    assert out is not None
    assert out != own
    reply = frame(flow(protocol, family.outside, 80, family.node, 1500, reply=True))
    assert masq.back(reply) == reply
    # Once it is over the port is as free as any other one.
    masq.let_expire(family.number, since=GRACE)
    out = masq.out(flow(protocol, family.other_pod, 1500, family.outside, 80))
    assert out == own


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_another_address_of_the_node_has_its_ports_for_itself_too(
    masq: Datapath, family: Addresses, protocol: str
) -> None:
    masq.own(family.number, family.node, family.other_node)
    masq.policy(family.number, {family.everything: layout.MASQUERADE}, sources=[family.pods])
    own = frame(flow(protocol, family.other_node, 1500, family.outside, 80))
    assert masq.out(own) == own
    masq.device(family, source="other_node")  # now it is what pods get
    out = masq.out(flow(protocol, family.pod, 1500, family.outside, 80))
    assert out not in (None, own)
    reply = frame(flow(protocol, family.outside, 80, family.other_node, 1500, reply=True))
    assert masq.back(reply) == reply


def test_an_answer_of_the_node_leaves_as_it_is(masq: Datapath, family: Addresses) -> None:
    answer = frame(echo(family.node, family.outside, 7, reply=True))
    assert masq.out(answer) == answer


def test_what_came_in_and_was_never_answered_takes_no_port(
    masq: Datapath, family: Addresses
) -> None:
    masq.back(udp(family.outside, 80, family.node, 1500))
    out = masq.out(udp(family.pod, 1500, family.outside, 80))
    assert out == frame(udp(family.node, 1500, family.outside, 80))
