"""Fragments, options, extension headers, tags, other protocols, and packets that are broken."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_RR
from scapy.layers.inet6 import (
    HBHOptUnknown,
    ICMPv6EchoRequest,
    ICMPv6NIQueryName,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.ipsec import AH, ESP
from scapy.layers.l2 import GRE, Dot1AD, Dot1Q, Ether
from scapy.layers.sctp import SCTP, SCTPChunkInit
from scapy.packet import Packet, Raw

from tests.bpf import layout
from tests.bpf.datapath import Datapath
from tests.bpf.packets import FAMILIES, NODE_MAC, Addresses, frame, network, tcp, udp

V4, V6 = FAMILIES


def pieces(whole: Packet, number: int = 99) -> list[bytes]:
    """A packet with UDP or ICMP in three fragments, as frames."""
    payload = bytes(whole.payload)
    cut = [payload[:8], payload[8:16], payload[16:]]  # the first has no more than the ports
    found = []
    for place, part in enumerate(cut):
        more = place < 2
        if isinstance(whole, IP):
            header = IP(
                src=whole.src,
                dst=whole.dst,
                id=number,
                proto=bytes(whole)[9],
                frag=place,
                flags="MF" if more else 0,
            )
        else:
            header = network(whole.src, whole.dst) / IPv6ExtHdrFragment(
                nh=bytes(whole)[6], id=number, offset=place, m=int(more)
            )
        found.append(frame(header / Raw(part)))
    return found


def long_udp(source: str, sport: int, destination: str, dport: int) -> Packet:
    return udp(source, sport, destination, dport, bytes(range(64)))


def test_fragments_follow_the_first_one_outward_and_back(masq: Datapath, family: Addresses) -> None:
    masq.out(udp(family.other_pod, 1500, family.outside, 80))
    sent = [masq.out(piece) for piece in pieces(long_udp(family.pod, 1500, family.outside, 80))]
    port = masq.port(family, family.pod)
    assert sent == pieces(long_udp(family.node, port, family.outside, 80))
    came = pieces(long_udp(family.outside, 80, family.node, port), number=98)
    expected = pieces(long_udp(family.outside, 80, family.pod, 1500), number=98)
    assert [masq.back(piece) for piece in came] == expected


def test_a_fragment_without_the_first_one_does_not_leave(masq: Datapath, family: Addresses) -> None:
    first, later, _ = pieces(long_udp(family.pod, 1500, family.outside, 80))
    assert masq.out(later) is None
    assert masq.counted(family.number) == {"OUT_DROPPED_FRAGMENT": 1}
    # Another packet's first fragment says nothing about this one.
    masq.out(pieces(long_udp(family.pod, 1500, family.outside, 80), number=100)[0])
    assert masq.out(later) is None
    masq.out(first)
    assert masq.out(later) is not None
    _, kept, _ = pieces(long_udp(family.pod, 1500, family.kept, 80))
    assert masq.out(kept) == kept
    # One that comes in belongs to nothing that was translated.
    _, later, _ = pieces(long_udp(family.outside, 80, family.node, 1500))
    assert masq.back(later) == later


def test_a_whole_packet_with_a_fragment_header_is_no_fragment(masq_v6: Datapath) -> None:
    def atomic(source: str) -> Packet:
        header = network(source, V6.outside) / IPv6ExtHdrFragment(id=5)
        return header / UDP(sport=1500, dport=80) / Raw(b"abc")

    assert masq_v6.out(atomic(V6.pod)) == frame(atomic(V6.node))
    assert masq_v6.maps["fragments"].entries() == {}


def test_options_of_ipv4_stay(masq_v4: Datapath) -> None:
    def optioned(source: str) -> Packet:
        header = network(source, V4.outside, options=[IPOption_RR(length=11, routers=["0.0.0.0"])])
        return header / TCP(sport=1500, dport=80) / Raw(b"abc")

    assert masq_v4.out(optioned(V4.pod)) == frame(optioned(V4.node))


EXTENSIONS = {
    "hop-by-hop": IPv6ExtHdrHopByHop(),
    "destination options": IPv6ExtHdrDestOpt(options=[HBHOptUnknown(otype=30, optdata=b"x" * 20)]),
    "routing": IPv6ExtHdrRouting(type=4, segleft=0, addresses=["2001:db8::1"]),
    "three": IPv6ExtHdrHopByHop() / IPv6ExtHdrRouting(addresses=[]) / IPv6ExtHdrDestOpt(),
}


@pytest.mark.parametrize("name", EXTENSIONS)
@pytest.mark.parametrize("transport", ["tcp", "udp", "echo"])
def test_extension_headers_of_ipv6_stay(masq_v6: Datapath, name: str, transport: str) -> None:
    body = {
        "tcp": TCP(sport=1500, dport=80),
        "udp": UDP(sport=1500, dport=80),
        "echo": ICMPv6EchoRequest(id=1500),
    }[transport]

    def extended(source: str) -> Packet:
        return network(source, V6.outside) / EXTENSIONS[name] / body / Raw(b"abc")

    assert masq_v6.out(extended(V6.pod)) == frame(extended(V6.node))


def test_more_extension_headers_than_are_read_do_not_leave(masq_v6: Datapath) -> None:
    def extended(source: str, count: int) -> Packet:
        packet = network(source, V6.outside)
        for _ in range(count):
            packet /= IPv6ExtHdrDestOpt()
        return packet / UDP(sport=1500, dport=80) / Raw(b"abc")

    assert masq_v6.out(extended(V6.pod, 8)) == frame(extended(V6.node, 8))
    assert masq_v6.out(extended(V6.pod, 9)) is None
    assert masq_v6.counted(1)["OUT_DROPPED_PROTOCOL"] == 1


@pytest.mark.parametrize("tags", [1, 2])
def test_packets_of_a_vlan_are_not_the_devices_below(
    masq: Datapath, family: Addresses, tags: int
) -> None:
    def tagged(packet: Packet) -> bytes:
        below = Ether(src=NODE_MAC.hex(":"), dst=NODE_MAC.hex(":"))
        for number in range(tags - 1):
            below /= Dot1AD(vlan=number + 2)
        return bytes(below / Dot1Q(vlan=9) / packet)

    packet = tagged(tcp(family.pod, 1500, family.outside, 80))
    assert masq.out(packet) == packet
    reply = tagged(tcp(family.outside, 80, family.node, 1500, "SA"))
    assert masq.back(reply) == reply
    assert masq.counted(family.number) == {}


def test_frames_of_another_address_of_the_link_are_not_the_nodes(
    masq: Datapath, family: Addresses
) -> None:
    other = bytes.fromhex("020000000009")  # a macvlan's on the device, say
    packet = frame(tcp(family.pod, 1500, family.outside, 80), source=other)
    assert masq.out(packet) == packet
    masq.out(tcp(family.pod, 1500, family.outside, 80))
    reply = frame(tcp(family.outside, 80, family.node, 1500, "SA"), destination=other)
    assert masq.back(reply) == reply
    assert masq.counted(family.number) == {"OUT_TRANSLATED": 1, "FLOWS_TRANSLATED": 1}


def test_a_device_without_link_header_has_the_ip_header_first(
    empty: Datapath, family: Addresses
) -> None:
    # BPF_PROG_TEST_RUN takes the type from bytes 12 and 13 in any case. In these packets
    # they are a part of the source address, and say IPv4 or IPv6 there too.
    pod = "8.0.1.5" if family.v4 else "2001:db8:86dd::5"
    empty.policy(family.number, {family.everything: layout.MASQUERADE})
    empty.device(family, link_header=0)
    out = empty.out(bytes(tcp(pod, 1500, family.outside, 80)))
    assert out == bytes(tcp(family.node, 1500, family.outside, 80))


def test_sctp_is_translated_by_its_address_alone(masq: Datapath, family: Addresses) -> None:
    def association(source: str, destination: str, sport: int, dport: int) -> Packet:
        chunk = SCTP(sport=sport, dport=dport) / SCTPChunkInit(init_tag=1)
        return network(source, destination) / chunk

    out = masq.out(association(family.pod, family.outside, 1500, 80))
    assert out == frame(association(family.node, family.outside, 1500, 80))
    back = masq.back(association(family.outside, family.node, 80, 1500))
    assert back == frame(association(family.outside, family.pod, 80, 1500))
    # Its checksum covers the ports, so another pod's association has no port to go to.
    assert masq.out(association(family.other_pod, family.outside, 1500, 80)) is None
    assert masq.counted(family.number)["OUT_DROPPED_PORTS"] == 1
    assert masq.out(association(family.other_pod, family.outside, 1501, 80)) is not None


@pytest.mark.parametrize("protocol", ["gre", "esp"])
def test_protocols_without_ports_are_translated_by_address(
    masq: Datapath, family: Addresses, protocol: str
) -> None:
    def tunnelled(source: str, destination: str) -> Packet:
        body = GRE(proto=0x88BE) / Raw(b"abc") if protocol == "gre" else ESP(spi=7, data=b"abcd")
        number = 47 if protocol == "gre" else 50
        field = {"proto": number} if family.v4 else {"nh": number}
        return network(source, destination, **field) / body

    out = masq.out(tunnelled(family.pod, family.outside))
    assert out == frame(tunnelled(family.node, family.outside))
    back = masq.back(tunnelled(family.outside, family.node))
    assert back == frame(tunnelled(family.outside, family.pod))
    assert masq.out(tunnelled(family.other_pod, family.outside)) is None
    assert masq.counted(family.number)["OUT_DROPPED_PORTS"] == 1


@pytest.mark.parametrize("number", [33, 51, 136], ids=["dccp", "ah", "udp-lite"])
def test_what_cannot_be_translated_does_not_leave_with_a_pods_address(
    masq: Datapath, family: Addresses, number: int
) -> None:
    field = {"proto": number} if family.v4 else {"nh": number}
    body = AH(nh=17, spi=7) / UDP() if number == 51 else Raw(bytes(32))
    assert masq.out(network(family.pod, family.outside, **field) / body) is None
    assert masq.counted(family.number) == {"OUT_DROPPED_PROTOCOL": 1}
    for source, destination in ((family.pod, family.kept), (family.node, family.outside)):
        packet = frame(network(source, destination, **field) / body)
        assert masq.out(packet) == packet
    packet = frame(network(family.outside, family.node, **field) / body)
    assert masq.back(packet) == packet


def test_queries_of_icmp_that_are_not_understood_do_not_leave(
    masq: Datapath, family: Addresses
) -> None:
    query = ICMP(type=17) if family.v4 else ICMPv6NIQueryName(data=b"x")
    assert masq.out(network(family.pod, family.outside) / query) is None
    assert masq.counted(family.number) == {"OUT_DROPPED_ICMP": 1}


def test_icmp_of_the_other_family_does_not_leave(masq: Datapath, family: Addresses) -> None:
    field = {"proto": 58} if family.v4 else {"nh": 1}
    packet = network(family.pod, family.outside, **field) / Raw(bytes(32))
    assert masq.out(packet) is None
    assert masq.counted(family.number) == {"OUT_DROPPED_ICMP": 1}


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_header_that_is_cut_off_does_not_leave(
    masq: Datapath, family: Addresses, protocol: str
) -> None:
    make = tcp if protocol == "tcp" else udp
    whole = frame(make(family.pod, 1500, family.outside, 80, data=b""))
    header = 20 if protocol == "tcp" else 8
    network_end = len(whole) - header
    for length in range(network_end, network_end + (14 if protocol == "tcp" else 8)):
        assert masq.out(whole[:length]) is None, f"{length - network_end} bytes"
    assert set(masq.counted(family.number)) <= {"OUT_DROPPED_MALFORMED", "FLOWS_TRANSLATED"}
    kept = frame(make(family.pod, 1500, family.kept, 80, data=b""))[: network_end + 2]
    assert masq.out(kept) == kept


def test_an_extension_header_that_is_cut_off_does_not_leave(masq_v6: Datapath) -> None:
    whole = frame(network(V6.pod, V6.outside) / IPv6ExtHdrDestOpt() / UDP())
    assert masq_v6.out(whole[: 14 + 40 + 4]) is None
    assert masq_v6.counted(1) == {"OUT_DROPPED_MALFORMED": 1}


def test_what_is_not_ip_is_left_alone(masq: Datapath, family: Addresses) -> None:
    packet = bytearray(frame(tcp(family.pod, 1500, family.outside, 80)))
    for first in (0x00, 0x54, 0x44 if family.v4 else 0x45):  # no version; no length, or another
        packet[14] = first
        assert masq.out(bytes(packet)) == bytes(packet)
    arp = bytes(Ether(src="02:00:00:00:00:01", dst="ff:ff:ff:ff:ff:ff", type=0x806) / bytes(28))
    assert masq.out(arp) == arp
    assert masq.counted(family.number) == {}


def test_a_later_fragment_from_outside_begins_no_flow(masq: Datapath, family: Addresses) -> None:
    first, later, _ = pieces(long_udp(family.outside, 4000, family.pod, 53))
    masq.back(first)
    assert len(masq.flows(family.number)) == 1
    masq.maps["kept"].clear()
    assert masq.back(later) == later
    assert masq.flows(family.number) == {}
    masq.maps["fragments"].clear()
    assert masq.back(later) == later
    assert masq.counted(family.number)["IN_PASSED_FRAGMENT"] == 1
