"""The connections that connection tracking knows, as the kernel lists them, and is told of.

ctnetlink. Attribute numbers and bits: include/uapi/linux/netfilter/nfnetlink_conntrack.h and
nf_conntrack_common.h.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from ipmasq_agent.errors import HostError, KernelReadError
from ipmasq_agent.netlink import core as netlink
from ipmasq_agent.netlink.attributes import attribute, attributes, nested, number, pack
from ipmasq_agent.netlink.core import ACKNOWLEDGE, CREATE, EXCLUSIVE, REQUEST
from ipmasq_agent.netlink.nf import NETLINK_NETFILTER, prefix
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.flows import ICMP, End, Flow
from ipmasq_agent.policy.ports import IDENTIFIERS, PortPools, PortUse, fullest
from ipmasq_agent.policy.tally import Tally, tally

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
_ENDS = {Family.IPV4: (1, 2), Family.IPV6: (3, 4)}  # CTA_IP_V4_SRC, CTA_IP_V4_DST...
_NUMBER, _SOURCE_PORT, _DESTINATION_PORT, _ICMP_ID, _ICMPV6_ID = 1, 2, 3, 4, 7  # CTA_PROTO_...
# As one of these a message has the port with which its packets leave.
_OF_PORT = (_DESTINATION_PORT, _ICMP_ID, _ICMPV6_ID)
# What a kernel without nfnetlink, or without its part for connections, answers.
_NO_TRACKING = frozenset({errno.EPROTONOSUPPORT, errno.EINVAL, errno.EOPNOTSUPP})
_COUNT = Path("/proc/sys/net/netfilter/nf_conntrack_count")  # there where connections are tracked


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


def tracked(port: int | None = None) -> Iterator[Flow]:
    """Yield the connections of both families; none where the kernel tracks none.

    The list is of no one moment: what begins or ends while it is read may be in it or not.

    Args:
        port: with which they leave; most others are then passed over without a look.
    """
    if port is None:
        return filter(None, map(flow_of, _listed()))
    named = [attribute(kind, port.to_bytes(2)) for kind in _OF_PORT]
    bodies = (body for body in _listed() if any(each in body for each in named))
    return (flow for flow in map(flow_of, bodies) if flow and flow.left_as.port == port)


def _listed(filtered: bytes = b"") -> Iterator[bytes]:
    """Yield what the kernel tells of each connection; see ``tracked``."""
    try:
        yield from netlink.stream(NETLINK_NETFILTER, _GET, prefix(_ANY_FAMILY) + filtered)
    except OSError as cause:
        if cause.errno in _NO_TRACKING:
            if not _COUNT.exists():
                return
            raise KernelReadError(
                f"connections are tracked, but their list cannot be had: {cause}",
                remedy="load nf_conntrack_netlink",
            ) from cause
        raise KernelReadError(
            f"connection tracking cannot be asked for its connections: {cause}",
            remedy="run as root, or with the capability NET_ADMIN",
        ) from cause


def flow_of(message: bytes, at: int = 0) -> Flow | None:
    """Return the connection that a message tells of; None for one that is not of IP."""
    at += _ATTRIBUTES
    found = _usual(message, at)
    if found is None:
        return _flow_of_any(message, at)
    family, parts = found
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
        _answered(message, at + _SHAPES[family][0].size),
    )


def _usual(message: bytes, at: int) -> tuple[Family, tuple[Any, ...]] | None:
    """Return family and parts of a message that is laid out as usual (see ``_shape``)."""
    for family, (shape, heads) in _SHAPES.items():
        if len(message) - at >= shape.size:
            parts = shape.unpack_from(message, at)
            if parts[::2] == heads:
                return family, parts
    return None


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
    if first is None or answer is None or first[0] is not answer[0]:
        return None
    family, protocol, source, destination = first
    _, _, reached, left_as = answer
    if protocol in ICMP:  # the identifier is of the end that asks, in both directions
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
                    protocol = int.from_bytes(content[:1])
                elif part in (_SOURCE_PORT, _ICMP_ID, _ICMPV6_ID):
                    source_port = int.from_bytes(content[:2])
                elif part == _DESTINATION_PORT:
                    destination_port = int.from_bytes(content[:2])
    for family, kinds in _ENDS.items():
        ends = [addresses.get(kind, b"") for kind in kinds]
        if all(len(end) * 8 == family.bits for end in ends):
            source, destination = map(int.from_bytes, ends)
            return family, protocol, End(source, source_port), End(destination, destination_port)
    return None


# -- telling it of connections that began before it was there ------------------------------

_PROTOCOL_INFO, _TIMEOUT = 4, 7  # CTA_...
_TCP, _TCP_STATE, _TCP_FLAGS = 1, 1, (4, 5)  # CTA_PROTOINFO_TCP..., of either direction
_ESTABLISHED = b"\x03"
# Its window is not known: IP_CT_TCP_FLAG_BE_LIBERAL, and the mask of what is set.
_LIBERAL = b"\x08\x08"
# Packets both ways were seen, so that none is taken for the first; it is in the table.
_SEEN = struct.pack(">I", _SEEN_REPLY | 1 << 2 | 1 << 3)  # ..., IPS_ASSURED, IPS_CONFIRMED
_AT_ONCE = 256  # so that answers fit into the socket's buffer


def introduce(connections: Iterable[tuple[Flow, int]]) -> int:
    """Tell connection tracking of connections; those that it knows stay as they are.

    It takes the first packet that it meets for the first of a connection, and asks the nat
    table about it; so a node that begins to track gives connections in their middle another
    port, or another address. What it is told of, it leaves as it is.

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
                kernel.send(b"".join(map(_introduction, range(len(some)), some)))
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


def _introduction(sequence: int, connection: tuple[Flow, int]) -> bytes:
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
    return pack(CONNECTIONS, flags, sequence, body)


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
            _PROTOCOL,
            attribute(_NUMBER, bytes([flow.protocol])),
            attribute(ports[0], struct.pack(">H", flow.source.port)),
            attribute(ports[1], struct.pack(">H", flow.destination.port)),
        ),
    )


# -- which ports are in use ----------------------------------------------------------------

# Those whose source is translated (IPS_SRC_NAT) are asked for alone: Linux leaves the others out
# since 5.18.
_TRANSLATED = attribute(_STATUS, struct.pack(">I", 1 << 4))


def ports_taken(pools: PortPools, most: int) -> Tally[PortUse]:
    """Count translated connections by what shares ports."""
    found = tally(_shared(pools.of_port))
    counts = {}
    for (family, protocol, address, to, port, place), count in found.counts.items():
        pool = IDENTIFIERS if protocol in ICMP else pools.pools[place]
        if family is Family.IPV6:
            address, to = map(int.from_bytes, (address, to))
        counts[PortUse(family, protocol, address, End(to, port), pool)] = count
    return Tally(fullest(counts, most), found.missed)


def _shared(of_port: bytes) -> Iterator[tuple[Family, int, Any, Any, int, int]]:
    """Yield the fields of a ``PortUse`` for each translated connection; addresses of IPv6 as bytes.

    No ``Flow`` is made of them: that takes twice as long.
    """
    for body in _listed(_TRANSLATED):
        found = _usual(body, _ATTRIBUTES)
        if found is not None:
            family, parts = found
            if parts[1] != parts[13] or parts[7] != parts[19]:  # source and port, and those back
                yield family, parts[15], parts[13], parts[11], parts[17], of_port[parts[19]]
            continue
        flow = _flow_of_any(body, _ATTRIBUTES)
        if flow is not None and flow.translated and flow.protocol in ICMP:
            ends: tuple[Any, Any] = flow.left_as.address, flow.reached.address
            if flow.family is Family.IPV6:
                ends = ends[0].to_bytes(16), ends[1].to_bytes(16)
            yield flow.family, flow.protocol, *ends, 0, 0
