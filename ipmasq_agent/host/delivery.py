"""Whether what is sent to an address arrives at this node, as far as the node can tell.

Connection tracking, and the eBPF programs, give a reply back its pod before it is routed: so
a source address to translate to need not be the node's, if only the network brings replies
here. In a subnet of the node's that is done by whoever answers for the address (ARP,
neighbour discovery); from elsewhere routers do it, of which the node knows nothing.
"""

from __future__ import annotations

import enum
from pathlib import Path

from ipmasq_agent.netlink.rt import list_addresses, list_links, look_up, proxies
from ipmasq_agent.policy.addresses import Family

# RTN_... of include/uapi/linux/rtnetlink.h
_UNICAST, _LOCAL, _BROADCAST, _ANYCAST, _MULTICAST = 1, 2, 3, 4, 5


class Delivery(enum.Enum):
    """What becomes of packets to an address."""

    HERE = "the node has it, or answers for it"
    BY_ROUTERS = "routers outside decide"
    NOWHERE = "nobody sends them here"


def delivery(family: Family, address: int) -> Delivery:
    """Ask the kernel about an address.

    Raises:
        KernelReadError: it cannot be asked.
    """
    found = look_up(family, address)
    if found is None:
        return Delivery.BY_ROUTERS  # no route, or one that drops: that is for what we send
    if found.kind in (_BROADCAST, _MULTICAST):
        return Delivery.NOWHERE
    if found.kind in (_LOCAL, _ANYCAST):
        answered = _answers(family, address)
    elif found.kind != _UNICAST or found.through_gateway:
        return Delivery.BY_ROUTERS
    else:
        answered = False
    if family is Family.IPV6:
        answered = answered or bool(proxies(family, address))
    elif found.kind == _UNICAST:
        # Only for those who ask on another device (arp_process, net/ipv4/arp.c).
        answered = bool(proxies(family, address) - {found.device})
    return Delivery.HERE if answered else Delivery.NOWHERE


def _answers(family: Family, address: int) -> bool:
    """Whether neighbours that look for an address of the node's get an answer.

    In IPv6 only where the device that they ask on has it (ndisc_recv_ns, net/ipv6/ndisc.c);
    in IPv4 so with arp_ignore, as kube-proxy sets it for IPVS with strictARP.
    """
    addresses = [found for found in list_addresses() if found.family is family]
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
    return not any(map(_ignores, ("all", *names)))


def _ignores(name: str) -> bool:
    try:
        return Path(f"/proc/sys/net/ipv4/conf/{name}/arp_ignore").read_text().strip() != "0"
    except OSError:  # the device has gone, or settings are hidden from us
        return False
