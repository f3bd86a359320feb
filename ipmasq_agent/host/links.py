"""The devices of the node, and those through which traffic leaves it."""

from __future__ import annotations

import fnmatch

from ipmasq_agent.host.rtnetlink import (
    Link,
    devices_with_addresses,
    list_links,
    list_routes,
)
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.assemble import Links

# include/uapi/linux/rtnetlink.h, enum rt_class_t. Forwarded packets come to these where no
# rule of the node's (ip-rule(8)) sends them elsewhere.
DEFAULT_TABLE, MAIN_TABLE = 253, 254
# Devices of pods and of container networks: they have addresses but lead to pods.
_INWARD = (
    *("lo", "docker*", "cni*", "cbr*", "flannel*", "cali*", "cilium*", "lxc*", "veth*"),
    *("kube-*", "nodelocaldns", "virbr*", "br-*", "weave*", "vxlan*", "genev*", "tunl*"),
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

    Bridges, loopback and the devices of pod networks are left out, unless a default
    route uses them.

    Raises:
        KernelReadError: they cannot be listed.
    """
    return _egress(list_links())


def _egress(links: list[Link]) -> tuple[str, ...]:
    addressed = devices_with_addresses()
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
            if (link.number in routed and link.name != "lo")
            or (link.number in addressed and not _leads_inward(link))
        )
    )


def _leads_inward(link: Link) -> bool:
    return link.kind == "bridge" or any(fnmatch.fnmatch(link.name, p) for p in _INWARD)
