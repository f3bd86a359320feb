"""Route look-ups: where a packet would leave, and with which address of the device."""

from __future__ import annotations

from typing import NamedTuple

from ipmasq_agent.host.egress import masquerading_source
from ipmasq_agent.netlink import rt as rtnetlink
from ipmasq_agent.netlink.rt import LOCAL, list_addresses, list_links
from ipmasq_agent.policy.addresses import Family, parse_address


class Route(NamedTuple):
    """Device, the address that MASQUERADE would take from it, whether the node is meant."""

    device: str | None = None
    address: str | None = None
    local: bool = False


def look_up(family: Family, destination: str, source: str | None) -> Route:
    """Return where a packet to ``destination`` would leave; an empty Route where nowhere.

    The look-up is that of a forwarded packet where ``source`` is an address behind this
    node. The address is the one that MASQUERADE takes, which is not the route's preferred
    source: for IPv4 that of ``masquerading_source``, for IPv6 what source address selection
    gives for the device.

    Raises:
        KernelReadError: the routing table cannot be asked.
    """
    _, to = parse_address(destination)
    route = _route(family, to, None if source is None else parse_address(source)[1])
    if route is None or not route.device:
        return Route()
    device = next((link.name for link in list_links() if link.number == route.device), None)
    if route.kind == LOCAL:
        return Route(device, destination, True)
    if family is Family.IPV6:
        plain = rtnetlink.look_up(family, to)
        address = plain.source if plain else None
    else:
        address = masquerading_source(
            (a for a in list_addresses() if (a.device, a.family) == (route.device, family)),
            to if route.gateway is None else route.gateway,
        )
    return Route(device, None if address is None else family.show(address))


def _route(family: Family, destination: int, source: int | None) -> rtnetlink.Lookup | None:
    """Return the route of a packet that comes from behind this node, where it would forward it."""
    inward = None if source is None else rtnetlink.look_up(family, source)
    forwarded = None
    if inward is not None and inward.device and inward.kind != LOCAL:
        forwarded = rtnetlink.look_up(family, destination, source, inward.device)
    return forwarded or rtnetlink.look_up(family, destination)
