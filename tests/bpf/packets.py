"""Packets of either family, made by scapy, which computes every checksum anew.

Nothing is ever sent or sniffed, and every address is given: scapy asks the machine nothing.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Any

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

LINK = 14  # bytes of an Ethernet header


@dataclass(frozen=True)
class Addresses:
    """Who takes part in the tests, in one family."""

    number: int
    pod: str
    other_pod: str
    node: str  # what masquerading gives
    other_node: str  # another address of the node
    outside: str
    kept: str  # an address outside that the policy keeps
    router: str
    everything: str
    kept_prefix: str
    pods: str

    @property
    def v4(self) -> bool:
        return self.number == 0


FAMILIES = (
    Addresses(
        number=0,
        pod="10.64.1.5",
        other_pod="10.64.1.6",
        node="192.0.2.10",
        other_node="192.0.2.11",
        outside="203.0.113.7",
        kept="198.51.100.9",
        router="203.0.113.254",
        everything="0.0.0.0/0",
        kept_prefix="198.51.100.0/24",
        pods="10.64.0.0/14",
    ),
    Addresses(
        number=1,
        pod="fd00:64:1::5",
        other_pod="fd00:64:1::6",
        node="2001:db8:2::10",
        other_node="2001:db8:2::11",
        outside="2001:db8:113::7",
        kept="2001:db8:100::9",
        router="2001:db8:113::fe",
        everything="::/0",
        kept_prefix="2001:db8:100::/64",
        pods="fd00:64::/32",
    ),
)


def address(text: str) -> bytes:
    """An address as struct address has it."""
    return ipaddress.ip_address(text).packed.ljust(16, b"\0")


def network(source: str, destination: str, **fields: Any) -> Packet:
    """The IP header between two addresses; its family is theirs."""
    if ":" in source:
        return IPv6(src=source, dst=destination, **fields)
    return IP(src=source, dst=destination, **{"id": 7, **fields})


NODE_MAC = bytes.fromhex("020000000001")


def frame(packet: Packet, *, source: bytes = NODE_MAC, destination: bytes = NODE_MAC) -> bytes:
    """The bytes of an Ethernet frame with a packet, all checksums computed.

    The node's device sends it, or gets it: both ends are the device where nothing is said.
    """
    return bytes(Ether(src=source.hex(":"), dst=destination.hex(":")) / packet)


def tcp(
    source: str,
    sport: int,
    destination: str,
    dport: int,
    flags: str = "S",
    data: bytes = b"abc",
    *,
    ack: int = 1,
) -> Packet:
    """A segment of a connection in which both ends begin to count at 0."""
    segment = TCP(sport=sport, dport=dport, flags=flags, ack=ack)
    return network(source, destination) / segment / Raw(data)


def udp(
    source: str, sport: int, destination: str, dport: int, data: bytes = b"abc", **fields: int
) -> Packet:
    return network(source, destination) / UDP(sport=sport, dport=dport, **fields) / Raw(data)


def echo(
    source: str, destination: str, number: int, reply: bool = False, data: bytes = b"abc"
) -> Packet:
    """An ICMP echo request or the reply to one, with the identifier ``number``."""
    if ":" in source:
        kind = ICMPv6EchoReply if reply else ICMPv6EchoRequest
        return network(source, destination) / kind(id=number, seq=1, data=data)
    kind = ICMP(type=0 if reply else 8, id=number, seq=1)
    return network(source, destination) / kind / Raw(data)


def flow(
    protocol: str,
    source: str,
    sport: int,
    destination: str,
    dport: int,
    flags: str = "",
    *,
    reply: bool = False,
) -> Packet:
    """A packet of a flow: its first one, or the reply to that; ``flags`` are those of TCP.

    An echo's identifier is the port of the side that asks.
    """
    if protocol == "tcp":
        return tcp(source, sport, destination, dport, flags or ("SA" if reply else "S"))
    if protocol == "udp":
        return udp(source, sport, destination, dport)
    return echo(source, destination, dport if reply else sport, reply)
