"""Packets of the lab's probes. Standard library only, as in ``inhabitant.py``."""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

HTTP_PORT, UDP_PORT = 80, 9000
ECHO_REQUEST = {1: 8, 58: 128}
"""Number of the protocol → type of the message."""
_TCP, _UDP = 6, 17
_ECHO_REPLY = {1: 0, 58: 129}
_FIN, _SYN, _RST, _PSH, _ACK = 1, 2, 4, 8, 16
_FLAGS = {_SYN: "SYN", _FIN: "FIN", _RST: "RST", _PSH: "PSH", _ACK: "ACK"}


class Packet(NamedTuple):
    """A packet of TCP or UDP, or an echo of ICMP.

    Attributes:
        protocol: ``tcp``, ``udp`` or ``icmp``, which is ICMPv6 too.
        source_port: of an echo, its identifier, as that is what NAT changes.
        destination_port: of an echo, its identifier again.
        flags: those of TCP.
        sequence: of TCP, which no NAT here changes.
        acknowledged: of TCP.
        asks: it is not the answer to an echo.
    """

    protocol: str
    source: str
    destination: str
    source_port: int
    destination_port: int
    payload: bytes
    flags: int = 0
    sequence: int = 0
    acknowledged: int = 0
    asks: bool = True

    @property
    def opens(self) -> bool:
        """Whether it is the first of a probe; of TCP, one to our server."""
        if self.protocol != "tcp":
            return self.asks
        # Others may have servers of their own here.
        return self.flags & (_SYN | _ACK) == _SYN and self.destination_port == HTTP_PORT

    @property
    def answered_by(self) -> int:
        """What the answer to it acknowledges, if it is of TCP."""
        return (self.sequence + len(self.payload) + bool(self.flags & _SYN)) % (1 << 32)

    @property
    def name(self) -> str:
        """What it is called: ``SYN``, ``datagram``, ``echo request``."""
        if self.protocol == "tcp":
            return " ".join(name for bit, name in _FLAGS.items() if self.flags & bit)
        if self.protocol == "udp":
            return "datagram"
        return "echo request" if self.asks else "echo reply"


class Captured(NamedTuple):
    """A packet at a device.

    Attributes:
        time: ns since 1970, of the one clock that all hosts of the lab have.
        out: it left through the device, else it came in.
    """

    time: int
    host: str
    device: str
    out: bool
    packet: Packet


def parse(packet: bytes) -> Packet | None:
    """Return what a packet of IP is; None where it is none that probes or their answers are."""
    if packet[0] >> 4 == 4:
        family, header, number = socket.AF_INET, (packet[0] & 15) * 4, packet[9]
        ends = packet[12:16], packet[16:20]
    else:
        family, header, number = socket.AF_INET6, 40, packet[6]
        ends = packet[8:24], packet[24:40]
    source, destination = (socket.inet_ntop(family, end) for end in ends)
    body = packet[header:]
    if number == _TCP:
        here, there, sequence, acknowledged, offset, flags = struct.unpack_from("!HHIIBB", body)
        numbers = flags, sequence, acknowledged
        return Packet("tcp", source, destination, here, there, body[(offset >> 4) * 4 :], *numbers)
    if number == _UDP:
        here, there = struct.unpack_from("!HH", body)
        return Packet("udp", source, destination, here, there, body[8:])
    if number in ECHO_REQUEST and body[0] in (ECHO_REQUEST[number], _ECHO_REPLY[number]):
        (identifier,) = struct.unpack_from("!H", body, 4)
        asks = body[0] == ECHO_REQUEST[number]
        return Packet("icmp", source, destination, identifier, identifier, body[8:], asks=asks)
    return None
