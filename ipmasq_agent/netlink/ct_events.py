"""Connections as they are made, of which connection tracking tells over netlink.

Groups: include/uapi/linux/netfilter/nfnetlink_compat.h. Each new connection is one message,
once its first packet has passed all rules; so it has its source before and after. What does
not fit into the socket's buffer is dropped there, and counted by the kernel (``sk_drops``,
net/netlink/af_netlink.c), one by one.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
import sys
import time
from pathlib import Path

from ipmasq_agent.errors import HostError, NotPermitted
from ipmasq_agent.netlink import core as netlink
from ipmasq_agent.netlink.ct import CONNECTIONS, flow_of
from ipmasq_agent.netlink.nf import NETLINK_NETFILTER, prefix
from ipmasq_agent.policy.flows import Flow

_NEW, _GROUP = 1, 1  # NF_NETLINK_CONNTRACK_NEW, a bit; NFNLGRP_CONNTRACK_NEW
_GET_COUNT = CONNECTIONS | 5  # IPCTNL_MSG_CT_GET_STATS: how many there are, and no more
_KIND_AT, _BODY_AT = 4, 16  # in a message: struct nlmsghdr
_ROOM = 32 << 20  # bytes that may wait: some 25,000 connections
_AT_ONCE = 1024
_RECEIVE_BUFFER_FORCED, _MEMORY = 33, 55  # SO_RCVBUFFORCE, SO_MEMINFO
_MEMORY_INFO = struct.Struct("=9I")
_DROPS = 8  # SK_MEMINFO_DROPS
# SOL_NETLINK, NETLINK_DROP_MEMBERSHIP, NETLINK_NO_ENOBUFS
_NETLINK, _DROP_MEMBERSHIP, _NO_ENOBUFS = 270, 2, 5
_EVENTS = Path("/proc/sys/net/netfilter/nf_conntrack_events")


class NewConnections:
    """What connection tracking tells from now on, in this network namespace.

    Raises:
        NotPermitted: it may not be asked for.
        HostError: there is no connection tracking, or it tells nothing.
    """

    def __init__(self) -> None:
        try:
            self._socket = netlink.connect(NETLINK_NETFILTER, _NEW)
        except OSError as cause:
            raise _refused(cause) from cause
        # A socket that overflowed would get nothing until it is empty, and be told of that.
        self._socket.setsockopt(_NETLINK, _NO_ENOBUFS, 1)
        self._socket.setblocking(False)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _RECEIVE_BUFFER_FORCED, _ROOM)
            self._check()
        except BaseException as error:
            self._socket.close()
            if isinstance(error, OSError):
                raise _refused(error) from error
            raise

    def _check(self) -> None:
        try:
            told = _EVENTS.read_text().strip()
        except OSError as cause:
            raise HostError(
                "this kernel tells of no connections: it tracks none here, or has no events",
                remedy="load nf_conntrack, of a kernel with CONFIG_NF_CONNTRACK_EVENTS",
            ) from cause
        if told == "0":
            raise HostError(
                "connection tracking tells nobody of connections",
                remedy="turn its events on: `sysctl -w net.netfilter.nf_conntrack_events=1`",
            )
        # The group can be joined without the part of the kernel that tells it anything.
        netlink.ask(NETLINK_NETFILTER, _GET_COUNT, prefix(0))

    def read(self, seconds: float) -> list[tuple[float, Flow]]:
        """Return connections that were made, each with the moment of time(2), in their order."""
        found: list[tuple[float, Flow]] = []
        select.select([self._socket], [], [], seconds)
        now, receive = time.time(), self._socket.recv
        for _ in range(_AT_ONCE):
            try:
                message = receive(8192)
            except BlockingIOError:
                break
            if int.from_bytes(message[_KIND_AT : _KIND_AT + 2], sys.byteorder) != CONNECTIONS:
                continue
            flow = flow_of(message, _BODY_AT)
            if flow is not None:
                found.append((now, flow))
        return found

    def stop(self) -> None:
        """Listen to no more; see ``Beginnings``."""
        self._socket.setsockopt(_NETLINK, _DROP_MEMBERSHIP, _GROUP)

    @property
    def missed(self) -> int:
        """How many connections found no room in the buffer."""
        memory = self._socket.getsockopt(socket.SOL_SOCKET, _MEMORY, _MEMORY_INFO.size)
        return int(_MEMORY_INFO.unpack(memory)[_DROPS])

    def close(self) -> None:
        """Hold nothing any more."""
        self._socket.close()


def _refused(cause: OSError) -> HostError:
    if cause.errno in (errno.EPERM, errno.EACCES):
        return NotPermitted(
            "connection tracking may not be listened to",
            remedy="run as root, or with the capability NET_ADMIN",
        )
    return HostError(
        f"connection tracking cannot be listened to: {cause.strerror}",
        remedy="load nf_conntrack_netlink, of a kernel with CONFIG_NF_CONNTRACK_EVENTS",
    )
