"""Route look-ups: where a packet would leave, and with which address of the device."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any, NamedTuple

from ipmasq_agent.errors import HostError
from ipmasq_agent.policy.addresses import Family

_RTN_LOCAL = 2  # include/uapi/linux/rtnetlink.h
_SCOPE_LINK = 253


class Route(NamedTuple):
    """Device, the address that MASQUERADE would take from it, whether the node is meant."""

    device: str | None = None
    address: str | None = None
    local: bool = False


def look_up(family: Family, destination: str, source: str | None) -> Route:
    """Return where a packet to ``destination`` would leave; an empty Route where nowhere.

    The look-up is that of a forwarded packet where ``source`` is an address behind this
    node. The address is the one that MASQUERADE takes, which is not the route's preferred
    source: for IPv4 the first primary address of the device in the next hop's subnet, else
    its first global one (inet_select_addr, net/ipv4/devinet.c); for IPv6 what source
    address selection gives for the device.

    Raises:
        HostError: the routing table cannot be asked.
    """
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute() as netlink:
            route = _route(netlink, family, destination, source)
            if route is None:
                return Route()
            attributes = dict(route["attrs"])
            index = attributes.get("RTA_OIF")
            if index is None:
                return Route()
            device = netlink.link("get", index=index)[0].get_attr("IFLA_IFNAME")
            if route["type"] == _RTN_LOCAL:
                return Route(device, destination, True)
            next_hop = attributes.get("RTA_GATEWAY", destination)
            if family is Family.IPV6:
                plain = _route(netlink, family, destination, None)
                preferred = dict(plain["attrs"]).get("RTA_PREFSRC") if plain else None
                return Route(device, preferred)
            return Route(device, _primary(netlink, index, next_hop))
    except (NetlinkError, OSError) as cause:
        raise HostError(f"cannot look up the route to {destination}: {cause}") from cause


def _route(netlink: Any, family: Family, destination: str, source: str | None) -> Any:
    """Return the kernel's answer, or None where there is no route."""
    from pyroute2.netlink.exceptions import NetlinkError

    number = socket.AF_INET if family is Family.IPV4 else socket.AF_INET6
    query: dict[str, Any] = {"family": number, "dst": destination}
    if source is not None:
        inward = _route(netlink, family, source, None)
        if inward is not None and inward["type"] != _RTN_LOCAL:
            query |= {"src": source, "iif": dict(inward["attrs"])["RTA_OIF"]}
    try:
        return netlink.route("get", **query)[0]
    except NetlinkError as cause:
        if "src" in query:  # a source that the node would not forward: ask without it
            return _route(netlink, family, destination, None)
        if cause.code in (101, 113):  # ENETUNREACH, EHOSTUNREACH
            return None
        raise


def _primary(netlink: Any, index: int, next_hop: str) -> str | None:
    hop = ipaddress.ip_address(next_hop)
    addresses = []
    for message in netlink.get_addr(family=socket.AF_INET, index=index):
        if message["scope"] < _SCOPE_LINK:
            local = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            addresses.append(ipaddress.ip_interface(f"{local}/{message['prefixlen']}"))
    near = [address for address in addresses if hop in address.network]
    chosen = next(iter(near or addresses), None)
    return str(chosen.ip) if chosen else None
