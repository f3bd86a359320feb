"""The devices of the node, and those through which traffic leaves it."""

from __future__ import annotations

import fnmatch

from ipmasq_agent.netlink.rt import Link, list_addresses, list_links, list_routes
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.assemble import Links

# include/uapi/linux/rtnetlink.h, enum rt_class_t. Forwarded packets come to these where no
# rule of the node's (ip-rule(8)) sends them elsewhere.
DEFAULT_TABLE, MAIN_TABLE = 253, 254
_LOOPBACK = 772  # ARPHRD_LOOPBACK
# A bridge has an address for its ports, which are those of containers; what leaves through a
# dummy (kube-ipvs0, nodelocaldns) arrives nowhere.
_INWARD_KINDS = frozenset({"bridge", "dummy"})
_PAIRS = frozenset({"veth", "netkit"})
# By these alone the kernel does not tell pods from a network outside: tunnels lead to pods
# of other nodes or to a partner, and a pair whose end here has a subnet of its own to one
# pod or, where the node is a container itself, to its network.
_INWARD = (
    *("flannel*", "vxlan*", "genev*", "tunl*", "cilium*"),
    *("cali*", "lxc*", "veth*"),
)


def read_links() -> Links:
    """Return the devices of this network namespace, sorted by name.

    Raises:
        KernelReadError: they cannot be listed.
    """
    links = list_links()
    return Links(tuple(sorted(link.name for link in links)), _egress(links))


def egress_devices() -> tuple[str, ...]:
    """Return the devices that carry a node address or a default route, sorted by name.

    Those that lead to pods or nowhere are left out, unless a default route uses them.

    Raises:
        KernelReadError: they cannot be listed.
    """
    return _egress(list_links())


def _egress(links: list[Link]) -> tuple[str, ...]:
    shared: dict[int, bool] = {}
    for found in list_addresses():
        alone = found.length == found.family.bits
        shared[found.device] = shared.get(found.device, False) or not alone
    routed = {
        index
        for family in Family
        for route in list_routes(family, longest=0)
        if route.table in (MAIN_TABLE, DEFAULT_TABLE)
        for index in route.devices
    }
    return tuple(
        sorted(
            link.name
            for link in links
            if link.hardware != _LOOPBACK
            and (
                link.number in routed
                or (link.number in shared and not _leads_inward(link, shared[link.number]))
            )
        )
    )


def _leads_inward(link: Link, in_subnet: bool) -> bool:
    """Whether a device leads to pods or nowhere.

    Args:
        link: the device, which has an address and no default route.
        in_subnet: it has an address in a subnet with others. The host's end of a pod's pair
            has the address of the pod's gateway alone (CNI's ptp), which any number of
            such ends may share; the pod's is told by a route of its own.
    """
    if link.kind in _INWARD_KINDS or (link.kind in _PAIRS and link.leads_away and not in_subnet):
        return True
    return any(fnmatch.fnmatch(link.name, pattern) for pattern in _INWARD)
