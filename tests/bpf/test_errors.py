"""ICMP errors go both ways with the packet that they quote translated, checksums right."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPv6,
)
from scapy.packet import Packet, Raw

from tests.bpf.datapath import Datapath
from tests.bpf.packets import Addresses, flow, frame, network, udp

PROTOCOLS = ("tcp", "udp", "echo")
KINDS = ("unreachable", "too big", "time exceeded")
# How much of a packet an error quotes: of its IP header all, then this many bytes.
WHOLE, LEAST = 1000, 8


def error(
    kind: str, source: str, destination: str, quoted: Packet, transport: int = WHOLE
) -> Packet:
    """An error about a packet, whose bytes behind the IP header it quotes so far."""
    made: Any
    if ":" in source:
        made = {
            "unreachable": ICMPv6DestUnreach(code=4),
            "too big": ICMPv6PacketTooBig(mtu=1280),
            "time exceeded": ICMPv6TimeExceeded(),
        }[kind]
        header = len(IPv6())
    else:
        made = {
            "unreachable": ICMP(type=3, code=3),
            "too big": ICMP(type=3, code=4, nexthopmtu=1400),
            "time exceeded": ICMP(type=11),
        }[kind]
        header = len(IP())
    return network(source, destination) / made / Raw(bytes(quoted)[: header + transport])


@pytest.mark.parametrize("transport", [WHOLE, LEAST], ids=["whole", "least"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_error_about_a_translated_packet_reaches_the_pod(
    masq: Datapath, family: Addresses, protocol: str, kind: str, transport: int
) -> None:
    masq.out(flow(protocol, family.other_pod, 1500, family.outside, 80))
    masq.out(flow(protocol, family.pod, 1500, family.outside, 80))
    port = masq.port(family, family.pod)
    sent = flow(protocol, family.node, port, family.outside, 80)
    came = flow(protocol, family.pod, 1500, family.outside, 80)
    expected = frame(error(kind, family.router, family.pod, came, transport))
    back = masq.back(error(kind, family.router, family.node, sent, transport))
    assert back == expected
    assert masq.counted(family.number)["IN_ERROR_TRANSLATED"] == 1


@pytest.mark.parametrize("maker", ["pod", "node", "other_node"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_error_about_a_reply_leaves_with_the_nodes_address(
    masq: Datapath, family: Addresses, protocol: str, kind: str, maker: str
) -> None:
    masq.out(flow(protocol, family.other_pod, 1500, family.outside, 80))
    masq.out(flow(protocol, family.pod, 1500, family.outside, 80))
    port = masq.port(family, family.pod)
    came = flow(protocol, family.outside, 80, family.pod, 1500, reply=True)
    sent = flow(protocol, family.outside, 80, family.node, port, reply=True)
    out = masq.out(error(kind, getattr(family, maker), family.outside, came))
    assert out == frame(error(kind, family.node, family.outside, sent))
    assert masq.counted(family.number)["OUT_ERROR_TRANSLATED"] == 1


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_errors_about_a_kept_flow_are_left_alone(
    masq: Datapath, family: Addresses, protocol: str
) -> None:
    masq.out(flow(protocol, family.pod, 1500, family.kept, 80))
    sent = flow(protocol, family.pod, 1500, family.kept, 80)
    inward = frame(error("too big", family.router, family.pod, sent))
    assert masq.back(inward) == inward
    came = flow(protocol, family.kept, 80, family.pod, 1500, reply=True)
    outward = frame(error("too big", family.pod, family.kept, came))
    assert masq.out(outward) == outward


def test_an_error_about_an_inbound_connection_is_left_alone(
    masq: Datapath, family: Addresses
) -> None:
    masq.back(udp(family.outside, 4000, family.pod, 53))
    packet = frame(
        error("unreachable", family.pod, family.outside, udp(family.outside, 4000, family.pod, 53))
    )
    assert masq.out(packet) == packet
    assert masq.counted(family.number)["OUT_KEPT_REPLY"] == 1


def test_an_error_about_no_known_flow_does_not_leave_where_it_would_show_a_pod(
    masq: Datapath, family: Addresses
) -> None:
    quoted = udp(family.outside, 80, family.pod, 1500)
    assert masq.out(error("unreachable", family.pod, family.outside, quoted)) is None
    assert masq.counted(family.number) == {"OUT_DROPPED_ICMP": 1}
    # The node's own, and one to a destination that the policy keeps, may go.
    quoted = udp(family.outside, 80, family.node, 1500)
    packet = frame(error("unreachable", family.node, family.outside, quoted))
    assert masq.out(packet) == packet
    quoted = udp(family.kept, 80, family.pod, 1500)
    packet = frame(error("unreachable", family.pod, family.kept, quoted))
    assert masq.out(packet) == packet


def test_an_error_about_a_packet_of_the_nodes_own_is_left_alone(
    masq: Datapath, family: Addresses
) -> None:
    quoted = udp(family.node, 1500, family.outside, 80)
    packet = frame(error("unreachable", family.router, family.node, quoted))
    assert masq.back(packet) == packet  # nothing is known of it
    masq.out(quoted)
    assert masq.back(packet) == packet
    assert masq.counted(family.number)["IN_PASSED"] == 2


def test_a_quoted_udp_packet_without_checksum_stays_without(
    masq: Datapath, family: Addresses
) -> None:
    masq.out(udp(family.pod, 1500, family.outside, 80))
    sent = udp(family.node, 1500, family.outside, 80, chksum=0)
    came = udp(family.pod, 1500, family.outside, 80, chksum=0)
    back = masq.back(error("unreachable", family.router, family.node, sent))
    assert back == frame(error("unreachable", family.router, family.pod, came))


@pytest.mark.parametrize("length", [0, 3])
def test_an_error_that_quotes_too_little_is_left_to_the_node(
    masq: Datapath, family: Addresses, length: int
) -> None:
    masq.out(udp(family.pod, 1500, family.outside, 80))
    quoted = udp(family.node, 1500, family.outside, 80)
    packet = frame(error("unreachable", family.router, family.node, quoted, length))
    assert masq.back(packet) == packet
    quoted = udp(family.outside, 80, family.pod, 1500)
    assert masq.out(error("unreachable", family.pod, family.outside, quoted, length)) is None


def test_an_error_about_an_error_is_left_alone(masq: Datapath, family: Addresses) -> None:
    masq.out(udp(family.pod, 1500, family.outside, 80))
    inner = error(
        "unreachable", family.node, family.outside, udp(family.outside, 80, family.node, 1500)
    )
    packet = frame(error("time exceeded", family.router, family.node, inner))
    assert masq.back(packet) == packet
