"""Telling connection tracking of connections that began before it was there.

It takes the first packet that it meets for the first of a connection, and asks the nat
table about it; so a node that begins to track gives connections in their middle another
port, or another address. What it is told of, it leaves as it is.

ctnetlink. Attribute numbers and bits:
include/uapi/linux/netfilter/nfnetlink_conntrack.h and nf_conntrack_common.h.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable
from itertools import islice

from ipmasq_agent.errors import HostError
from ipmasq_agent.netlink import core as netlink
from ipmasq_agent.netlink.attributes import attribute, nested, pack
from ipmasq_agent.netlink.core import ACKNOWLEDGE, CREATE, EXCLUSIVE, REQUEST
from ipmasq_agent.netlink.nf import NETLINK_NETFILTER, prefix
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.flows import Flow

_NEW_CONNECTION = 1 << 8  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_NEW
_ORIGINAL, _REPLY, _STATUS, _PROTOCOL_INFO, _TIMEOUT = 1, 2, 3, 4, 7  # CTA_...
_ADDRESSES, _PORTS = 1, 2  # CTA_TUPLE_IP, CTA_TUPLE_PROTO
_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3  # CTA_PROTO_...
_ENDS = {Family.IPV4: (1, 2), Family.IPV6: (3, 4)}  # CTA_IP_V4_SRC, CTA_IP_V4_DST...
_TCP, _TCP_STATE, _TCP_FLAGS = 1, 1, (4, 5)  # CTA_PROTOINFO_TCP..., of either direction
_ESTABLISHED = b"\x03"
# Its window is not known: IP_CT_TCP_FLAG_BE_LIBERAL, and the mask of what is set.
_LIBERAL = b"\x08\x08"
# Packets both ways were seen, so that none is taken for the first; it is in the table.
_SEEN = struct.pack(">I", 1 << 1 | 1 << 2 | 1 << 3)  # IPS_SEEN_REPLY, _ASSURED, _CONFIRMED
_AT_ONCE = 256  # so that answers fit into the socket's buffer


def introduce(connections: Iterable[tuple[Flow, int]]) -> int:
    """Tell connection tracking of connections; those that it knows stay as they are.

    Args:
        connections: of TCP or UDP; they are told as their first packets had them, without any
            translation. With each the seconds without a packet until it is forgotten.

    Returns:
        How many were new to it.

    Raises:
        HostError: the kernel has no connection tracking, or its table is full.
    """
    new = 0
    pending = iter(connections)
    try:
        with netlink.connect(NETLINK_NETFILTER) as kernel:
            answers = netlink.acknowledgements(kernel)
            while some := list(islice(pending, _AT_ONCE)):
                kernel.send(b"".join(map(_message, range(len(some)), some)))
                for answer in islice(answers, len(some)):
                    if answer.code != errno.EEXIST:
                        netlink.check(answer.code)
                        new += 1
    except OSError as cause:
        raise HostError(
            f"connection tracking cannot be told of connections: {cause}",
            remedy="those that are open may break; raise net.netfilter.nf_conntrack_max if its "
            "table is full",
        ) from cause
    return new


def _message(sequence: int, connection: tuple[Flow, int]) -> bytes:
    flow, seconds = connection
    one, other = _SOURCE_PORT, _DESTINATION_PORT
    body = (
        _tuple(_ORIGINAL, flow, _ENDS[flow.family], (one, other))
        + _tuple(_REPLY, flow, _ENDS[flow.family][::-1], (other, one))
        + attribute(_STATUS, _SEEN)
        + attribute(_TIMEOUT, struct.pack(">I", seconds))
    )
    if flow.protocol == socket.IPPROTO_TCP:
        liberal = (attribute(kind, _LIBERAL) for kind in _TCP_FLAGS)
        body += nested(_PROTOCOL_INFO, nested(_TCP, attribute(_TCP_STATE, _ESTABLISHED), *liberal))
    flags = REQUEST | CREATE | EXCLUSIVE | ACKNOWLEDGE
    body = prefix(flow.family) + body
    return pack(_NEW_CONNECTION, flags, sequence, body)


def _tuple(kind: int, flow: Flow, ends: tuple[int, int], ports: tuple[int, int]) -> bytes:
    """Return what packets of one direction have; source and destination as ``ends`` say."""
    size = flow.family.bits // 8
    return nested(
        kind,
        nested(
            _ADDRESSES,
            attribute(ends[0], flow.source.address.to_bytes(size)),
            attribute(ends[1], flow.destination.address.to_bytes(size)),
        ),
        nested(
            _PORTS,
            attribute(_NUMBER, bytes([flow.protocol])),
            attribute(ports[0], struct.pack(">H", flow.source.port)),
            attribute(ports[1], struct.pack(">H", flow.destination.port)),
        ),
    )
