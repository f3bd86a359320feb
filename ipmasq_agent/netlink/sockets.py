"""Sockets of this network namespace that are connected: whom they talk to.

sock_diag(7). Numbers: include/uapi/linux/{sock_diag,inet_diag}.h, and the states of a socket
include/net/tcp_states.h.
"""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

from ipmasq_agent.errors import KernelReadError
from ipmasq_agent.netlink import core as netlink
from ipmasq_agent.policy.addresses import Family

_SOCK_DIAG, _BY_FAMILY = 4, 20  # NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY
_REQUEST = struct.Struct("=BBBxI48x")  # struct inet_diag_req_v2: family, protocol, ext, states
# struct inet_diag_msg: state; ports, in network order; addresses.
_ANSWER = struct.Struct(">xBxxHH16s16s")
_ESTABLISHED, _SYN_SENT, _FIN_WAIT, _CLOSE_WAIT, _LAST_ACK, _CLOSING = 1, 2, (4, 5), 8, 9, 11
_ENDING = frozenset({*_FIN_WAIT, _CLOSE_WAIT, _LAST_ACK, _CLOSING})
_STATES = sum(1 << state for state in {_ESTABLISHED, _SYN_SENT, *_ENDING})
_MAPPED = bytes(10) + b"\xff\xff"  # before an IPv4 address, of a socket of IPv6 that uses IPv4


class ConnectedSocket(NamedTuple):
    """A TCP connection, or a UDP socket that is connected.

    Attributes:
        local, remote: addresses as numbers, each with its port.
        ending: one side has closed the connection.
    """

    family: Family
    protocol: int
    local: tuple[int, int]
    remote: tuple[int, int]
    ending: bool


def list_connected() -> list[ConnectedSocket]:
    """Return the connected sockets of TCP and UDP, of both families.

    Raises:
        KernelReadError: they cannot be listed.
    """
    return [
        found
        for family in (socket.AF_INET, socket.AF_INET6)
        for protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP)
        for found in _listed(family, protocol)
    ]


def _listed(family: int, protocol: int) -> list[ConnectedSocket]:
    def take(body: bytes) -> ConnectedSocket:
        state, port, remote_port, local, remote = _ANSWER.unpack_from(
            netlink.whole(body, _ANSWER.size)
        )
        by_ipv6 = family == socket.AF_INET6
        if by_ipv6 and local.startswith(_MAPPED):
            local, remote, by_ipv6 = local[12:], remote[12:], False
        kind = Family.IPV6 if by_ipv6 else Family.IPV4
        size = kind.bits // 8
        here, there = int.from_bytes(local[:size]), int.from_bytes(remote[:size])
        return ConnectedSocket(kind, protocol, (here, port), (there, remote_port), state in _ENDING)

    try:
        request = _REQUEST.pack(family, protocol, 0, _STATES)
        found = netlink.dump(_SOCK_DIAG, _BY_FAMILY, request, take)
    except OSError as cause:
        raise KernelReadError(
            f"the kernel cannot be asked for its sockets: {cause}",
            remedy="use one built with CONFIG_INET_DIAG and CONFIG_INET_UDP_DIAG",
        ) from cause
    if found is None:
        raise KernelReadError("the kernel never stood still while it listed its sockets")
    return found
