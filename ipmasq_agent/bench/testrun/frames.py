"""Frames of Ethernet: made of their two ends, and read again."""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

from ipmasq_agent.policy.addresses import Family

SIZE = 80
"""Bytes of every frame: there is room for the longest headers."""
TCP, UDP, UDP_LITE = socket.IPPROTO_TCP, socket.IPPROTO_UDP, 136
SYN, ACK = 0x02, 0x10
MAC = "02:00:00:00:00:01"
"""Of the device through which they go: they come from it, and are for it."""
_TYPE = {Family.IPV4: b"\x08\x00", Family.IPV6: b"\x86\xdd"}
_NETWORK = 14  # where the IP header begins
_HEADER = {Family.IPV4: 20, Family.IPV6: 40}
_ADDRESSES = {Family.IPV4: 12, Family.IPV6: 8}  # where they begin in it
_TTL = 64
_CHECKSUM_OF_IPV4 = 10
_PORTS = struct.Struct(">HH")


class PacketEnds(NamedTuple):
    """Between whom a packet goes; addresses as numbers."""

    source: int
    source_port: int
    destination: int
    destination_port: int

    @property
    def back(self) -> PacketEnds:
        """Of the packet that answers."""
        return PacketEnds(self.destination, self.destination_port, self.source, self.source_port)


def source_port_at(family: Family) -> int:
    """Return the offset of the source port in a frame."""
    return _NETWORK + _HEADER[family]


def frame(family: Family, protocol: int, ends: PacketEnds, flags: int = 0) -> bytes:
    """Return a frame of ``SIZE`` bytes, with checksums.

    Args:
        family: of the addresses.
        protocol: TCP, UDP or UDP-Lite.
        ends: whose it is.
        flags: those of TCP.
    """
    payload = SIZE - _NETWORK - _HEADER[family]
    addresses = b"".join(
        address.to_bytes(family.bits // 8) for address in (ends.source, ends.destination)
    )
    ports = _PORTS.pack(ends.source_port, ends.destination_port)
    if protocol == TCP:
        transport = ports + struct.pack(">IIBBHHH", 1, 1, 5 << 4, flags, 65535, 0, 0)
        checksum_at = 16
    else:
        # The length of UDP, which UDP-Lite has for what its checksum covers.
        transport = ports + struct.pack(">HH", payload, 0)
        checksum_at = 6
    transport = transport.ljust(payload, b"\0")
    pseudo = addresses + struct.pack(">II", payload, protocol)
    transport = _with_checksum(transport, checksum_at, pseudo)
    if family is Family.IPV4:
        fixed = struct.pack(">BBHHHBBH", 0x45, 0, 20 + payload, 7, 0, _TTL, protocol, 0)
        network = _with_checksum(fixed + addresses, _CHECKSUM_OF_IPV4)
    else:
        network = struct.pack(">IHBB", 6 << 28, payload, protocol, _TTL) + addresses
    return 2 * bytes.fromhex(MAC.replace(":", "")) + _TYPE[family] + network + transport


def ends_of(family: Family, data: bytes) -> PacketEnds:
    """Return whose a frame is."""
    size, at = family.bits // 8, _NETWORK + _ADDRESSES[family]
    source, destination = data[at : at + size], data[at + size : at + 2 * size]
    ports = _PORTS.unpack_from(data, source_port_at(family))
    return PacketEnds(int.from_bytes(source), ports[0], int.from_bytes(destination), ports[1])


def _with_checksum(data: bytes, at: int, before: bytes = b"") -> bytes:
    """Return data with the checksum of RFC 1071 over it and what comes before it."""
    whole = before + data
    total = sum(struct.unpack(f">{len(whole) // 2}H", whole))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    # Of UDP, 0 would say that there is none.
    return data[:at] + struct.pack(">H", ~total & 0xFFFF or 0xFFFF) + data[at + 2 :]
