"""The devices of the node: which lead out of it, and what translating packets there takes.

What cannot be listed is a KernelReadError.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from ipmasq_agent.netlink.rt import (
    DEFAULT_TABLE,
    MAIN_TABLE,
    Address,
    Link,
    list_addresses,
    list_links,
    list_routes,
)
from ipmasq_agent.policy.addresses import Family, Prefix
from ipmasq_agent.policy.facts import EgressDevice, Links, PodNetwork

# include/uapi/linux/if_arp.h: Ethernet and what looks like it. Tunnels, PPP and devices
# without addresses of their own begin their packets with the IP header.
_ETHERNET, _LOOPBACK = 1, 772
_ETHERNET_HEADER = 14
# A bridge has an address for its ports, which are those of containers; what leaves through a
# dummy (kube-ipvs0, nodelocaldns) arrives nowhere.
_INWARD_KINDS = frozenset({"bridge", "dummy"})
_PAIRS = frozenset({"veth", "netkit"})
# By these alone the kernel does not tell pods from a network outside: tunnels lead to pods
# of other nodes or to a partner, and a pair whose end here has a subnet of its own to one
# pod or, where the node is a container itself, to its network.
_OVERLAYS = ("flannel*", "vxlan*", "genev*", "tunl*", "cilium*")
_INWARD = (*_OVERLAYS, "cali*", "lxc*", "veth*")


def read_links() -> Links:
    """Return the devices of this network namespace, sorted by name."""
    links = list_links()
    names = tuple(sorted(link.name for link in links))
    return Links(names, _leading_out(links, list_addresses()))


def egress_devices() -> tuple[str, ...]:
    """Return the devices that carry a node address or a default route, sorted by name.

    Those that lead to pods or nowhere are left out, unless a default route uses them.
    """
    return _leading_out(list_links(), list_addresses())


def _leading_out(links: Iterable[Link], addresses: Iterable[Address]) -> tuple[str, ...]:
    shared: dict[int, bool] = {}
    for found in addresses:
        if found.reaches_out:
            alone = found.length == found.family.bits
            shared[found.device] = shared.get(found.device, False) or not alone
    routed = {
        number
        for family in Family
        for route in list_routes(family, longest=0)
        if route.table in (MAIN_TABLE, DEFAULT_TABLE)
        for number in route.hops
    }

    def leads_out(link: Link) -> bool:
        if link.number in routed or link.number not in shared:
            return link.number in routed
        return not _leads_inward(link, shared[link.number])

    return tuple(sorted(x.name for x in links if x.hardware != _LOOPBACK and leads_out(x)))


def _leads_inward(link: Link, in_subnet: bool) -> bool:
    """Whether a device leads to pods or nowhere.

    Args:
        link: the device, which has an address and no default route.
        in_subnet: it has an address in a subnet with others. The host's end of a pod's pair
            has the address of the pod's gateway alone (CNI's ptp), which any number of
            such ends may share; the pod's is told by a route of its own.
    """
    if link.kind in _INWARD_KINDS or (leads_to_pods(link) and not in_subnet):
        return True
    return any(fnmatch.fnmatch(link.name, pattern) for pattern in _INWARD)


def pod_networks(links: Iterable[Link], is_others: Callable[[str], bool]) -> list[PodNetwork]:
    """Return where pods are: behind pairs and bridges of them, or behind an overlay.

    Routes of the main table tell, so pods of other nodes that the network outside routes are
    not seen. Where one device leads to both (Cilium's), the node's own network is the one that
    holds an address of the device.

    Args:
        links: the devices of this network namespace.
        is_others: whether a bridge of that name is for something else than pods.
    """
    addresses = list_addresses()
    leading_out = set(_leading_out(links, addresses))
    bridged = {link.master for link in links if leads_to_pods(link)}
    near: set[int] = set()
    far: set[int] = set()
    for link in links:
        if link.name in leading_out or is_others(link.name):
            continue
        if any(fnmatch.fnmatch(link.name, pattern) for pattern in _OVERLAYS):
            far.add(link.number)
        elif link.number in bridged or leads_to_pods(link):
            near.add(link.number)
    names = {link.number: link.name for link in links}
    found: list[PodNetwork] = []
    for family in Family:
        held = [(one.device, one.address) for one in addresses if one.family is family]
        for route in list_routes(family):
            prefix = Prefix(family, route.first, route.length)
            if route.table != MAIN_TABLE or not route.length or _is_link_local(prefix):
                continue
            for number in (one for one in route.hops if one in near | far):
                own = any(device == number and prefix.holds(a) for device, a in held)
                found.append(PodNetwork(prefix, names[number], number in near or own))
    return found


def leads_to_pods(link: Link) -> bool:
    """Whether a device is this end of a pair whose other end is in another namespace."""
    return link.kind in _PAIRS and link.leads_away


def _is_link_local(prefix: Prefix) -> bool:
    return prefix.family is Family.IPV6 and prefix.first >> 118 == 0xFE80 >> 6


class NodeDevices(NamedTuple):
    """The devices of this network namespace, and the addresses on them.

    Attributes:
        by_name: every device.
        leading_out: as ``egress_devices`` names them.
        own: the addresses that are the node's, on whatever device; without those of IPv6
            that are good on one link alone.
    """

    by_name: Mapping[str, EgressDevice]
    leading_out: tuple[str, ...]
    own: frozenset[tuple[Family, int]]


def list_devices() -> NodeDevices:
    """Return every device, and what is the node's own."""
    links, addresses = list_links(), list_addresses()
    sources = _sources(links, addresses)
    by_name = {
        link.name: EgressDevice(
            link.number,
            sources[link.number],
            _ETHERNET_HEADER if link.hardware in (_ETHERNET, _LOOPBACK) else 0,
            link.hardware == _LOOPBACK,
            link.mac if link.hardware == _ETHERNET else bytes(6),
        )
        for link in links
    }
    own = frozenset(
        (found.family, found.address)
        for found in addresses
        if found.family is Family.IPV4 or not found.is_link_local
    )
    return NodeDevices(by_name, _leading_out(links, addresses), own)


def masquerading_source(
    addresses: Iterable[Address], device: int, gateway: int | None
) -> Address | None:
    """Return which address MASQUERADE takes for what leaves through a device; None for none.

    In IPv4 that of the device in the subnet of the next hop, else its first, else the first
    of any device, where the loopback comes first (inet_select_addr, net/ipv4/devinet.c). In
    IPv6 those of all devices compete (ipv6_dev_get_saddr, net/ipv6/addrconf.c): one that is
    not deprecated wins, then one of this device, then one that suits destinations outside.
    Which is nearest to its destination, the kernel asks for each packet; here nobody does.

    Args:
        addresses: of one family, as listed.
        device: its ifindex.
        gateway: the next hop; None where it is not known, or the family has no such rule.
    """

    def rank(one: Address) -> tuple[bool, bool, bool, bool, int]:
        elsewhere = one.device != device
        apart = gateway is not None and not elsewhere and not one.shares_subnet(gateway)
        deprecated, unique_local, temporary = one.drawbacks
        return deprecated, elsewhere, apart or unique_local, temporary, one.device

    return min((one for one in addresses if one.may_masquerade), key=rank, default=None)


def _sources(links: Iterable[Link], addresses: Iterable[Address]) -> dict[int, dict[Family, int]]:
    """Return device → family → address; the next hop is the gateway of the default route."""
    held: dict[tuple[Family, int], list[Address]] = {}
    for found in addresses:
        held.setdefault((found.family, found.device), []).append(found)
    # A device with one address has no choice.
    some = any(f is Family.IPV4 and len(found) > 1 for (f, _), found in held.items())
    gateways = _gateways() if some else {}
    sources: dict[int, dict[Family, int]] = {link.number: {} for link in links}
    for family in Family:
        # Of other devices' addresses the best for one is the best for all.
        spare = masquerading_source((one for one in addresses if one.family is family), 0, None)
        for number, of_device in sources.items():
            gateway = gateways.get(number) if family is Family.IPV4 else None
            candidates = [*held.get((family, number), ()), *([spare] if spare else [])]
            chosen = masquerading_source(candidates, number, gateway)
            if chosen is not None:
                of_device[family] = chosen.address
    return sources


def _gateways() -> dict[int, int]:
    """Return device → the gateway of its default route in IPv4."""
    gateways: dict[int, int] = {}
    for route in sorted(list_routes(Family.IPV4, longest=0), key=lambda one: one.metric):
        for device, gateway in route.hops.items():
            if gateway is not None:
                gateways.setdefault(device, gateway)
    return gateways
