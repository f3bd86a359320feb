"""Messages of netlink and their attributes as bytes.

Layouts and bits: include/uapi/linux/netlink.h.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Container, Iterator

HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr
_NESTED, _TYPE_MASK = 0x8000, 0x3FFF
_ALL = range(_TYPE_MASK + 1)


def pack(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """Return a message."""
    return HEADER.pack(HEADER.size + len(body), kind, flags, sequence, 0) + body


def split(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield type, flags, sequence number and body of each message."""
    position, size = 0, HEADER.size
    while position + size <= len(data):
        length, kind, flags, sequence, _ = HEADER.unpack_from(data, position)
        yield kind, flags, sequence, data[position + size : position + length]
        position += aligned(length) or size


def attributes(
    data: bytes, position: int = 0, wanted: Container[int] = _ALL
) -> Iterator[tuple[int, bytes]]:
    """Yield number and payload of the attributes from ``position`` on."""
    end = len(data) - _ATTRIBUTE.size
    unpack = _ATTRIBUTE.unpack_from
    while position <= end:
        length, kind = unpack(data, position)
        if length < 4:
            return
        kind &= _TYPE_MASK
        if kind in wanted:
            yield kind, data[position + 4 : position + length]
        position += length + 3 & ~3


def fields(
    data: bytes, position: int = 0, wanted: Container[int] | None = None
) -> dict[int, bytes]:
    """Return the attributes by their numbers; see ``attributes``.

    A loop of its own: lists of rules are taken apart by it, a hundred thousand at a time.
    """
    found: dict[int, bytes] = {}
    end = len(data) - _ATTRIBUTE.size
    unpack = _ATTRIBUTE.unpack_from
    while position <= end:
        length, kind = unpack(data, position)
        if length < 4:
            break
        kind &= _TYPE_MASK
        if wanted is None or kind in wanted:
            found[kind] = data[position + 4 : position + length]
        position += length + 3 & ~3
    return found


def aligned(length: int) -> int:
    """Return where what follows begins (NLMSG_ALIGN, NLA_ALIGN, RTNH_ALIGN)."""
    return length + 3 & ~3


def attribute(kind: int, value: bytes) -> bytes:
    """Return an attribute, padded."""
    padding = b"\0" * (-len(value) % 4)
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + padding


def nested(kind: int, *inner: bytes) -> bytes:
    """Return an attribute that is made of attributes."""
    return attribute(kind | _NESTED, b"".join(inner))


def text(value: bytes | None) -> str:
    """Return a name without its terminating zero; "" for none."""
    return (value or b"").rstrip(b"\0").decode(errors="surrogateescape")


def name_bytes(name: str) -> bytes:
    """Return a name as the kernel takes it: with a zero at its end."""
    return name.encode(errors="surrogateescape") + b"\0"


def number(value: bytes | None) -> int:
    """Return a number in the order of the network; 0 where there is none."""
    return int.from_bytes(value or b"", "big")


def host_number(value: bytes | None, default: int = 0) -> int:
    """Return a number in the order of this machine; a default where there is none."""
    return default if value is None else int.from_bytes(value, sys.byteorder)


def u32(value: int) -> bytes:
    """Return 32 bits in the order of the network."""
    return value.to_bytes(4, "big")
