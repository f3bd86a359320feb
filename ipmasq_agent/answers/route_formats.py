"""Routes and BGP in the languages of those who are to take them: a renderer for each.

``FORMATS`` has a row for each language. A router that serves both families has a group of
neighbours for each: a session carries the routes of the family of its own addresses, whose
next hop is then the node's address.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

from ipmasq_agent.answers.routes import Accepted, NodeSpeaker, PodRoute, RouterSpeaker
from ipmasq_agent.policy.addresses import Family, Prefix

Lines = Iterator[str]
# What FRR and IOS take at most (`bgp listen limit`); 100 unless told.
_MOST_NODES = 5000


class Format(NamedTuple):
    """A language.

    Attributes:
        comment: what a line of comment begins with.
        static: static routes, in order.
        node: the BGP of a node, where nodes speak this.
        router: the BGP of a router, where it does BGP at all.
    """

    comment: str
    static: Callable[[Sequence[PodRoute]], Lines]
    node: Callable[[NodeSpeaker], Lines] | None = None
    router: Callable[[RouterSpeaker], Lines] | None = None


def _one_by_one(
    comment: str, line: Callable[[PodRoute], str]
) -> Callable[[Sequence[PodRoute]], Lines]:
    """Return a renderer of a line for each route, with a comment where another node begins."""

    def lines(routes: Sequence[PodRoute]) -> Lines:
        node = None
        for route in routes:
            if route.node != node:
                node = route.node
                # A comment ends with its line, and what comes after it is a router's.
                yield f"{comment} {''.join(c if c.isprintable() else '?' for c in node)}"
            yield line(route)

    return lines


def _six(family: Family, four: str, six: str) -> str:
    return six if family is Family.IPV6 else four


def _own(prefixes: Iterable[Prefix]) -> list[Accepted]:
    return [Accepted(prefix, prefix.length, prefix.length) for prefix in prefixes]


def _iproute2(route: PodRoute) -> str:
    family = _six(route.prefix.family, "", " -6")
    return f"ip{family} route replace {route.prefix} via {route.next_hop}"


# -- FRR, and IOS, whose language FRR speaks ------------------------------------------------


def _frr(route: PodRoute) -> str:
    return f"{_six(route.prefix.family, 'ip', 'ipv6')} route {route.prefix} {route.next_hop}"


def _cisco(route: PodRoute) -> str:
    if route.prefix.family is Family.IPV6:
        return _frr(route)
    network = ipaddress.ip_network(str(route.prefix))
    return f"ip route {network.network_address} {network.netmask} {route.next_hop}"


def _prefix_list(name: str, accepted: Iterable[Accepted]) -> Lines:
    for number, (network, shortest, longest) in enumerate(accepted, start=1):
        words = _six(network.family, "ip", "ipv6")
        lengths = f" ge {shortest} le {longest}" if longest > network.length else ""
        if lengths and shortest == network.length:
            lengths = f" le {longest}"
        yield f"{words} prefix-list {name} seq {number * 5} permit {network}{lengths}"


def _filters(families: Mapping[Family, Iterable[Accepted]]) -> Lines:
    for family, accepted in families.items():
        yield from _prefix_list("POD-CIDRS", accepted)
        everything = _six(family, "0.0.0.0/0 le 32", "::/0 le 128")
        yield f"{_six(family, 'ip', 'ipv6')} prefix-list NOTHING seq 5 deny {everything}"


def _frr_node(node: NodeSpeaker) -> Lines:
    families = {peer.family: node.announces[peer.family] for peer in node.peers}
    yield from _filters({family: _own(prefixes) for family, prefixes in families.items()})
    yield f"router bgp {node.asn}"
    yield f" bgp router-id {node.router_id}"
    yield " no bgp default ipv4-unicast"
    yield " no bgp network import-check"
    for peer in node.peers:
        yield f" neighbor {peer} remote-as {peer.asn}"
        yield f" neighbor {peer} timers connect 10"
    for family, prefixes in families.items():
        yield f" address-family {family.value} unicast"
        yield from (f"  network {prefix}" for prefix in prefixes)
        for peer in (peer for peer in node.peers if peer.family is family):
            yield f"  neighbor {peer} activate"
            yield f"  neighbor {peer} prefix-list NOTHING in"
            yield f"  neighbor {peer} prefix-list POD-CIDRS out"
        yield " exit-address-family"
    yield "exit"


def _frr_router(router: RouterSpeaker) -> Lines:
    yield from _filters({f: served.accepts for f, served in router.families.items()})
    yield f"router bgp {router.asn}"
    yield " no bgp default ipv4-unicast"
    yield f" bgp listen limit {_MOST_NODES}"
    for family, served in router.families.items():
        group = f"NODES-{family.name}"
        yield f" neighbor {group} peer-group"
        yield f" neighbor {group} remote-as {router.nodes_asn}"
        for network in served.listens:
            yield f" bgp listen range {network} peer-group {group}"
    for family in router.families:
        group = f"NODES-{family.name}"
        yield f" address-family {family.value} unicast"
        yield f"  neighbor {group} activate"
        yield f"  neighbor {group} prefix-list POD-CIDRS in"
        yield f"  neighbor {group} prefix-list NOTHING out"
        yield " exit-address-family"
    yield "exit"


# -- BIRD 2 ----------------------------------------------------------------------------------


def _bird_static(name: str, family: Family, lines: Iterable[str]) -> Lines:
    yield f"protocol static {name}{family.value[-1]} {{"
    yield f"  {family.value};"
    yield from (f"  route {line};" for line in lines)
    yield "}"


def _bird(routes: Sequence[PodRoute]) -> Lines:
    for family in dict.fromkeys(route.prefix.family for route in routes):
        own = (route for route in routes if route.prefix.family is family)
        lines = (f"{r.prefix} via {r.next_hop}" for r in own)
        yield from _bird_static("pods", family, lines)


def _bird_node(node: NodeSpeaker) -> Lines:
    yield f"router id {node.router_id};"
    yield "protocol device { }"
    for family in dict.fromkeys(peer.family for peer in node.peers):
        # Only to be announced: without a protocol kernel, nothing of this is a route here.
        lines = (f"{prefix} unreachable" for prefix in node.announces[family])
        yield from _bird_static("pods", family, lines)
    for number, peer in enumerate(node.peers, start=1):
        yield f"protocol bgp router{number} {{"
        yield f"  local as {node.asn};"
        yield f"  neighbor {peer} as {peer.asn};"
        export = f'export where proto = "pods{peer.family.value[-1]}";'
        yield f"  {peer.family.value} {{ import none; {export} next hop self; }};"
        yield "}"


def _bird_router(router: RouterSpeaker) -> Lines:
    yield "protocol device { }"
    for family, (listens, accepts) in router.families.items():
        version = family.value[-1]
        sets = ", ".join(f"{network}{{{low},{high}}}" for network, low, high in accepts)
        yield f"protocol kernel kernel{version} {{"
        yield f"  {family.value} {{ import none; export where source = RTS_BGP; }};"
        yield "}"
        for number, network in enumerate(listens, start=1):
            yield f"protocol bgp nodes{version}_{number} {{"
            yield f"  local as {router.asn};"
            yield f"  neighbor range {network} as {router.nodes_asn};"
            yield f'  dynamic name "node{version}_{number}_";'
            yield f"  {family.value} {{ import where net ~ [ {sets} ]; export none; }};"
            yield "}"


# -- GoBGP 3 ---------------------------------------------------------------------------------


def _gobgp(route: PodRoute) -> str:
    family = route.prefix.family.value
    return f"gobgp global rib add -a {family} {route.prefix} nexthop {route.next_hop}"


_REJECT = {"default_import_policy": "reject-route", "default_export_policy": "reject-route"}


def _toml(table: str, **values: str | int | bool | list[str]) -> Lines:
    yield table
    for key, value in values.items():
        shown = str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')
        yield f"  {key.replace('_', '-')} = {shown}"


def _gobgp_family(table: str, family: Family) -> Lines:
    yield f"[[{table}.afi-safis]]"
    yield from _toml(f"[{table}.afi-safis.config]", afi_safi_name=f"{family.value}-unicast")


def _gobgp_node(node: NodeSpeaker) -> Lines:
    # Its file has no place for what it announces itself.
    for prefix in chain.from_iterable(node.announces.values()):
        yield f"# once it runs: gobgp global rib add -a {prefix.family.value} {prefix}"
    yield from _toml("[global.config]", **{"as": node.asn}, router_id=node.router_id)
    # What one router says is not for another one to hear from a node.
    yield from _toml(
        "[global.apply-policy.config]",
        import_policy_list=["pod-cidrs"],
        export_policy_list=["pod-cidrs"],
        **_REJECT,
    )
    for peer in node.peers:
        yield "[[neighbors]]"
        yield from _toml("[neighbors.config]", neighbor_address=str(peer), peer_as=peer.asn)
        yield from _gobgp_family("neighbors", peer.family)
    yield from _gobgp_pod_cidrs({f: _own(prefixes) for f, prefixes in node.announces.items()})


def _gobgp_router(router: RouterSpeaker) -> Lines:
    yield from _toml("[global.config]", **{"as": router.asn}, router_id=router.router_id)
    yield from _toml("[global.apply-policy.config]", import_policy_list=["pod-cidrs"], **_REJECT)
    yield "# zebra of FRR puts the routes into the kernel"
    yield from _toml("[zebra.config]", enabled=True, url="unix:/var/run/frr/zserv.api", version=6)
    for family, served in router.families.items():
        group = f"nodes-{family.value}"
        yield "[[peer-groups]]"
        yield from _toml("[peer-groups.config]", peer_group_name=group, peer_as=router.nodes_asn)
        yield from _gobgp_family("peer-groups", family)
        for network in served.listens:
            yield "[[dynamic-neighbors]]"
            yield from _toml("[dynamic-neighbors.config]", prefix=str(network), peer_group=group)
    yield from _gobgp_pod_cidrs(
        {family: served.accepts for family, served in router.families.items()}
    )


def _gobgp_pod_cidrs(accepted: Mapping[Family, Iterable[Accepted]]) -> Lines:
    """Yield the policy of that name, which takes these and says nothing of the rest."""
    for family, routes in accepted.items():
        yield from _toml("[[defined-sets.prefix-sets]]", prefix_set_name=f"pods-{family.value}")
        for network, shortest, longest in routes:
            yield from _toml(
                "[[defined-sets.prefix-sets.prefix-list]]",
                ip_prefix=str(network),
                masklength_range=f"{shortest}..{longest}",
            )
    yield from _toml("[[policy-definitions]]", name="pod-cidrs")
    for family in accepted:
        yield from _toml("[[policy-definitions.statements]]", name=f"pods-{family.value}")
        table = "policy-definitions.statements"
        yield from _toml(
            f"[{table}.conditions.match-prefix-set]", prefix_set=f"pods-{family.value}"
        )
        yield from _toml(f"[{table}.actions]", route_disposition="accept-route")


# -- Junos -----------------------------------------------------------------------------------


def _junos(route: PodRoute) -> str:
    table = _six(route.prefix.family, "", "rib inet6.0 ")
    return f"set routing-options {table}static route {route.prefix} next-hop {route.next_hop}"


def _junos_router(router: RouterSpeaker) -> Lines:
    policy = "set policy-options policy-statement"
    for served in router.families.values():
        for network, shortest, longest in served.accepts:
            lengths = f"prefix-length-range /{shortest}-/{longest}"
            yield f"{policy} POD-CIDRS term pods from route-filter {network} {lengths}"
    yield f"{policy} POD-CIDRS term pods then accept"
    yield f"{policy} POD-CIDRS then reject"
    yield f"{policy} NOTHING then reject"
    yield f"set routing-options autonomous-system {router.asn}"
    for family, served in router.families.items():
        group = f"set protocols bgp group NODES-{family.name}"
        yield f"{group} type {'internal' if router.asn == router.nodes_asn else 'external'}"
        if router.asn != router.nodes_asn:
            yield f"{group} peer-as {router.nodes_asn}"
        yield f"{group} family {_six(family, 'inet', 'inet6')} unicast"
        yield from (f"{group} allow {network}" for network in served.listens)
        yield f"{group} import POD-CIDRS"
        yield f"{group} export NOTHING"


FORMATS = {
    "iproute2": Format("#", _one_by_one("#", _iproute2)),
    "frr": Format("!", _one_by_one("!", _frr), _frr_node, _frr_router),
    "bird": Format("#", _bird, _bird_node, _bird_router),
    "gobgp": Format("#", _one_by_one("#", _gobgp), _gobgp_node, _gobgp_router),
    "cisco": Format("!", _one_by_one("!", _cisco), None, _frr_router),
    "junos": Format("#", _one_by_one("#", _junos), None, _junos_router),
}
