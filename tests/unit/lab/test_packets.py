"""How the lab reads packets."""

from __future__ import annotations

import ipaddress
import struct

from ipmasq_agent.lab.packets import Packet, parse

ENDS = "172.20.0.10", "10.10.1.200"


def ipv4(protocol: int, body: bytes) -> bytes:
    ends = bytes([172, 20, 0, 10, 10, 10, 1, 200])
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 1, 0, 64, protocol, 0)
    return head + ends + body


def tcp(flags: int, payload: bytes = b"", port: int = 80) -> Packet:
    body = struct.pack("!HHIIBBHHH", 40000, port, 7, 9, 0x50, flags, 1024, 0, 0) + payload
    packet = parse(ipv4(6, body))
    assert packet == Packet("tcp", *ENDS, 40000, port, payload, flags, 7, 9)
    return packet


def test_only_the_first_segment_opens_a_connection() -> None:
    assert [tcp(flags).opens for flags in (0x02, 0x12, 0x18)] == [True, False, False]


def test_a_connection_to_a_server_that_is_not_ours_opens_nothing() -> None:
    assert not tcp(0x02, port=6443).opens


def test_what_answers_acknowledges_all_that_was_sent() -> None:
    assert (tcp(0x02).answered_by, tcp(0x18, b"four").answered_by) == (8, 11)
    last = Packet("tcp", *ENDS, 1, 80, b"four", 0x18, (1 << 32) - 2)
    assert last.answered_by == 2


def test_packets_have_names() -> None:
    assert [tcp(flags).name for flags in (0x02, 0x12, 0x14)] == ["SYN", "SYN ACK", "RST ACK"]


def test_udp_and_echoes_carry_their_token() -> None:
    udp = struct.pack("!HHHH", 5, 9000, 13, 0) + b"token"
    assert parse(ipv4(17, udp)) == Packet("udp", *ENDS, 5, 9000, b"token")
    for kind, asks in ((8, True), (0, False)):
        echo = struct.pack("!BBHHH", kind, 0, 0, 3, 1) + b"token"
        assert parse(ipv4(1, echo)) == Packet("icmp", *ENDS, 3, 3, b"token", asks=asks)
    unreachable = struct.pack("!BBHHH", 3, 0, 0, 0, 0) + ipv4(17, udp)
    assert parse(ipv4(1, unreachable)) is None


def test_ipv6_is_read_too() -> None:
    ends = ipaddress.ip_address("fd00::1").packed + ipaddress.ip_address("fd00::2").packed
    body = struct.pack("!BBHHH", 128, 0, 0, 3, 1) + b"token"
    packet = struct.pack("!IHBB", 6 << 28, len(body), 58, 64) + ends + body
    assert parse(packet) == Packet("icmp", "fd00::1", "fd00::2", 3, 3, b"token")
