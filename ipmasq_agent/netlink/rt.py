"""Links, addresses and routes as the kernel lists them.

rtnetlink(7). Message and attribute numbers: include/uapi/linux/{rtnetlink,if_link,if_addr}.h.

Whatever asks raises ``KernelReadError`` where the kernel refuses, or never stands still.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Container, Iterator, Mapping
from enum import IntEnum
from typing import NamedTuple

from ipmasq_agent.errors import KernelReadError
from ipmasq_agent.netlink import core as netlink
from ipmasq_agent.netlink.attributes import (
    aligned,
    attribute,
    attributes,
    fields,
    host_number,
    text,
)
from ipmasq_agent.policy.addresses import Family

_GET_LINK, _GET_ADDRESS, _GET_ROUTE, _GET_NEIGHBOUR, _GET_RULE = 18, 22, 26, 30, 34
_LINK = struct.Struct("=BxHiII")  # struct ifinfomsg
_ADDRESS = struct.Struct("=BBBBI")
_ROUTE = struct.Struct("=BBBBBBBBI")
_NEXT_HOP = struct.Struct("=HBBi")
_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # struct ndmsg
_PROXY, _NEIGHBOUR_ADDRESS = 0x08, 1  # NTF_PROXY, NDA_DST
# Leave the counters out: they are most of what the kernel has to say about a device.
_WITHOUT_COUNTERS = struct.pack("=HHI", 8, 29, 1 << 3)  # IFLA_EXT_MASK, ..._SKIP_STATS
_LINK_ADDRESS, _LINK_NAME, _LINK_MTU, _LINK_MASTER, _LINK_INFO = 1, 3, 4, 10, 18
_INFO_KIND, _INFO_DATA, _INFO_SLAVE = 1, 2, 5
_LINK_NETNSID = 37  # only where it is another one (rtnl_fill_link_netnsid)
_PORT_HAIRPIN = 4  # IFLA_BRPORT_MODE
_VXLAN_REMOTES, _VXLAN_LOWER = {2: Family.IPV4, 16: Family.IPV6}, 3  # IFLA_VXLAN_GROUP..., _LINK
_ADDRESS_ADDRESS, _ADDRESS_LOCAL, _ADDRESS_FLAGS = 1, 2, 8
# IFA_F_...: what IPv6 calls temporary is a second one of its subnet in IPv4.
_SECONDARY = _TEMPORARY = 0x01
_OPTIMISTIC, _DEPRECATED, _TENTATIVE = 0x04, 0x20, 0x40
_ROUTE_DESTINATION, _ROUTE_FROM, _ROUTE_INWARD, _ROUTE_DEVICE, _ROUTE_GATEWAY = 1, 2, 3, 4, 5
_ROUTE_METRIC, _ROUTE_SOURCE, _ROUTE_MULTIPATH, _ROUTE_TABLE, _ROUTE_VIA = 6, 7, 9, 15, 18
_ROUTE_MARK, _RULE_MARK = 16, 10  # RTA_MARK, FRA_FWMARK
_OF_LINK = frozenset(
    {_LINK_ADDRESS, _LINK_NAME, _LINK_INFO, _LINK_NETNSID, _LINK_MTU, _LINK_MASTER}
)
# What the kernel answers for RTN_BLACKHOLE, RTN_UNREACHABLE, RTN_PROHIBIT, and where it would
# not forward from a source (ip_route_input, fib_validate_source); in IPv6 it may show the route.
_REFUSING = frozenset({6, 7, 8})
_NO_ROUTE = frozenset(
    {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL, errno.EXDEV}
)
_CLONED, _DEAD = 0x200, 0x1
_SCOPE_UNIVERSE, _SCOPE_LINK = 0, 253
_FAMILIES = {socket.AF_INET: Family.IPV4, socket.AF_INET6: Family.IPV6}
_NUMBERS = {family: value for value, family in _FAMILIES.items()}


class RouteKind(IntEnum):
    """RTN_...: what becomes of packets that a route takes; there are more than these."""

    UNICAST = 1
    LOCAL = 2
    BROADCAST = 3
    ANYCAST = 4
    MULTICAST = 5


# enum rt_class_t. Forwarded packets come to these where no rule of the node's (ip-rule(8))
# sends them elsewhere.
DEFAULT_TABLE, MAIN_TABLE = 253, 254


class Link(NamedTuple):
    """A device.

    Attributes:
        kind: as ``ip -d link`` shows it; "" for hardware.
        hardware: ARPHRD_... of include/uapi/linux/if_arp.h, 1 for Ethernet.
        leads_away: what it is tied to (the other end of a veth) is in another network
            namespace.
        mac: its address of the link, as long as such are; b"" where it has none.
        mtu: the largest packet that it takes, in bytes.
        master: the number of the bridge that it is a port of; 0 for none.
        hairpin: as a port, it sends frames back to where they came from.
        lower: of a VXLAN, the number of the device that it is bound to; 0 for none.
        remote: of a VXLAN, its one other end, or its multicast group.
    """

    number: int
    name: str
    kind: str
    hardware: int = 1
    leads_away: bool = False
    mac: bytes = b""
    mtu: int = 0
    master: int = 0
    hairpin: bool = False
    lower: int = 0
    remote: tuple[Family, int] | None = None


class Address(NamedTuple):
    """An address of a device.

    Attributes:
        length: of its subnet's prefix.
        scope: RT_SCOPE_...
        flags: IFA_F_...
    """

    device: int
    family: Family
    address: int
    length: int
    scope: int
    flags: int

    @property
    def reaches_out(self) -> bool:
        """Whether it is of more than the link's or the host's scope."""
        return self.scope < _SCOPE_LINK

    @property
    def may_masquerade(self) -> bool:
        """Whether masquerading may take it at all.

        In IPv4 the first of a subnet alone (inet_select_addr, net/ipv4/devinet.c), in IPv6
        only one that is known to be nobody else's (__ipv6_dev_get_saddr, net/ipv6/addrconf.c).
        """
        if self.family is Family.IPV4:
            return self.scope == _SCOPE_UNIVERSE and not self.flags & _SECONDARY
        return self.reaches_out and self.flags & (_TENTATIVE | _OPTIMISTIC) != _TENTATIVE

    @property
    def is_link_local(self) -> bool:
        """Whether it is good on one link alone."""
        return self.scope == _SCOPE_LINK

    @property
    def drawbacks(self) -> tuple[bool, bool, bool]:
        """What makes others better in IPv6, from much to little.

        It is deprecated; of RFC 4193, where destinations outside are none of those; or for
        privacy, which forwarding does not prefer.
        """
        if self.family is Family.IPV4:  # there that is asked for new sockets alone
            return False, False, False
        unique_local = self.address >> 121 == 0xFC00 >> 9
        return bool(self.flags & _DEPRECATED), unique_local, bool(self.flags & _TEMPORARY)

    def shares_subnet(self, other: int) -> bool:
        """Return whether another address of the family is in the subnet of this one."""
        return (self.address ^ other) >> self.family.bits - self.length == 0


class Route(NamedTuple):
    """A unicast route that forwarded packets may take.

    Attributes:
        family: of its destination.
        first: the lowest address of its destination.
        length: of its destination's prefix.
        table: number of its table; 254 is main, 253 default.
        metric: the lower one wins among routes of one table to one destination.
        source: the preferred source address, or None where the route leaves it to the device.
        hops: device → the gateway there, None for none; several where it is multipath.
    """

    family: Family
    first: int
    length: int
    table: int
    metric: int
    source: int | None
    hops: Mapping[int, int | None]


def list_links() -> list[Link]:
    """Return the devices of this network namespace."""
    links = []
    for body in dump(_GET_LINK, _LINK.pack(0, 0, 0, 0, 0) + _WITHOUT_COUNTERS, "its devices"):
        _, hardware, index, _, _ = _LINK.unpack_from(body)
        found = fields(body, _LINK.size, _OF_LINK)
        info = fields(found.get(_LINK_INFO, b""))
        kind = text(info.get(_INFO_KIND))
        link = Link(
            index,
            text(found.get(_LINK_NAME)),
            kind,
            hardware,
            _LINK_NETNSID in found,
            found.get(_LINK_ADDRESS, b""),
            host_number(found.get(_LINK_MTU)),
            host_number(found.get(_LINK_MASTER)),
        )
        if _INFO_SLAVE in info:
            hairpin = fields(info[_INFO_SLAVE]).get(_PORT_HAIRPIN, b"")
            link = link._replace(hairpin=any(hairpin))
        if kind == "vxlan":
            data = fields(info.get(_INFO_DATA, b""))
            remote = next(
                ((f, int.from_bytes(data[a])) for a, f in _VXLAN_REMOTES.items() if a in data), None
            )
            link = link._replace(lower=host_number(data.get(_VXLAN_LOWER)), remote=remote)
        links.append(link)
    return links


def tunnel_ends() -> set[tuple[Family, int]]:
    """Return the addresses to which forwarding tables of VXLAN devices send frames."""
    ends: set[tuple[Family, int]] = set()
    request = _NEIGHBOUR.pack(socket.AF_BRIDGE, 0, 0, 0, 0)
    for body in dump(_GET_NEIGHBOUR, request, "its forwarding tables"):
        packed = fields(body, _NEIGHBOUR.size).get(_NEIGHBOUR_ADDRESS, b"")
        ends |= {(f, int.from_bytes(packed)) for f in Family if len(packed) * 8 == f.bits}
    return ends


def list_addresses() -> list[Address]:
    """Return the addresses of all devices, in the order in which the kernel has them."""
    found = []
    for body in dump(_GET_ADDRESS, _ADDRESS.pack(0, 0, 0, 0, 0), "its addresses"):
        protocol, length, flags, scope, index = _ADDRESS.unpack_from(body)
        family = _FAMILIES.get(protocol)
        if family is None:
            continue
        values = fields(body, _ADDRESS.size)
        # IFA_ADDRESS is the peer's on a point-to-point device; IPv6 has no IFA_LOCAL there.
        data = values.get(_ADDRESS_LOCAL, values.get(_ADDRESS_ADDRESS, b""))
        flags = host_number(values.get(_ADDRESS_FLAGS), flags)
        found.append(Address(index, family, int.from_bytes(data), length, scope, flags))
    return found


def list_routes(
    family: Family,
    *,
    longest: int | None = None,
    kinds: Container[int] | None = frozenset({RouteKind.UNICAST}),
) -> Iterator[Route]:
    """Yield the routes of every table.

    Left out are cached routes, routes whose next hop is dead, and those for some sources
    (IPv6 subtrees) or some values of TOS only.

    Args:
        family: of the destinations.
        longest: leave out longer prefixes; 0 for default routes alone.
        kinds: those that are meant; None for all.
    """
    request = _ROUTE.pack(_NUMBERS[family], 0, 0, 0, 0, 0, 0, 0, 0)
    for body in dump(_GET_ROUTE, request, f"its {family.value} routes"):
        protocol, length, source_length, tos, table, _, _, kind, flags = _ROUTE.unpack_from(body)
        # A kernel without the family lists the routes of others (rtnl_dump_all).
        if (
            _FAMILIES.get(protocol) is not family
            or (kinds is not None and kind not in kinds)
            or source_length
            or tos
        ):
            continue
        if flags & (_CLONED | _DEAD) or (longest is not None and length > longest):
            continue
        found = fields(body, _ROUTE.size)
        source = found.get(_ROUTE_SOURCE)
        yield Route(
            family,
            int.from_bytes(found.get(_ROUTE_DESTINATION, b"")),
            length,
            host_number(found.get(_ROUTE_TABLE), table),
            host_number(found.get(_ROUTE_METRIC)),
            None if source is None else int.from_bytes(source),
            dict(_hops(found)),
        )


class Lookup(NamedTuple):
    """Where a packet would be sent.

    Attributes:
        kind: RTN_..., as in ``RouteKind``.
        device: its number; 0 for none.
        gateway: of the packet's family.
        through_gateway: of whatever family.
        source: the address that the node gives packets of its own.
    """

    kind: int
    device: int
    gateway: int | None
    through_gateway: bool
    source: int | None


def look_up(
    family: Family,
    address: int,
    source: int | None = None,
    inward: int | None = None,
    mark: int = 0,
) -> Lookup | None:
    """Return the route to an address, by all rules and tables; None where there is none.

    It is that of the node's own packets, or of those from a source that come in by a device.
    """
    size, source_length = family.bits // 8, 0 if source is None else family.bits
    request = _ROUTE.pack(_NUMBERS[family], family.bits, source_length, 0, 0, 0, 0, 0, 0)
    request += attribute(_ROUTE_DESTINATION, address.to_bytes(size))
    if source is not None:
        request += attribute(_ROUTE_FROM, source.to_bytes(size))
    for kind, value in ((_ROUTE_INWARD, inward), (_ROUTE_MARK, mark)):
        request += attribute(kind, struct.pack("=I", value)) if value else b""
    try:
        body = netlink.ask(socket.NETLINK_ROUTE, _GET_ROUTE, request)
        if body is not None:
            netlink.whole(body, _ROUTE.size)
    except OSError as cause:
        if cause.errno in _NO_ROUTE:
            return None
        raise refused("for the route to an address", cause) from cause
    if body is None or (kind := _ROUTE.unpack_from(body)[7]) in _REFUSING:
        return None
    found = fields(body, _ROUTE.size)
    own = found.get(_ROUTE_SOURCE)
    return Lookup(
        kind,
        host_number(found.get(_ROUTE_DEVICE)),
        _gateway(found),
        bool(found.keys() & {_ROUTE_GATEWAY, _ROUTE_VIA}),
        None if own is None else int.from_bytes(own),
    )


def routing_marks(family: Family) -> set[int]:
    """Return the marks of packets that rules of policy routing (``ip rule``) look for."""
    bodies = dump(_GET_RULE, _ROUTE.pack(_NUMBERS[family], 0, 0, 0, 0, 0, 0, 0, 0), "its rules")
    marks = {host_number(fields(body, _ROUTE.size).get(_RULE_MARK)) for body in bodies}
    return marks - {0}


def proxies(family: Family, address: int) -> set[int]:
    """Return the devices on which an address is to be answered for (``neighbour add proxy``)."""
    asked = _NEIGHBOUR_ADDRESS, address.to_bytes(family.bits // 8)
    found = set()
    for body in dump(
        _GET_NEIGHBOUR, _NEIGHBOUR.pack(_NUMBERS[family], 0, 0, _PROXY, 0), "its proxies"
    ):
        _, device, _, flags, _ = _NEIGHBOUR.unpack_from(body)
        if flags & _PROXY and asked in attributes(body, _NEIGHBOUR.size):
            found.add(device)
    return found


def _hops(found: dict[int, bytes]) -> Iterator[tuple[int, int | None]]:
    """Yield devices and gateways, of the route's own attributes or of its next hops."""
    if _ROUTE_DEVICE in found:
        yield host_number(found[_ROUTE_DEVICE]), _gateway(found)
    hops = found.get(_ROUTE_MULTIPATH, b"")
    position = 0
    while position + _NEXT_HOP.size <= len(hops):
        length, flags, _, index = _NEXT_HOP.unpack_from(hops, position)
        if not flags & _DEAD:
            of_hop = hops[position : position + length]
            yield index, _gateway(fields(of_hop, _NEXT_HOP.size))
        position += max(aligned(length), _NEXT_HOP.size)


def _gateway(found: dict[int, bytes]) -> int | None:
    return int.from_bytes(found[_ROUTE_GATEWAY]) if _ROUTE_GATEWAY in found else None


def dump(kind: int, request: bytes, what: str) -> list[bytes]:
    """Return the bodies of a whole list, asked for again while it changes meanwhile."""

    def take(body: bytes) -> bytes:
        # Each begins with a struct of the kind that the request begins with.
        return netlink.whole(body, len(request))

    try:
        bodies = netlink.dump(socket.NETLINK_ROUTE, kind, request, take)
    except OSError as cause:
        raise refused(f"for {what}", cause) from cause
    if bodies is None:
        raise KernelReadError(f"the kernel never stood still while it listed {what}")
    return bodies


def refused(what: str, cause: OSError) -> KernelReadError:
    """Return the error of a question that the kernel does not take."""
    return KernelReadError(
        f"the kernel cannot be asked {what}: {cause}",
        remedy="allow sockets of the family AF_NETLINK to the agent",
    )
