"""The connections that connection tracking knows, one by one as the kernel lists them.

ctnetlink. Attribute numbers and bits: include/uapi/linux/netfilter/nfnetlink_conntrack.h and
nf_conntrack_common.h.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator

from ipmasq_agent.errors import KernelReadError
from ipmasq_agent.netlink import core as netlink
from ipmasq_agent.netlink.attributes import attribute, attributes, nested, number
from ipmasq_agent.netlink.nf import NETLINK_NETFILTER, prefix
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.flows import End, Flow

CONNECTIONS = 1 << 8
"""NFNL_SUBSYS_CTNETLINK: kinds of messages begin there."""
_GET = CONNECTIONS | 1  # IPCTNL_MSG_CT_GET
_ANY_FAMILY = 0  # AF_UNSPEC
_ATTRIBUTES = 4  # where they begin, after struct nfgenmsg
_ORIGINAL, _REPLY, _STATUS = 1, 2, 3  # CTA_...
_STATUS_ALONE = frozenset({_STATUS})
_OF_FLOW = frozenset({_ORIGINAL, _REPLY, _STATUS})
_SEEN_REPLY = 1 << 1  # IPS_SEEN_REPLY
_ADDRESSES, _PROTOCOL = 1, 2  # CTA_TUPLE_IP, CTA_TUPLE_PROTO
_V4_SOURCE, _V4_DESTINATION, _V6_SOURCE, _V6_DESTINATION = 1, 2, 3, 4  # CTA_IP_...
_NUMBER, _SOURCE_PORT, _DESTINATION_PORT, _ICMP_ID, _ICMPV6_ID = 1, 2, 3, 4, 7  # CTA_PROTO_...
_ICMP = frozenset({socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6})
# What a kernel without nfnetlink, or without its part for connections, answers.
_NO_TRACKING = frozenset({errno.EPROTONOSUPPORT, errno.EINVAL, errno.EOPNOTSUPP})


def _shape(size: int) -> tuple[struct.Struct, tuple[bytes, ...]]:
    """Return how two directions of packets with ports are laid out, as all kernels write them.

    Headers and values in turn: most messages are taken apart in one step by it.
    """
    address = "I" if size == 4 else f"{size}s"
    one = f"12s{address}4s{address}8sB3x4sH2x4sH2x"
    shape = struct.Struct(f">{one}{one}")
    first, second = (1, 2) if size == 4 else (3, 4)
    heads: list[bytes] = []
    for direction in (_ORIGINAL, _REPLY):
        source, destination = (attribute(kind, bytes(size)) for kind in (first, second))
        ports = attribute(_NUMBER, b"0"), attribute(_SOURCE_PORT, b"00")
        body = nested(_ADDRESSES, source, destination) + nested(
            _PROTOCOL, *ports, attribute(_DESTINATION_PORT, b"00")
        )
        heads += struct.unpack(f">{one}", nested(direction, body))[::2]
    return shape, tuple(heads)


_SHAPES = {Family.IPV4: _shape(4), Family.IPV6: _shape(16)}


def tracked() -> Iterator[Flow]:
    """Yield the connections of both families; none where the kernel tracks none.

    The list is of no one moment: what begins or ends while it is read may be in it or not.

    Raises:
        KernelReadError: the kernel refuses.
    """
    try:
        for body in netlink.stream(NETLINK_NETFILTER, _GET, prefix(_ANY_FAMILY)):
            flow = flow_of(body)
            if flow is not None:
                yield flow
    except OSError as cause:
        if cause.errno in _NO_TRACKING:
            return
        raise KernelReadError(
            f"connection tracking cannot be asked for its connections: {cause}",
            remedy="run as root, or with the capability NET_ADMIN",
        ) from cause


def flow_of(message: bytes, at: int = 0) -> Flow | None:
    """Return the connection that a message tells of; None for one that is not of IP.

    Args:
        message: what it is in.
        at: where its body begins.
    """
    at += _ATTRIBUTES
    for family, (shape, heads) in _SHAPES.items():
        if len(message) - at < shape.size:
            continue
        parts = shape.unpack_from(message, at)
        if parts[::2] == heads:
            source, destination, protocol, *ports = parts[1:10:2]
            reached, left_as, _, *others = parts[11::2]
            if family is Family.IPV6:
                source, destination, reached, left_as = map(
                    int.from_bytes, (source, destination, reached, left_as)
                )
            return Flow(
                family,
                protocol,
                End(source, ports[0]),
                End(destination, ports[1]),
                End(left_as, others[1]),
                End(reached, others[0]),
                _answered(message, at + shape.size),
            )
    return _flow_of_any(message, at)


def _answered(message: bytes, at: int) -> bool:
    status = next(attributes(message, at, _STATUS_ALONE), (0, b""))
    return bool(number(status[1]) & _SEEN_REPLY)


def _flow_of_any(message: bytes, at: int) -> Flow | None:
    status = b""
    tuples: dict[int, bytes] = {}
    for kind, value in attributes(message, at, _OF_FLOW):
        if kind == _STATUS:
            status = value
        else:
            tuples[kind] = value
    if len(tuples) != 2:
        return None
    first, answer = _ends(tuples[_ORIGINAL]), _ends(tuples[_REPLY])
    if first is None or answer is None:
        return None
    family, protocol, source, destination = first
    _, _, reached, left_as = answer
    if protocol in _ICMP:  # the identifier is of the end that asks, in both directions
        left_as, reached = End(left_as.address, reached.port), End(reached.address, 0)
    seen = bool(number(status) & _SEEN_REPLY)
    return Flow(family, protocol, source, destination, left_as, reached, seen)


def _ends(data: bytes) -> tuple[Family, int, End, End] | None:
    """Return family, protocol, source and destination of one direction's packets."""
    addresses: dict[int, bytes] = {}
    protocol = source_port = destination_port = 0
    for kind, value in attributes(data):
        if kind == _ADDRESSES:
            addresses = dict(attributes(value))
        elif kind == _PROTOCOL:
            for part, content in attributes(value):
                if part == _NUMBER:
                    protocol = content[0]
                elif part in (_SOURCE_PORT, _ICMP_ID, _ICMPV6_ID):
                    source_port = int.from_bytes(content)
                elif part == _DESTINATION_PORT:
                    destination_port = int.from_bytes(content)
    if _V4_SOURCE in addresses:
        family, ends = Family.IPV4, (addresses[_V4_SOURCE], addresses[_V4_DESTINATION])
    elif _V6_SOURCE in addresses:
        family, ends = Family.IPV6, (addresses[_V6_SOURCE], addresses[_V6_DESTINATION])
    else:
        return None
    source, destination = map(int.from_bytes, ends)
    return family, protocol, End(source, source_port), End(destination, destination_port)
