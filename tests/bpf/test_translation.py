"""What goes out gets the node's address, what comes back goes to the pod again."""

from __future__ import annotations

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import ICMPv6ND_NS, IPv6

from tests.bpf import layout
from tests.bpf.datapath import Datapath
from tests.bpf.packets import Addresses, echo, flow, frame, network, tcp, udp

PROTOCOLS = ("tcp", "udp", "echo")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_flow_is_translated_outward_and_back(
    masq: Datapath, family: Addresses, protocol: str
) -> None:
    for flags in ("S", "A"):  # the second packet of it stays on its mapping
        out = masq.out(flow(protocol, family.pod, 1500, family.outside, 80, flags))
        assert out == frame(flow(protocol, family.node, 1500, family.outside, 80, flags))
        back = masq.back(flow(protocol, family.outside, 80, family.node, 1500, reply=True))
        assert back == frame(flow(protocol, family.outside, 80, family.pod, 1500, reply=True))
    assert masq.counted(family.number) == {
        "OUT_TRANSLATED": 2,
        "IN_TRANSLATED": 2,
        "FLOWS_TRANSLATED": 1,
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_flow_on_another_port_is_translated_outward_and_back(
    masq: Datapath, family: Addresses, protocol: str
) -> None:
    masq.out(flow(protocol, family.other_pod, 1500, family.outside, 80))
    masq.out(flow(protocol, family.pod, 1500, family.outside, 80))
    port = masq.port(family, family.pod)
    assert port != 1500
    out = masq.out(flow(protocol, family.pod, 1500, family.outside, 80))
    assert out == frame(flow(protocol, family.node, port, family.outside, 80))
    back = masq.back(flow(protocol, family.outside, 80, family.node, port, reply=True))
    assert back == frame(flow(protocol, family.outside, 80, family.pod, 1500, reply=True))
    back = masq.back(flow(protocol, family.outside, 80, family.node, 1500, reply=True))
    assert back == frame(flow(protocol, family.outside, 80, family.other_pod, 1500, reply=True))


def test_no_checksum_of_udp_stays_none(masq: Datapath, family: Addresses) -> None:
    masq.out(udp(family.other_pod, 1500, family.outside, 80))
    out = masq.out(udp(family.pod, 1500, family.outside, 80, chksum=0))
    assert out is not None
    sent = (IP if family.v4 else IPv6)(out[14:])[UDP]
    assert sent.sport != 1500
    assert out == frame(udp(family.node, sent.sport, family.outside, 80, chksum=0))
    back = masq.back(udp(family.outside, 80, family.node, sent.sport, chksum=0))
    assert back == frame(udp(family.outside, 80, family.pod, 1500, chksum=0))


def test_a_checksum_of_udp_never_becomes_none(masq: Datapath, family: Addresses) -> None:
    # The two bytes that make the sum complete: its complement is 0, which would mean none.
    data = frame(udp(family.node, 1500, family.outside, 80, bytes(2)))[-4:-2]
    expected = udp(family.node, 1500, family.outside, 80, data)
    assert frame(expected)[-4:-2] == b"\xff\xff"
    assert masq.out(udp(family.pod, 1500, family.outside, 80, data)) == frame(expected)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_kept_destination_stays_as_it_is(
    masq: Datapath, family: Addresses, protocol: str
) -> None:
    reply = frame(flow(protocol, family.kept, 80, family.pod, 1500, reply=True))
    for flags in ("S", "A"):
        packet = frame(flow(protocol, family.pod, 1500, family.kept, 80, flags))
        assert masq.out(packet) == packet
        assert masq.back(reply) == reply
    assert masq.counted(family.number) == {"OUT_KEPT_BY_POLICY": 2, "IN_PASSED": 2, "FLOWS_KEPT": 1}


def test_nothing_happens_without_a_policy(empty: Datapath, family: Addresses) -> None:
    empty.device(family)
    packet = frame(tcp(family.pod, 1500, family.outside, 80))
    assert empty.out(packet) == packet
    assert empty.back(packet) == packet
    assert empty.flows(family.number) == {}
    assert empty.counted(family.number) == {}


def test_nothing_happens_on_a_device_that_nobody_spoke_of(
    masq: Datapath, family: Addresses
) -> None:
    masq.maps["devices"].clear()
    packet = frame(tcp(family.pod, 1500, family.outside, 80))
    assert masq.out(packet) == packet
    assert masq.counted(family.number) == {}


def test_only_devices_of_the_generation_in_force_masquerade(
    masq: Datapath, family: Addresses
) -> None:
    masq.device(family, egress=0b10)
    packet = frame(tcp(family.pod, 1500, family.outside, 80))
    assert masq.out(packet) == packet
    assert masq.counted(family.number) == {"OUT_KEPT_DEVICE": 1, "FLOWS_KEPT": 1}
    masq.policy(family.number, {family.everything: layout.MASQUERADE}, generation=1)
    out = masq.out(tcp(family.pod, 1501, family.outside, 80))
    assert out == frame(tcp(family.node, 1501, family.outside, 80))


def test_only_packets_of_the_sources_are_masqueraded(masq: Datapath, family: Addresses) -> None:
    masq.policy(family.number, {family.everything: layout.MASQUERADE}, sources=[family.pods])
    packet = frame(tcp(family.other_node, 1500, family.outside, 80))
    assert masq.out(packet) == packet
    assert masq.counted(family.number) == {"OUT_KEPT_SOURCE": 1, "FLOWS_KEPT": 1}
    out = masq.out(tcp(family.pod, 1500, family.outside, 80))
    assert out == frame(tcp(family.node, 1500, family.outside, 80))


def test_a_fixed_source_takes_the_place_of_the_devices_address(
    masq: Datapath, family: Addresses
) -> None:
    masq.policy(
        family.number,
        {family.everything: layout.MASQUERADE},
        fixed={family.kept_prefix: family.other_node},
    )
    out = masq.out(tcp(family.pod, 1500, family.kept, 80))
    assert out == frame(tcp(family.other_node, 1500, family.kept, 80))
    back = masq.back(tcp(family.kept, 80, family.other_node, 1500, "SA"))
    assert back == frame(tcp(family.kept, 80, family.pod, 1500, "SA"))
    out = masq.out(tcp(family.pod, 1500, family.outside, 80))
    assert out == frame(tcp(family.node, 1500, family.outside, 80))


def test_without_an_address_nothing_leaves(masq: Datapath, family: Addresses) -> None:
    masq.device(family, source=None)
    assert masq.out(tcp(family.pod, 1500, family.outside, 80)) is None
    assert masq.counted(family.number) == {"OUT_DROPPED_ADDRESS": 1}
    assert masq.flows(family.number) == {}
    kept = frame(tcp(family.pod, 1500, family.kept, 80))
    assert masq.out(kept) == kept


def test_what_stays_on_the_link_is_left_alone(masq: Datapath, family: Addresses) -> None:
    if family.v4:
        packets = [
            udp(family.pod, 1500, "224.0.0.251", 5353),
            udp(family.pod, 1500, "239.1.2.3", 5000),
            udp(family.pod, 1500, "255.255.255.255", 67),
            udp("0.0.0.0", 68, "203.0.113.7", 67),
        ]
    else:
        packets = [
            udp(family.pod, 1500, "ff02::fb", 5353),
            udp("fe80::1", 1500, family.outside, 5000),
            udp("::", 1500, family.outside, 5000),
            network(family.pod, family.outside, hlim=255) / ICMPv6ND_NS(tgt=family.outside),
        ]
    for packet in packets:
        assert masq.out(packet) == frame(packet)
    assert masq.flows(family.number) == {}
    assert masq.counted(family.number) == {"OUT_KEPT_SCOPE": len(packets)}


def test_a_ping_of_a_kept_destination_and_its_answer_pass(
    masq: Datapath, family: Addresses
) -> None:
    request = frame(echo(family.outside, family.pod, 9))
    answer = frame(echo(family.pod, family.outside, 9, reply=True))
    assert masq.back(request) == request
    assert masq.out(answer) == answer  # an inbound one, answered: not masqueraded
    assert masq.out(echo(family.pod, family.outside, 10, reply=True)) is None
    assert masq.counted(family.number)["OUT_DROPPED_ICMP"] == 1


def test_what_is_for_the_node_itself_is_left_alone_unless_the_policy_means_it(
    masq: Datapath, family: Addresses
) -> None:
    masq.device(family, loopback=True)
    packet = frame(tcp(family.pod, 1500, family.other_node, 80))
    assert masq.out(packet) == packet
    assert masq.back(packet) == packet
    assert masq.counted(family.number) == {}
    masq.policy(
        family.number,
        {family.everything: layout.MASQUERADE},
        flags=layout.MANAGED | layout.LOCAL_TOO,
    )
    out = masq.out(tcp(family.pod, 1500, family.other_node, 80))
    assert out == frame(tcp(family.node, 1500, family.other_node, 80))
