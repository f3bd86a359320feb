"""Answers of the kernel that come only when something changes, or fails, at the wrong moment."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable

import pytest

from ipmasq_agent.netlink import core as netlink
from ipmasq_agent.netlink.attributes import attribute, attributes, fields, nested, pack

ERROR, DONE, OBJECT = 2, 3, 20
INTERRUPTED = 0x10


def message(kind: int, body: bytes, flags: int = 0) -> bytes:
    return pack(kind, flags, 1, body)


def code(number: int) -> bytes:
    return struct.pack("=i", -number)


Ask = Callable[..., list[bytes]]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Give the answers that each new socket will find; the list of those not yet asked for."""

    def prepare(*answers: bytes) -> list[bytes]:
        waiting = list(answers)

        def connect(protocol: int) -> socket.socket:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                theirs.send(waiting.pop(0))
                return _Open(ours)

        monkeypatch.setattr(netlink, "connect", connect)
        return waiting

    return prepare


class _Open(socket.socket):
    """A socket whose other end is closed: it is read from, and takes whatever is asked."""

    def __init__(self, of: socket.socket) -> None:
        super().__init__(of.family, of.type, fileno=of.detach())

    def send(self, data: object, flags: int = 0) -> int:
        return 0


def dump() -> list[bytes] | None:
    return netlink.dump(socket.NETLINK_ROUTE, OBJECT, b"", bytes)


def test_a_list_that_changed_meanwhile_is_asked_for_again(kernel: Ask) -> None:
    end = message(DONE, code(0))
    left = kernel(
        message(OBJECT, b"old1") + message(OBJECT, b"new1", INTERRUPTED) + end,
        message(OBJECT, b"old2") + message(DONE, code(0), INTERRUPTED),
        message(ERROR, code(errno.EINTR)),
        message(OBJECT, b"new1") + message(OBJECT, b"new2") + end,
    )
    assert dump() == [b"new1", b"new2"]
    assert not left


def test_a_list_that_never_stands_still_is_none(kernel: Ask) -> None:
    kernel(*[message(OBJECT, b"some", INTERRUPTED) + message(DONE, code(0))] * netlink.TRIES)
    assert dump() is None


@pytest.mark.parametrize("kind", [ERROR, DONE])
def test_a_list_that_ends_with_an_error_is_not_taken_for_whole(kernel: Ask, kind: int) -> None:
    kernel(message(OBJECT, b"some") + message(kind, code(errno.ENOMEM)))
    with pytest.raises(OSError, match="Cannot allocate memory"):
        dump()


def test_what_is_acknowledged_without_an_answer_is_not_there(kernel: Ask) -> None:
    kernel(message(ERROR, code(0)), message(OBJECT, b"some") + message(ERROR, code(0)))
    assert netlink.ask(socket.NETLINK_ROUTE, OBJECT, b"") is None
    assert netlink.ask(socket.NETLINK_ROUTE, OBJECT, b"") == b"some"


def test_attributes_of_any_length_are_padded_and_found_again() -> None:
    packed = attribute(1, b"abc") + nested(2, attribute(3, b"x" * 5))
    assert len(packed) % 4 == 0
    found = fields(b"head" + packed, 4)
    assert found == {1: b"abc", 2: attribute(3, b"x" * 5)}
    assert [kind for kind, _ in attributes(packed, 0, {2})] == [2]
    assert not list(attributes(b"\0" * 8))  # of no length: nothing comes after it
