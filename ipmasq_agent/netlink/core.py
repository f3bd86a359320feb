"""Netlink: questions, lists, acknowledgements, whatever they speak of.

netlink(7), by hand: the daemon asks at every resync on every node, where a library that
speaks netlink would nearly double its memory. Numbers: include/uapi/linux/netlink.h.
What the kernel refuses is an OSError.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

from ipmasq_agent.netlink.attributes import HEADER, aligned, fields, pack, split, text

REQUEST, ACKNOWLEDGE, _DUMP = 0x1, 0x4, 0x300
EXCLUSIVE, CREATE, APPEND = 0x200, 0x400, 0x800
"""Flags of a request: NLM_F_..."""
_INTERRUPTED = 0x10  # NLM_F_DUMP_INTR: something changed while it was listed
_CAPPED, _HAS_ATTRIBUTES = 0x100, 0x200  # NLM_F_CAPPED, NLM_F_ACK_TLVS
_ERROR, _DONE = 2, 3
_LARGEST_CODE = 4095  # MAX_ERRNO of include/linux/err.h
_CODE_SIZE = 4  # how struct nlmsgerr begins; the header that it answers follows
_ERROR_MESSAGE = 1  # NLMSGERR_ATTR_MSG
_SEND_BUFFER_FORCED = 32  # SO_SNDBUFFORCE
_NETLINK, _CAP_ACK, _EXTENDED_ACK = 270, 10, 11  # SOL_NETLINK, NETLINK_CAP_ACK, _EXT_ACK
ROOM = 1 << 17
"""Bytes to receive at once: more than the kernel puts into one answer."""
TRIES = 10
_SECONDS = 10
_CHANGED = frozenset({errno.EINTR, errno.EAGAIN})

T = TypeVar("T")


class Acknowledgement(NamedTuple):
    """The answer to one message: its errno, 0 for none, and what the kernel says of it."""

    sequence: int
    code: int
    words: str


def connect(
    protocol: int,
    groups: int = 0,
    receive_buffer: int | None = None,
    send_buffer: int | None = None,
) -> socket.socket:
    """Return a socket to a part of the kernel (NETLINK_...), and to multicast groups of it.

    Args:
        protocol: which part.
        groups: a bit for each.
        receive_buffer: bytes that may wait to be read.
        send_buffer: bytes that are sent at once; refusals are then told in words.
    """
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
    try:
        netlink.settimeout(_SECONDS)
        if receive_buffer is not None:
            netlink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if send_buffer is not None:
            netlink.setsockopt(_NETLINK, _CAP_ACK, 1)
            netlink.setsockopt(_NETLINK, _EXTENDED_ACK, 1)
            netlink.setsockopt(socket.SOL_SOCKET, _SEND_BUFFER_FORCED, send_buffer)
        netlink.bind((0, groups))
    except OSError:
        netlink.close()
        raise
    return netlink


def dump(
    protocol: int, kind: int, request: bytes, take: Callable[[bytes], T | None]
) -> list[T] | None:
    """Return what ``take`` makes of a list, asked for again while it changes; None if always."""
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


def whole(body: bytes, size: int) -> bytes:
    """Return a body that has what every one of its kind begins with.

    Raises:
        OSError: it is shorter.
    """
    if len(body) < size:
        raise OSError(errno.EBADMSG, os.strerror(errno.EBADMSG))
    return body


def stream(protocol: int, kind: int, request: bytes) -> Iterator[bytes]:
    """Yield the body of each answer of a list as it comes, however long the list is.

    What changes meanwhile may be in it or not, or twice.
    """
    with connect(protocol) as netlink:
        netlink.send(pack(kind, REQUEST | _DUMP, 1, request))
        while True:
            for answer, _, _, body in split(netlink.recv(ROOM)):
                if answer in (_DONE, _ERROR):
                    check(_code(body))
                    return
                yield body


def ask(protocol: int, kind: int, request: bytes, flags: int = 0) -> bytes | None:
    """Return the body of the one answer to a request; None where there is none, and no error."""
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
                yield Acknowledgement(sequence, _code(body), _words(flags, body))


def _code(body: bytes) -> int:
    """Return the errno that an error or the end of a list begins with, 0 for none."""
    code = -int.from_bytes(body[:_CODE_SIZE], sys.byteorder, signed=True)
    return code if 0 <= code <= _LARGEST_CODE else errno.EBADMSG


def _words(flags: int, body: bytes) -> str:
    """Return what the kernel says about an error (extended acknowledgement), if anything."""
    if not flags & _HAS_ATTRIBUTES:
        return ""
    answered = HEADER.size  # of the message that is answered its header alone comes back ...
    if not flags & _CAPPED:  # ... or all of it
        answered = aligned(HEADER.unpack_from(whole(body, _CODE_SIZE + answered), _CODE_SIZE)[0])
    return text(fields(body, _CODE_SIZE + answered).get(_ERROR_MESSAGE))


def check(code: int) -> None:
    """Make an exception of an errno."""
    if code:
        raise OSError(code, os.strerror(code))
