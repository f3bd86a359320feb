"""What the node's routes say: the way out, preferred sources, and whether replies arrive.

What the kernel cannot be asked is a KernelReadError.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Sequence
from itertools import product

from ipmasq_agent.host.devices import masquerading_source
from ipmasq_agent.host.sysctl import setting
from ipmasq_agent.netlink import rt
from ipmasq_agent.netlink.rt import (
    DEFAULT_TABLE,
    MAIN_TABLE,
    RouteKind,
    list_addresses,
    list_links,
    list_routes,
)
from ipmasq_agent.policy.addresses import Family, Prefix
from ipmasq_agent.policy.facts import DroppedReply, WayOut

# -- where a packet leaves --------------------------------------------------------------


class WaysOut:
    """Where packets leave the node as it is now: its devices and addresses are asked for once."""

    def __init__(self) -> None:
        self._names = {link.number: link.name for link in list_links()}
        self._addresses = list_addresses()

    def look_up(self, family: Family, to: int, source: int | None) -> WayOut:
        """Return where a packet to an address would leave; an empty WayOut where nowhere.

        The look-up is that of a forwarded packet where ``source`` is an address behind this
        node. The address is the one that MASQUERADE takes, which is not the route's preferred
        source: for IPv4 that of ``masquerading_source``, for IPv6 what source address selection
        gives for the device.
        """
        route = _route(family, to, source)
        if route is None or not route.device:
            return WayOut()
        device = self._names.get(route.device)
        if route.kind == RouteKind.LOCAL:
            return WayOut(device, family.show(to), True)
        if family is Family.IPV6:
            plain = rt.look_up(family, to)
            address = plain.source if plain else None
        else:
            found = masquerading_source(
                (one for one in self._addresses if one.family is family),
                route.device,
                to if route.gateway is None else route.gateway,
            )
            address = None if found is None else found.address
        return WayOut(device, None if address is None else family.show(address))


def _route(family: Family, destination: int, source: int | None) -> rt.Lookup | None:
    """Return the route of a packet that comes from behind this node, where it would forward it."""
    inward = None if source is None else rt.look_up(family, source)
    forwarded = None
    if inward is not None and inward.device and inward.kind != RouteKind.LOCAL:
        forwarded = rt.look_up(family, destination, source, inward.device)
    return forwarded or rt.look_up(family, destination)


def turns(family: Family, first: int, last: int) -> list[int]:
    """Return where, from ``first`` to ``last``, another route may begin to lead.

    Ascending, and without ``first``: no route of any table begins or ends between two of them.
    The address of zeros is routed as the node's own (ip_route_output_key_hash_rcu).
    """
    edges = {1} if first == 0 else set()
    for route in list_routes(family, kinds=None):
        length = 1 << family.bits - route.length
        edges |= {edge for edge in (route.first, route.first + length) if first < edge <= last}
    return sorted(edges)


def dropped_replies(
    pods: Sequence[tuple[int, int]], destinations: Sequence[int]
) -> Iterator[DroppedReply]:
    """Yield replies to pods which would be dropped as they come in, in IPv4.

    A reply is taken to come back through the device that the packet left by, and to have no
    mark itself. The kernel is asked whether its strict reverse path filter lets it in. Each
    device is told once for packets without a mark, else once for each mark that rules of policy
    routing look for: whether packets of pods have that is another question.

    Args:
        pods: addresses behind this node, each with the number of the device that it is behind.
        destinations: that see the pods' own addresses.
    """
    names = {link.number: link.name for link in list_links()}
    most = setting("ipv4/conf/all/rp_filter") or 0
    strict = {
        number
        for number, name in names.items()
        if max(most, setting(f"ipv4/conf/{name}/rp_filter") or 0) == 1
    }
    if not strict:
        return
    told: set[tuple[int, int]] = set()
    marks = (0, *sorted(rt.routing_marks(Family.IPV4)))
    for mark, (pod, inward), destination in product(marks, pods, destinations):
        way = rt.look_up(Family.IPV4, destination, pod, inward, mark)
        if way is None or way.kind != RouteKind.UNICAST or way.device not in strict:
            continue
        if told & {(way.device, 0), (way.device, mark)}:
            continue
        if rt.look_up(Family.IPV4, pod, destination, way.device) is None:
            told.add((way.device, mark))
            yield DroppedReply(names[way.device], Family.IPV4.show(destination), mark)


# -- which source address routes prefer -------------------------------------------------

PreferredSources = tuple[tuple[Prefix, int | None], ...]


def preferred_sources() -> PreferredSources:
    """Return destination and preferred source of the routes that forwarded packets take.

    The longest prefix decides for an address, as in the kernel. A route that prefers what
    the shorter one around it prefers is left out, as are those of pods on most nodes: it
    changes nothing, and comes and goes with its pod.

    These are the unicast routes of the main table, then those of the default table: what
    decides on a node without rules of its own (`ip rule` shows ``lookup main`` and
    ``lookup default``). Rules that choose another table by source, mark or device of the
    packet are not followed, since an address alone does not tell which packets they take:
    with these, name the addresses in the document.
    """
    return _summarised(route for family in Family for route in list_routes(family))


def _summarised(routes: Iterable[rt.Route]) -> PreferredSources:
    """Return the fewest prefixes that say the same as ``routes``, sorted."""
    order = (MAIN_TABLE, DEFAULT_TABLE)
    best: dict[Prefix, tuple[int, int, int | None]] = {}
    for route in routes:
        if route.table not in order:
            continue
        prefix = Prefix(route.family, route.first, route.length)
        rank = order.index(route.table), route.metric
        if prefix not in best or rank < best[prefix][:2]:
            best[prefix] = (*rank, route.source)
    kept: list[tuple[Prefix, int | None]] = []
    around: list[tuple[Prefix, int | None]] = []
    for prefix in sorted(best, key=lambda p: (p.family.value, p.first, p.length)):
        while around and not around[-1][0].covers(prefix):
            around.pop()
        source = best[prefix][2]
        if source != (around[-1][1] if around else None):
            around.append((prefix, source))
            kept.append((prefix, source))
    return tuple(kept)


# -- whether what is sent to an address arrives here ------------------------------------


class Delivery(enum.Enum):
    """What becomes of packets to an address."""

    HERE = "the node has it, or answers for it"
    BY_ROUTERS = "routers outside decide"
    NOWHERE = "nobody sends them here"


def delivery(family: Family, address: int) -> Delivery:
    """Return whether packets to an address arrive at this node, as far as it can tell.

    Connection tracking, and the eBPF programs, give a reply back its pod before it is routed:
    so a source address to translate to need not be the node's, if only the network brings
    replies here. In a subnet of the node's that is done by whoever answers for the address
    (ARP, neighbour discovery); from elsewhere routers do it, of which the node knows nothing.
    """
    found = rt.look_up(family, address)
    if found is None:
        return Delivery.BY_ROUTERS  # no route, or one that drops: that is for what we send
    if found.kind in (RouteKind.BROADCAST, RouteKind.MULTICAST):
        return Delivery.NOWHERE
    if found.kind in (RouteKind.LOCAL, RouteKind.ANYCAST):
        answered = _answers(family, address)
    elif found.kind != RouteKind.UNICAST or found.through_gateway:
        return Delivery.BY_ROUTERS
    else:
        answered = False
    if family is Family.IPV6:
        answered = answered or bool(rt.proxies(family, address))
    elif found.kind == RouteKind.UNICAST:
        # Only for those who ask on another device (arp_process, net/ipv4/arp.c).
        answered = bool(rt.proxies(family, address) - {found.device})
    return Delivery.HERE if answered else Delivery.NOWHERE


def _answers(family: Family, address: int) -> bool:
    """Whether neighbours that look for an address of the node's get an answer.

    In IPv6 only where the device that they ask on has it (ndisc_recv_ns, net/ipv6/ndisc.c);
    in IPv4 so with arp_ignore, as kube-proxy sets it for IPVS with strictARP.
    """
    addresses = [a for a in list_addresses() if a.family is family and a.reaches_out]
    near = {
        found.device
        for found in addresses
        if found.length < family.bits and found.shares_subnet(address)
    }
    if not near or near & {found.device for found in addresses if found.address == address}:
        return True
    if family is Family.IPV6:
        return False
    names = {link.name for link in list_links() if link.number in near}
    return not any(setting(f"ipv4/conf/{name}/arp_ignore") for name in ("all", *names))
