"""Health, readiness, status and metrics over HTTP, on a port and on a local socket.

One thread serves all connections, and each has a few seconds: whoever is slow, or many, or
sends nonsense, takes no thread, no descriptor for long, and no probe's turn. The standard
library's server resolves the host's own name when it binds, and has none of these limits.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import re
import select
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from http import HTTPStatus
from typing import NamedTuple

from ipmasq_agent.errors import HostError, UsageError, foreseen
from ipmasq_agent.host.threads import Guarded
from ipmasq_agent.logs import failure

logger = logging.getLogger(__name__)

Answer = tuple[int, str, bytes]
"""Status code, content type, body."""

_TEXT = "text/plain; charset=utf-8"
# Seconds to send a request, to take the answer, and to close after it.
_ASKING, _TAKING, _PARTING = 5.0, 10.0, 1.0
_MOST_BYTES = 8192
MOST_CONNECTIONS = 64
# Seconds in which nobody is let in when the system has no descriptor for one more.
_PAUSE = 1.0


Answers = Mapping[str, Callable[[str], Answer]]
"""Path → how to answer who asks for it; told what the Accept header of the request says."""


Admits = Callable[[str, bytes | None], bool]
"""Whether who sends this bearer token, or none, is told what is at a path."""


class Door(NamedTuple):
    """A socket that listens, what is answered to who comes in there, and to whom."""

    listener: socket.socket
    answers: Answers
    admits: Admits = lambda path, token: True


def listen(address: str) -> socket.socket:
    """Return a socket that listens on ``HOST:PORT`` (IPv6 hosts in brackets).

    Raises:
        UsageError: the address cannot be read.
        HostError: it cannot be bound.
    """
    host, port = split_address(address)
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(MOST_CONNECTIONS)
    except OSError as cause:
        listener.close()
        raise HostError(
            f"cannot listen on {address}: {cause.strerror or cause}",
            remedy="choose another --http-address, or an empty one for none",
        ) from cause
    return listener


class HttpServer:
    """Answers GET and HEAD requests from tables of paths, in a thread of its own."""

    def __init__(self, doors: Iterable[Door]) -> None:
        self._doors = {door.listener.fileno(): door for door in doors}
        self._closing = False
        self._connections: dict[int, _Connection] = {}
        for door in self._doors.values():
            door.listener.setblocking(False)
        self._thread = Guarded(self._serve, "http", lambda error: None)
        self._thread.start()

    def close(self) -> None:
        """Stop answering."""
        self._closing = True
        for door in self._doors.values():
            door.listener.shutdown(socket.SHUT_RDWR)  # wakes the thread up
        self._thread.stop(1)
        for door in self._doors.values():
            door.listener.close()

    # In the thread

    def _serve(self) -> None:
        poll = select.poll()
        self._open(poll)
        again: float | None = None  # when to let people in again
        try:
            while not self._closing:
                deadlines = [each.deadline for each in self._connections.values()]
                soonest = min([*deadlines, *([again] if again is not None else [])], default=None)
                wait = None if soonest is None else max(0.0, soonest - time.monotonic()) * 1000
                for descriptor, _ in poll.poll(wait):
                    connection = self._connections.get(descriptor)
                    door = self._doors.get(descriptor)
                    if connection is not None:
                        self._advance(poll, connection)
                    elif (
                        door is not None  # else it had to go for one that was let in just now
                        and again is None
                        and not self._closing
                        and not self._let_in(poll, door)
                    ):
                        for each in self._doors:
                            poll.unregister(each)
                        again = time.monotonic() + _PAUSE
                now = time.monotonic()
                if again is not None and again <= now:
                    self._open(poll)
                    again = None
                for connection in list(self._connections.values()):
                    if connection.deadline <= now:
                        self._drop(poll, connection)
        finally:
            while self._connections:
                self._connections.popitem()[1].close()

    def _open(self, poll: select.poll) -> None:
        for descriptor in self._doors:
            poll.register(descriptor, select.POLLIN)

    def _let_in(self, poll: select.poll, door: Door) -> bool:
        """Accept a connection; false where the system has no room for it."""
        try:
            accepted, _ = door.listener.accept()
        except (BlockingIOError, ConnectionError):
            return True  # it went away again
        except OSError as error:
            logger.debug("no connection can be accepted: %s", error.strerror)
            self._drop_oldest(poll)
            return False
        if len(self._connections) >= MOST_CONNECTIONS:
            self._drop_oldest(poll)
        connection = _Connection(accepted, door)
        self._connections[connection.number] = connection
        poll.register(connection.number, select.POLLIN)
        return True

    def _advance(self, poll: select.poll, connection: _Connection) -> None:
        try:
            events = connection.advance()
        except BlockingIOError:
            return
        except OSError:
            events = 0  # broken off: nobody is there to tell
        if events:
            poll.modify(connection.number, events)
        else:
            self._drop(poll, connection)

    def _drop_oldest(self, poll: select.poll) -> None:
        for connection in self._connections.values():
            self._drop(poll, connection)
            return

    def _drop(self, poll: select.poll, connection: _Connection) -> None:
        poll.unregister(connection.number)
        del self._connections[connection.number]
        connection.close()


def _answer(door: Door, head: bytes) -> bytes:
    words = head.partition(b"\n")[0].decode("latin-1").split()
    if len(words) < 2:
        return _packed((400, _TEXT, b"not a request\n"))
    if len(head) > _MOST_BYTES:
        return _packed((431, _TEXT, b"too long a request\n"))
    if words[0] not in ("GET", "HEAD"):
        return _packed((405, _TEXT, b"only GET and HEAD\n"))
    path = words[1].partition("?")[0]
    page = door.answers.get(path)
    try:
        if page and not door.admits(path, _bearer(head)):
            return _packed((401, _TEXT, b"a bearer token is needed, and this is not it\n"))
        accept = next(_headers(head, b"accept"), b"").decode("latin-1")
        answer = page(accept) if page else (404, _TEXT, b"not found; / lists what there is\n")
    except Exception as error:
        told = foreseen(error, f"the answer to {words[1]}")
        failure("no answer", told)
        answer = text(500, str(told))
    return _packed(answer, without_body=words[0] == "HEAD")


def _headers(head: bytes, wanted: bytes) -> Iterator[bytes]:
    """Yield the values of a header, by its name in lower case."""
    for line in head.splitlines()[1:]:
        if not line:
            return
        name, _, value = line.partition(b":")
        if name.lower() == wanted:
            yield value.strip()


def _bearer(head: bytes) -> bytes | None:
    """Return the token of a request's head (RFC 6750), or None."""
    for value in _headers(head, b"authorization"):
        scheme, _, token = value.partition(b" ")
        if scheme.lower() == b"bearer":
            return token.strip() or None
    return None


class _Connection:
    """Reads a request, sends the answer, and waits for the other side to close.

    Who closes with something unread resets the connection, and the answer may be lost.
    """

    def __init__(self, accepted: socket.socket, door: Door) -> None:
        self._socket = accepted
        self._door = door
        self._socket.setblocking(False)
        self._head = b""
        self._rest = memoryview(b"")
        self._answered = False
        self.number = accepted.fileno()
        self.deadline = time.monotonic() + _ASKING

    def advance(self) -> int:
        """Go on as far as it goes without waiting; return what to wait for, 0 at the end.

        Raises:
            BlockingIOError: nothing goes on yet.
            OSError: the connection broke off.
        """
        if self._rest:
            self._rest = self._rest[self._socket.send(self._rest) :]
            if self._rest:
                return select.POLLOUT
            self._socket.shutdown(socket.SHUT_WR)
            self._answered = True
            self.deadline = time.monotonic() + _PARTING
            return select.POLLIN
        data = self._socket.recv(_MOST_BYTES)
        if not data:
            return 0
        if self._answered:
            return select.POLLIN
        self._head += data
        ended = b"\n\r\n" in self._head or b"\n\n" in self._head
        if not ended and len(self._head) <= _MOST_BYTES:
            return select.POLLIN
        self._rest = memoryview(_answer(self._door, self._head))
        self.deadline = time.monotonic() + _TAKING
        return select.POLLOUT

    def close(self) -> None:
        """Close it."""
        self._socket.close()


def _packed(answer: Answer, *, without_body: bool = False) -> bytes:
    code, kind, body = answer
    head = (
        f"HTTP/1.1 {code} {HTTPStatus(code).phrase}\r\n"
        f"Date: {time.strftime('%a, %d %b %Y %H:%M:%S GMT', time.gmtime())}\r\n"
        f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        + {401: "WWW-Authenticate: Bearer\r\n", 405: "Allow: GET, HEAD\r\n"}.get(code, "")
        + "Connection: close\r\n\r\n"
    )
    return head.encode() + (b"" if without_body else body)


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT``; a host left out means every address.

    A host is an address: nothing here waits for a name server.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise UsageError(f"{address!r} is not HOST:PORT, like 127.0.0.1:9797")
    host = {"": "0.0.0.0", "localhost": "127.0.0.1"}.get(host, host.strip("[]"))
    try:
        ipaddress.ip_address(host)
    except ValueError as cause:
        raise UsageError(
            f"{host!r} in {address!r} is not an IP address",
            remedy="the agent asks no name server where to listen: give the address itself",
        ) from cause
    return host, int(port)


def text(code: int, body: str) -> Answer:
    """Return a plain text answer."""
    return code, _TEXT, (body + "\n").encode(errors="backslashreplace")


def data(value: object) -> Answer:
    """Return a JSON answer."""
    return 200, "application/json", (json.dumps(value, indent=2) + "\n").encode()
