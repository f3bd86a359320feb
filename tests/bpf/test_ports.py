"""Which port a flow gets: the pod's own, another one, one of the policy's ranges, or none."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6

from tests.bpf import layout
from tests.bpf.datapath import Datapath
from tests.bpf.packets import LINK, Addresses, echo, flow, frame, tcp, udp

PROTOCOLS = ("tcp", "udp", "echo")
FOUR = [(40000, 40003)]


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
    masq.let_expire(family.number)
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
    for number in range(200):  # with 64 tries each, 15 would nearly always do
        if sent := masq.out(udp(family.pod, 1500 + number, family.outside, 80)):
            got.add(port_of(sent, family))
        if len(got) == 15:
            break
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


@contextlib.contextmanager
def listening(family: Addresses, protocol: str, port: int, address: str) -> Iterator[None]:
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET if family.v4 else socket.AF_INET6, kind) as listener:
        listener.bind((address, port))
        if protocol == "tcp":
            listener.listen()
        yield


@pytest.mark.parametrize("where", ["node", "any"])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_the_port_of_a_socket_of_the_host_is_never_a_pods(
    masq: Datapath, family: Addresses, protocol: str, where: str
) -> None:
    address = family.node if where == "node" else ("0.0.0.0" if family.v4 else "::")
    with listening(family, protocol, 40000, address):
        out = masq.out(flow(protocol, family.pod, 40000, family.outside, 80))
        assert port_of(out, family) != 40000
        policy(masq, family, ports=FOUR)
        got = [
            port_of(masq.out(flow(protocol, family.pod, 1500 + n, family.router, 80)), family)
            for n in range(3)
        ]
        assert sorted(got) == [40001, 40002, 40003]
        assert masq.out(flow(protocol, family.pod, 1503, family.router, 80)) is None
    out = masq.out(flow(protocol, family.pod, 1503, family.router, 80))
    assert port_of(out, family) == 40000


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
    masq.let_expire(family.number)
    out = masq.out(flow(protocol, family.other_pod, 1500, family.outside, 80))
    assert out == own


def test_an_answer_of_the_node_leaves_as_it_is(masq: Datapath, family: Addresses) -> None:
    answer = frame(echo(family.node, family.outside, 7, reply=True))
    assert masq.out(answer) == answer


def test_what_came_in_and_was_never_answered_takes_no_port(
    masq: Datapath, family: Addresses
) -> None:
    masq.back(udp(family.outside, 80, family.node, 1500))
    out = masq.out(udp(family.pod, 1500, family.outside, 80))
    assert out == frame(udp(family.node, 1500, family.outside, 80))
