"""How the lab reads packets."""

from __future__ import annotations

import ipaddress
import struct

from ipmasq_agent.lab.inhabitant import internet_checksum, parse


def ipv4(protocol: int, body: bytes) -> bytes:
    ends = bytes([172, 20, 0, 10, 10, 10, 1, 200])
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 1, 0, 64, protocol, 0)
    return head + ends + body


def tcp(flags: int, payload: bytes = b"") -> bytes:
    return struct.pack("!HHIIBBHHH", 40000, 80, 1, 0, 0x50, flags, 1024, 0, 0) + payload


def test_only_the_first_segment_opens_a_connection() -> None:
    assert parse(ipv4(6, tcp(0x02))) == ("tcp", "172.20.0.10", "10.10.1.200", True, b"")
    assert parse(ipv4(6, tcp(0x12))) == ("tcp", "172.20.0.10", "10.10.1.200", False, b"")
    assert parse(ipv4(6, tcp(0x18, b"x"))) == ("tcp", "172.20.0.10", "10.10.1.200", False, b"x")


def test_a_connection_to_a_server_that_is_not_ours_opens_nothing() -> None:
    elsewhere = bytearray(tcp(0x02))
    elsewhere[2:4] = (6443).to_bytes(2, "big")
    assert parse(ipv4(6, bytes(elsewhere))) == ("tcp", "172.20.0.10", "10.10.1.200", False, b"")


def test_udp_and_echo_requests_carry_their_token() -> None:
    udp = struct.pack("!HHHH", 5, 9000, 13, 0) + b"token"
    assert parse(ipv4(17, udp)) == ("udp", "172.20.0.10", "10.10.1.200", True, b"token")
    echo = struct.pack("!BBHHH", 8, 0, 0, 1, 1) + b"token"
    assert parse(ipv4(1, echo)) == ("icmp", "172.20.0.10", "10.10.1.200", True, b"token")
    reply = struct.pack("!BBHHH", 0, 0, 0, 1, 1) + b"token"
    assert parse(ipv4(1, reply)) is None


def test_ipv6_is_read_too() -> None:
    ends = ipaddress.ip_address("fd00::1").packed + ipaddress.ip_address("fd00::2").packed
    body = struct.pack("!BBHHH", 128, 0, 0, 1, 1) + b"token"
    packet = struct.pack("!IHBB", 6 << 28, len(body), 58, 64) + ends + body
    assert parse(packet) == ("icmp", "fd00::1", "fd00::2", True, b"token")


def test_a_checksum_over_a_message_with_its_checksum_is_zero() -> None:
    message = struct.pack("!BBHHH", 8, 0, 0, 7, 1) + b"token"
    filled = message[:2] + struct.pack("!H", internet_checksum(message)) + message[4:]
    assert internet_checksum(filled) == 0
