"""Word of changes of links, addresses, routes and filters, as they happen: rtnetlink(7).

Numbers: include/uapi/linux/rtnetlink.h.
"""

from __future__ import annotations

import errno
import socket
from typing import NamedTuple

from ipmasq_agent.netlink import core as netlink
from ipmasq_agent.netlink.attributes import split
from ipmasq_agent.netlink.rt import refused

_NEW_ROUTE, _DELETED_ROUTE = 24, 25
DELETED_QDISC, DELETED_FILTER = 37, 45
TRAFFIC_CONTROL = range(36, 48)
"""Types of messages about queueing disciplines, their classes and filters."""
# Multicast groups, as bits of nl_groups: devices; filters; addresses and routes of either
# family.
_GROUPS = 0x1 | 0x8 | 0x10 | 0x40 | 0x100 | 0x400
# Room for the storm of a node's 200 pods that come at once; the kernel doubles it.
_RECEIVE_BUFFER = 1 << 20


class Overrun(Exception):
    """The kernel dropped messages because we read too slowly: look at everything again."""


class Message(NamedTuple):
    """Word of a change: its type, and for a route the length of its destination's prefix."""

    kind: int
    route_length: int | None


class Changes:
    """Word of every change of devices, addresses and routes from now on."""

    def __init__(self) -> None:
        try:
            self._socket = netlink.connect(socket.NETLINK_ROUTE, _GROUPS, _RECEIVE_BUFFER)
            self._socket.setblocking(False)
        except OSError as cause:
            raise refused("for word of changes", cause) from cause

    def close(self) -> None:
        """Listen to no more."""
        self._socket.close()

    def fileno(self) -> int:
        """Return the descriptor that becomes readable with the next message."""
        return self._socket.fileno()

    def receive(self) -> list[Message]:
        """Return what has arrived, without waiting for more.

        Raises:
            Overrun: messages were lost.
        """
        messages: list[Message] = []
        while True:
            try:
                data = self._socket.recv(netlink.ROOM)
            except BlockingIOError:
                return messages
            except OSError as cause:
                if cause.errno == errno.ENOBUFS:
                    raise Overrun from cause
                raise refused("for word of changes", cause) from cause
            for kind, _, _, body in split(data):
                is_route = kind in (_NEW_ROUTE, _DELETED_ROUTE)
                messages.append(Message(kind, body[1] if is_route and len(body) > 1 else None))
