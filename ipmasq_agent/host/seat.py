"""Which agent is at work here, told by names that the kernel guards.

An abstract Unix socket belongs to a network namespace, as rules do, and goes with its owner
however that ends. So whoever can reach the rules can ask whether an agent keeps them, from
any container, with no file to share and none to be left behind.
"""

from __future__ import annotations

import errno
import hashlib
import socket
from collections.abc import Iterable

_LONGEST = 107  # unix(7): sun_path, less one


class Seat:
    """The places that an agent keeps: a chain, a directory of pins."""

    def __init__(self, places: Iterable[str]) -> None:
        self._free = list(places)
        self._held: list[socket.socket] = []

    def take(self) -> list[str]:
        """Take the places that are free, and return those that somebody else keeps.

        What the kernel refuses for another reason is nobody's, and asked for again the next
        time: an agent does its work without a seat too.
        """
        kept, free = [], []
        for place in self._free:
            try:
                self._held.append(_bound(place))
            except OSError as error:
                free.append(place)
                if error.errno == errno.EADDRINUSE:
                    kept.append(place)
        self._free = free
        return kept

    def close(self) -> None:
        """Leave."""
        for held in self._held:
            held.close()
        self._held.clear()


def kept(places: Iterable[str]) -> list[str]:
    """Return those places that a running agent keeps."""
    seat = Seat(places)
    try:
        return seat.take()
    finally:
        seat.close()


def _bound(place: str) -> socket.socket:
    name = f"\0ipmasq-agent {place}".encode(errors="surrogateescape")
    if len(name) > _LONGEST:
        name = b"\0ipmasq-agent " + hashlib.sha256(name).hexdigest().encode()
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        bound.bind(name)
    except OSError:
        bound.close()
        raise
    return bound
