"""Connections in a capture: classic pcap and pcapng, of whatever device it was made on.

Formats: draft-ietf-opsawg-pcap, draft-ietf-opsawg-pcapng, and the link types of
https://www.tcpdump.org/linktypes.html.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.flows import End, Flow

_CLASSIC = {  # magic → byte order
    b"\xd4\xc3\xb2\xa1": "<",
    b"\xa1\xb2\xc3\xd4": ">",
    b"\x4d\x3c\xb2\xa1": "<",  # with nanoseconds
    b"\xa1\xb2\x3c\x4d": ">",
}
_SECTION = b"\x0a\x0d\x0d\x0a"
MAGICS = (*_CLASSIC, _SECTION)
"""How captures begin."""
_ORDERS = {b"\x4d\x3c\x2b\x1a": "<", b"\x1a\x2b\x3c\x4d": ">"}
_INTERFACE, _SIMPLE, _ENHANCED = 1, 3, 6  # types of blocks
_LARGEST = 1 << 26  # bytes of one block: what claims more is no capture

_IPV4, _IPV6, _VLAN = 0x0800, 0x86DD, (0x8100, 0x88A8, 0x9100)
_ETHERNET, _COOKED, _COOKED_2 = 1, 113, 276
_RAW = (12, 14, 101, 228, 229)
_LOOPBACK = (0, 108)  # an address family in four bytes
# Offset of the EtherType, and length of the header that it is in.
_LINKS = {_ETHERNET: (12, 14), _COOKED: (14, 16), _COOKED_2: (0, 20)}

_TCP, _UDP, _SCTP, _ICMP, _ICMPV6, _FRAGMENT = 6, 17, 132, 1, 58, 44
_EXTENSIONS = (0, 43, 60)  # hop by hop, routing, destination options
_QUESTIONS = {_ICMP: (8, 0), _ICMPV6: (128, 129)}  # echo request and reply
_SYN, _ACK = 0x02, 0x10
_WELL_KNOWN = 1024


class NotACapture(ValueError):
    """What is wrong with the form of a file, and at which of its packets."""


class _Packet(NamedTuple):
    family: Family
    protocol: int
    source: End
    destination: End
    answers: bool | None  # None where that cannot be told


def connections(file: BinaryIO) -> Iterator[Flow]:
    """Yield each connection of a capture once, as its first packet had it.

    A capture that breaks off is read as far as it goes. Where the beginning of a connection is
    missing, an end with a well-known port is taken for the one that answers.

    Raises:
        NotACapture: it is none, or of a link type that is not known.
    """
    answered: dict[tuple[Family, int, End, End], bool] = {}
    for packet in filter(None, _packets(file)):
        family, protocol, source, destination, answers = packet
        there = family, protocol, source, destination
        back = family, protocol, destination, source
        if back in answered:
            answered[back] = True
        elif there not in answered:
            if answers is None:
                answers = source.port < _WELL_KNOWN <= destination.port
            answered[back if answers else there] = False
    for (family, protocol, source, destination), both_ways in answered.items():
        yield Flow(family, protocol, source, destination, source, destination, both_ways)


def _packets(file: BinaryIO) -> Iterator[_Packet | None]:
    magic = file.read(4)
    frames = _blocks(file) if magic == _SECTION else _records(file, magic)
    for number, (link, frame) in enumerate(frames, start=1):
        try:
            yield _packet(link, frame)
        except (IndexError, struct.error):
            continue  # cut off before its ports
        except NotACapture as cause:
            raise NotACapture(f"packet {number}: {cause}") from None


def _records(file: BinaryIO, magic: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield link type and bytes of each packet of a classic capture."""
    order = _CLASSIC.get(magic)
    header = file.read(20)
    if order is None or len(header) < 20:
        raise NotACapture("it does not begin as a capture does")
    (link,) = struct.unpack_from(f"{order}I", header, 16)
    number = 0
    while len(record := file.read(16)) == 16:
        number += 1
        (size,) = struct.unpack_from(f"{order}I", record, 8)
        frame = _whole(file, size, number)
        if frame is None:
            return
        yield link & 0xFFFF, frame


def _blocks(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield link type and bytes of each packet of a pcapng, behind its first four bytes."""
    links: list[int] = []
    order, number, head = "<", 0, _SECTION
    while True:
        number += 1
        length = file.read(4)
        if len(length) < 4:
            return
        if head == _SECTION:
            mark = file.read(4)
            if mark not in _ORDERS:
                raise NotACapture(f"block {number} has no byte order")
            order, links = _ORDERS[mark], []
        (size,) = struct.unpack(f"{order}I", length)
        body = _whole(file, size - (12 if head == _SECTION else 8), number)
        if body is None:
            return
        (kind,) = struct.unpack(f"{order}I", head)
        if head == _SECTION:
            kind = 0
        if kind == _INTERFACE:
            links.append(struct.unpack_from(f"{order}H", body)[0])
        elif kind in (_ENHANCED, _SIMPLE):
            which, start = 0, 4
            (captured,) = struct.unpack_from(f"{order}I", body)
            if kind == _ENHANCED:
                which, _, _, captured = struct.unpack_from(f"{order}4I", body)
                start = 20
            if which >= len(links):
                raise NotACapture(f"block {number} is of an interface that it does not describe")
            yield links[which], body[start : start + captured]
        head = file.read(4)
        if len(head) < 4:
            return


def _whole(file: BinaryIO, size: int, number: int) -> bytes | None:
    """Return so many bytes; None where the file ends before."""
    if not 0 <= size <= _LARGEST:
        raise NotACapture(f"packet {number} claims to have {size} bytes")
    data = file.read(size)
    return data if len(data) == size else None


def _packet(link: int, frame: bytes) -> _Packet | None:
    """Return what a frame has; None where it is none of a connection.

    Raises:
        IndexError, struct.error: it is cut off.
        NotACapture: the link type is not known.
    """
    if link in _RAW:
        start = 0
    elif link in _LOOPBACK:
        start = 4
    elif link in _LINKS:
        place, start = _LINKS[link]
        kind = int.from_bytes(frame[place : place + 2])
        while kind in _VLAN:
            kind = int.from_bytes(frame[start + 2 : start + 4])
            start += 4
        if kind not in (_IPV4, _IPV6):
            return None
    else:
        raise NotACapture(f"link type {link} is not known")
    version = frame[start] >> 4
    if version == 4:
        if int.from_bytes(frame[start + 6 : start + 8]) & 0x1FFF:
            return None  # a fragment but the first
        ends, protocol = (start + 12, start + 16), frame[start + 9]
        transport = start + (frame[start] & 15) * 4
        return _of_protocol(Family.IPV4, frame, ends, protocol, transport)
    if version != 6:
        return None
    protocol, transport = frame[start + 6], start + 40
    while protocol in _EXTENSIONS or protocol == _FRAGMENT:
        if protocol == _FRAGMENT and int.from_bytes(frame[transport + 2 : transport + 4]) >> 3:
            return None
        length = 8 if protocol == _FRAGMENT else (frame[transport + 1] + 1) * 8
        protocol, transport = frame[transport], transport + length
    return _of_protocol(Family.IPV6, frame, (start + 8, start + 24), protocol, transport)


def _of_protocol(
    family: Family, frame: bytes, places: tuple[int, int], protocol: int, transport: int
) -> _Packet | None:
    size = family.bits // 8
    source, destination = (int.from_bytes(frame[at : at + size]) for at in places)
    answers: bool | None = None
    if protocol in _QUESTIONS:
        question, answer = _QUESTIONS[protocol]
        if frame[transport] not in (question, answer):
            return None
        answers = frame[transport] == answer
        identifier = struct.unpack_from(">H", frame, transport + 4)[0]
        ports = (0, identifier) if answers else (identifier, 0)
    elif protocol in (_TCP, _UDP, _SCTP):
        ports = struct.unpack_from(">2H", frame, transport)
        if protocol == _TCP and len(frame) > transport + 13:
            flags = frame[transport + 13]
            answers = bool(flags & _ACK) if flags & _SYN else None
    else:
        ports = (0, 0)
    return _Packet(family, protocol, End(source, ports[0]), End(destination, ports[1]), answers)
