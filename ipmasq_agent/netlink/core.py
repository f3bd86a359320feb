"""Netlink: messages and their attributes, lists, acknowledgements, whatever they speak of.

netlink(7), by hand: the daemon asks at every resync on every node, and pyroute2 alone is
24 MB of memory there. Layouts and bits: include/uapi/linux/netlink.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Callable, Container, Iterator
from typing import NamedTuple, TypeVar

REQUEST, ACKNOWLEDGE, _DUMP = 0x1, 0x4, 0x300
EXCLUSIVE, CREATE, APPEND = 0x200, 0x400, 0x800
"""Flags of a request: NLM_F_..."""
_INTERRUPTED = 0x10  # NLM_F_DUMP_INTR: something changed while it was listed
_ERROR, _DONE = 2, 3
HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
ROOM = 1 << 17
"""Bytes to receive at once: more than the kernel puts into one answer."""
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr
_NESTED, _TYPE_MASK = 0x8000, 0x3FFF
_ALL = range(_TYPE_MASK + 1)
TRIES = 10
_SECONDS = 10
_CHANGED = frozenset({errno.EINTR, errno.EAGAIN})

T = TypeVar("T")


class Acknowledgement(NamedTuple):
    """The answer to one message: its errno, 0 for none; flags and body for what else is said."""

    sequence: int
    code: int
    flags: int
    body: bytes


def connect(protocol: int, groups: int = 0, receive_buffer: int | None = None) -> socket.socket:
    """Return a socket to a part of the kernel (NETLINK_...), and to multicast groups of it.

    Raises:
        OSError: the kernel refuses.
    """
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
    netlink.settimeout(_SECONDS)
    if receive_buffer is not None:
        netlink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    netlink.bind((0, groups))
    return netlink


def pack(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """Return a message."""
    return HEADER.pack(HEADER.size + len(body), kind, flags, sequence, 0) + body


def split(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield type, flags, sequence number and body of each message."""
    position, size = 0, HEADER.size
    while position + size <= len(data):
        length, kind, flags, sequence, _ = HEADER.unpack_from(data, position)
        yield kind, flags, sequence, data[position + size : position + length]
        position += (length + 3 & ~3) or size


def dump(
    protocol: int, kind: int, request: bytes, take: Callable[[bytes], T | None]
) -> list[T] | None:
    """Return a whole list of one state, asked for again while it changes meanwhile.

    Args:
        protocol: whose list.
        kind: of the message.
        request: its body.
        take: makes of the body of each answer what is wanted; None for nothing.

    Returns:
        None where it never stands still.

    Raises:
        OSError: the kernel refuses.
    """
    for _ in range(TRIES):
        with connect(protocol) as netlink:
            netlink.send(pack(kind, REQUEST | _DUMP, 1, request))
            found = _collect(netlink, take)
        if found is not None:
            return found
    return None


def _collect(netlink: socket.socket, take: Callable[[bytes], T | None]) -> list[T] | None:
    """Return what was taken of the answers, or None where a change interrupted them."""
    found: list[T] = []
    interrupted = 0
    while True:
        for kind, flags, _, body in split(netlink.recv(ROOM)):
            interrupted |= flags & _INTERRUPTED
            if kind in (_DONE, _ERROR):
                code = _code(body)
                if interrupted or code in _CHANGED:
                    return None
                check(code)
                return found
            taken = take(body)
            if taken is not None:
                found.append(taken)


def ask(protocol: int, kind: int, request: bytes, flags: int = 0) -> bytes | None:
    """Return the body of the one answer to a request; None where there is none, and no error.

    Args:
        protocol: whose answer.
        kind: of the message.
        request: its body.
        flags: ``CREATE`` and the like, where the request is one for a change.

    Raises:
        OSError: the kernel refuses.
    """
    found = None
    with connect(protocol) as netlink:
        # With an acknowledgement: where the kernel finds nothing it may send no object and
        # no error, as for the end of an interval of nf_tables that reaches the last address.
        netlink.send(pack(kind, REQUEST | ACKNOWLEDGE | flags, 1, request))
        while True:
            for answer, _, _, body in split(netlink.recv(ROOM)):
                if answer == _ERROR:
                    check(_code(body))
                    return found
                found = body


def acknowledgements(netlink: socket.socket) -> Iterator[Acknowledgement]:
    """Yield the answers to messages that were sent, and wait for the next."""
    while True:
        for kind, flags, sequence, body in split(netlink.recv(ROOM)):
            if kind == _ERROR:
                yield Acknowledgement(sequence, _code(body), flags, body)


def _code(body: bytes) -> int:
    """Return the errno that an error or the end of a list begins with, 0 for none."""
    return -int.from_bytes(body[:4], sys.byteorder, signed=True)


def check(code: int) -> None:
    """Make an exception of an errno.

    Raises:
        OSError: it is not 0.
    """
    if code:
        raise OSError(code, os.strerror(code))


def attributes(
    data: bytes, position: int = 0, wanted: Container[int] = _ALL
) -> Iterator[tuple[int, bytes]]:
    """Yield number and payload of the attributes from ``position`` on.

    Args:
        data: what they are in.
        position: where they begin.
        wanted: pass over all others; a device has some forty.
    """
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
