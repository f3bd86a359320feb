"""What the network outside needs, so that replies to the pods' own addresses come back.

Where a policy keeps a pod's address, whoever answers sends to that address, and each router
on the way must know by which node it is reached: by a static route for each node, or by BGP,
in which each node announces the pod CIDRs that are its own.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

from ipmasq_agent.policy.addresses import (
    Family,
    Prefix,
    collapsed,
    parse_address,
    prefix_around,
)
from ipmasq_agent.policy.cidrs import parse_cidr
from ipmasq_agent.policy.decisions import REST, DecisionMap, Verdict, entry_of_prefix
from ipmasq_agent.policy.facts import ClusterNode
from ipmasq_agent.policy.model import FamilyPolicy

Range = tuple[int, int]

# No router forwards to these: loopback, link-local and multicast (RFC 6890, RFC 4291).
_UNROUTED = tuple(
    map(
        parse_cidr,
        ("127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "::1/128", "fe80::/10", "ff00::/8"),
    )
)
# How nodes are mostly numbered: a network of theirs is no longer than this, and that of all
# pods is that much shorter than each node's (kube-controller-manager's /16 and /24).
_SEGMENT = {Family.IPV4: 24, Family.IPV6: 64}
_POD_NETWORK = 8


class PodRoute(NamedTuple):
    """Pod addresses, and the address of the node that has them."""

    prefix: Prefix
    via: int
    node: str

    @property
    def next_hop(self) -> str:
        """The node's address as text."""
        return self.prefix.family.show(self.via)


class Need(NamedTuple):
    """Routes of one family that the routers toward some destinations need.

    Attributes:
        toward: the destinations, as first and last address.
    """

    family: Family
    toward: tuple[Range, ...]
    routes: tuple[PodRoute, ...]


class Peer(NamedTuple):
    """A router that nodes talk BGP to."""

    family: Family
    address: int
    asn: int

    def __str__(self) -> str:
        return self.family.show(self.address)


class NodeSpeaker(NamedTuple):
    """The BGP of a node: it announces what is its own, and takes nothing."""

    name: str
    asn: int
    router_id: str
    peers: tuple[Peer, ...]
    announces: Mapping[Family, Sequence[Prefix]]


class Accepted(NamedTuple):
    """Routes within a network, of certain lengths."""

    network: Prefix
    shortest: int
    longest: int


class Served(NamedTuple):
    """What a router does for nodes of a family; a session carries its own family's routes.

    Attributes:
        listens: where nodes connect from.
        accepts: what they may announce; no node is named, so that one more needs nothing.
    """

    listens: Sequence[Prefix]
    accepts: Sequence[Accepted]


class RouterSpeaker(NamedTuple):
    """The BGP of a router: any node of a network may connect, and announce pod networks."""

    asn: int
    router_id: str
    nodes_asn: int
    families: Mapping[Family, Served]


def needed(
    nodes: Sequence[ClusterNode],
    policies: Mapping[Family, FamilyPolicy],
    pod_networks: Iterable[Prefix] = (),
) -> tuple[list[Need], list[str]]:
    """Return the routes that are needed, and what is wrong with the nodes.

    A family without a policy is not managed: its packets keep their source everywhere.

    Args:
        nodes: of the cluster.
        policies: of their agents. Whether a device of a node guards them does not matter.
        pod_networks: what else is pods'. The network plugin knows the way to pods and
            nodes, so what is kept toward those alone needs no route outside.
    """
    own = [prefix for node in nodes for prefix in node.pod_cidrs]
    addresses = [Prefix(f, a, f.bits) for node in nodes for f, a in node.addresses]
    inside = [*own, *addresses, *pod_networks, *_UNROUTED]
    needs: list[Need] = []
    missing: list[str] = []
    for family in Family:
        policy = policies.get(family)
        everything = ((0, family.last_address),)
        kept = everything if policy is None else _toward(policy.decisions, inside)
        sources = policy.guards.sources if policy is not None else None
        routes: dict[bool, list[PodRoute]] = {}
        for node in nodes:
            via = next((a for its_family, a in node.addresses if its_family is family), None)
            for prefix in (p for p in node.pod_cidrs if p.family is family):
                guarded = sources is None or any(s.covers(prefix) for s in sources)
                if guarded and not kept:
                    continue
                if via is None:
                    missing.append(f"{node.name} has no address by which {prefix} is reached")
                    continue
                routes.setdefault(guarded, []).append(PodRoute(prefix, via, node.name))
        needs += (
            Need(family, kept if guarded else everything, tuple(own))
            for guarded, own in routes.items()
        )
    missing += (f"{node.name} has no pod CIDRs" for node in nodes if not node.pod_cidrs)
    return needs, missing


def _toward(decisions: DecisionMap, inside: Iterable[Prefix]) -> tuple[Range, ...]:
    """Return the destinations that are kept, but for those which lie inside the cluster."""
    family = decisions.family
    ours = collapsed(prefix for prefix in inside if prefix.family is family)
    hidden = [entry_of_prefix(prefix, Verdict.MASQUERADE, REST) for prefix in ours]
    outside = [first for first, _ in decisions.overlaid(hidden).stretches(Verdict.NON_MASQUERADE)]

    def leads_out(first: int, last: int) -> bool:
        at = bisect_left(outside, first)
        return at < len(outside) and outside[at] <= last

    return tuple(each for each in decisions.stretches(Verdict.NON_MASQUERADE) if leads_out(*each))


def speakers(needs: Sequence[Need], asn: int, peers: Sequence[Peer]) -> Iterator[NodeSpeaker]:
    """Yield the BGP of each node.

    Args:
        needs: what is to be announced.
        asn: the number of the nodes' autonomous system.
        peers: the routers to talk to.
    """
    by_node: dict[str, list[PodRoute]] = {}
    for route in chain.from_iterable(need.routes for need in needs):
        by_node.setdefault(route.node, []).append(route)
    for name, own in by_node.items():
        announces: dict[Family, list[Prefix]] = {}
        for prefix in dict.fromkeys(route.prefix for route in own):
            announces.setdefault(prefix.family, []).append(prefix)
        router_id = _router_id(own[0].prefix.family, own[0].via)
        talks = tuple(peer for peer in peers if peer.family in announces)
        yield NodeSpeaker(name, asn, router_id, talks, announces)


def routers(
    needs: Sequence[Need],
    asn: int,
    peers: Sequence[Peer],
    listens: Sequence[Prefix] = (),
    pod_networks: Sequence[Prefix] = (),
) -> Iterator[RouterSpeaker]:
    """Yield the BGP of the routers: one for each autonomous system among the peers.

    Args:
        needs: what is announced.
        asn: the number of the nodes' autonomous system.
        peers: addresses of the routers.
        listens: where nodes connect from; else the networks, as those are mostly numbered,
            of the nodes that there are.
        pod_networks: what nodes may announce; else the networks, likewise, of what those
            that there are announce.
    """
    served: dict[Family, Served] = {}
    for family in Family:
        routes = [r for need in needs for r in need.routes if r.prefix.family is family]
        if not routes:
            continue
        segments = [prefix_around(family, route.via, _SEGMENT[family]) for route in routes]
        lengths = {route.prefix.length for route in routes}
        widened = [
            prefix_around(family, p.first, max(p.length - _POD_NETWORK, 1)) for p, _, _ in routes
        ]
        accepts = [
            Accepted(network, max(network.length, min(lengths)), max(network.length, *lengths))
            for network in _given(family, pod_networks, widened)
        ]
        served[family] = Served(_given(family, listens, segments), accepts)
    for number in dict.fromkeys(peer.asn for peer in peers) if served else ():
        its = [peer for peer in peers if peer.asn == number]
        families = {peer.family for peer in its}
        yield RouterSpeaker(
            number,
            _router_id(its[0].family, its[0].address),
            asn,
            {family: each for family, each in served.items() if family in families},
        )


def _given(family: Family, given: Iterable[Prefix], usual: Sequence[Prefix]) -> Sequence[Prefix]:
    """Return the networks of a family that were given, or what stands for them."""
    return collapsed([prefix for prefix in given if prefix.family is family] or usual)


def _router_id(family: Family, address: int) -> str:
    """Return a BGP identifier: any number that no other speaker has (RFC 6286)."""
    low = address & Family.IPV4.last_address
    return Family.IPV4.show(address if family is Family.IPV4 else low or 1)


def parse_peer(text: str, asn: int) -> Peer:
    """Read ``ADDRESS[=ASN]``; without a number the peer is of ``asn`` too.

    Raises:
        ValueError: it is something else.
    """
    address, equals, number = text.partition("=")
    if equals and not (number.isascii() and number.isdigit() and 0 < int(number) < 1 << 32):
        raise ValueError(f"{number!r} is not the number of an autonomous system")
    return Peer(*parse_address(address), int(number) if equals else asn)


def parse_node(text: str) -> ClusterNode:
    """Read ``NAME=ADDRESS,PODCIDR[,...]``; what has a ``/`` is a pod CIDR.

    Raises:
        ValueError: it is something else.
    """
    name, _, rest = text.partition("=")
    words = rest.split(",")
    addresses = tuple(parse_address(word) for word in words if "/" not in word)
    cidrs: list[Prefix] = []
    for word in words:
        if "/" in word:
            try:
                cidrs.append(parse_cidr(word))
            except ValueError as cause:
                raise ValueError(f"{word} {cause}") from cause
    if not (name and addresses and cidrs):
        raise ValueError("is not NAME=ADDRESS,PODCIDR")
    return ClusterNode(name, addresses, tuple(cidrs))
