"""Sends to an address from one of the node's or of a pod's, and sees whether a reply comes back.

A reply to a pod's address is the pod's, so it is not waited for at a socket: a packet socket
sees it come in, whoever it is for. Nothing is sent but one echo request or one SYN at a time.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import time
from typing import NamedTuple

from ipmasq_agent.errors import HostError, NotPermitted
from ipmasq_agent.netlink import rt
from ipmasq_agent.policy.addresses import Family

_TRIES, _PATIENCE = 2, 0.5  # seconds for each
_SOCKET = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
_EVERYTHING = 3  # ETH_P_ALL, without which what leaves is not seen
_ETHERTYPE = {Family.IPV4: 0x0800, Family.IPV6: 0x86DD}
_ADDRESSES = {Family.IPV4: 12, Family.IPV6: 8}  # where in the header the source is
_ECHO = {Family.IPV4: (socket.IPPROTO_ICMP, 8), Family.IPV6: (socket.IPPROTO_ICMPV6, 128)}
_IP_TRANSPARENT, _IPV6_TRANSPARENT = 19, 75  # linux/in.h, linux/in6.h
_OUTGOING = 4  # PACKET_OUTGOING


def own_address(family: Family, target: int) -> int:
    """Return the address that the node itself sends from to another one.

    Raises:
        HostError: there is no route.
    """
    found = rt.look_up(family, target)
    if found is None or found.source is None:
        raise HostError(f"there is no route to {family.show(target)}")
    return found.source


class Crossed(NamedTuple):
    """What became of a packet.

    Attributes:
        translated: it left the node with another address than it was sent from.
        answered: something came in from where it went, for that address.
    """

    translated: bool
    answered: bool


def ask(family: Family, source: int, target: int, port: int | None = None) -> Crossed:
    """Send from an address, and see whether that is answered: by ping, or on a TCP port.

    Any packet from the target to the source counts, also one that refuses a connection.

    Raises:
        HostError: nothing can be sent.
        NotPermitted: a capability is missing.
    """
    translated = False
    try:
        with socket.socket(
            socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_EVERYTHING)
        ) as listener:
            for _ in range(_TRIES):
                with _sent(family, source, target, port):
                    seen = _watched(listener, family, source, target)
                if seen.answered:
                    return seen
                translated |= seen.translated
    except PermissionError as cause:
        raise NotPermitted(
            f"nothing can be sent from {family.show(source)}: {cause.strerror}",
            remedy="run as root, or with NET_ADMIN and NET_RAW",
        ) from cause
    except OSError as cause:
        raise HostError(
            f"nothing can be sent from {family.show(source)} to {family.show(target)}: "
            f"{cause.strerror}"
        ) from cause
    return Crossed(translated, False)


def _sent(family: Family, source: int, target: int, port: int | None) -> socket.socket:
    """Send one packet; return the socket, whose end would end what it opened."""
    kind, (protocol, echo) = _SOCKET[family], _ECHO[family]
    if port is None:
        sender = socket.socket(kind, socket.SOCK_RAW, protocol)
    else:
        sender = socket.socket(kind, socket.SOCK_STREAM)
    try:
        if family is Family.IPV4:
            sender.setsockopt(socket.IPPROTO_IP, _IP_TRANSPARENT, 1)
        else:
            sender.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
        sender.bind((family.show(source), 0))
        if port is None:
            sender.sendto(_echo_request(echo), (family.show(target), 0))
        else:
            sender.setblocking(False)
            code = sender.connect_ex((family.show(target), port))
            if code not in (0, errno.EINPROGRESS, errno.ECONNREFUSED):
                raise OSError(code, os.strerror(code))
    except BaseException:
        sender.close()
        raise
    return sender


def _echo_request(kind: int) -> bytes:
    """Return an echo request; in IPv6 the kernel puts the checksum in."""
    body = struct.pack("!HH", os.getpid() & 0xFFFF, 1)
    words = sum(struct.unpack("!3H", bytes([kind, 0]) + body))
    return struct.pack("!BBH", kind, 0, ~((words & 0xFFFF) + (words >> 16)) & 0xFFFF) + body


def _watched(listener: socket.socket, family: Family, source: int, target: int) -> Crossed:
    """Wait for a reply to come in through any device, and look at what leaves meanwhile."""
    size, offset = family.bits // 8, _ADDRESSES[family]
    one, other = source.to_bytes(size), target.to_bytes(size)
    sources: set[bytes] = set()
    answered = False
    deadline = time.monotonic() + _PATIENCE
    while not answered and (left := deadline - time.monotonic()) > 0:
        if not select.select([listener], [], [], left)[0]:
            break
        data, (_, ethertype, direction, _, _) = listener.recvfrom(256)
        if ethertype != _ETHERTYPE[family]:
            continue
        from_, to = data[offset : offset + size], data[offset + size : offset + 2 * size]
        if direction == _OUTGOING and to == other:
            sources.add(from_)
        answered = direction != _OUTGOING and (from_, to) == (other, one)
    # Others of this node may speak to the target meanwhile.
    return Crossed(bool(sources) and one not in sources, answered)
