"""What translating packets at a device takes: its number, its address, its headers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ipmasq_agent.netlink.rt import Address, list_addresses, list_links, list_routes
from ipmasq_agent.policy.addresses import Family

# include/uapi/linux/if_arp.h: Ethernet and what looks like it. Tunnels, PPP and devices
# without addresses of their own begin their packets with the IP header.
_ETHERNET, _LOOPBACK = 1, 772
_ETHERNET_HEADER = 14


@dataclass(frozen=True, slots=True)
class EgressDevice:
    """A device as it is now.

    Attributes:
        number: its ifindex.
        sources: family → the address that masquerading takes for what is sent there.
        link_header: bytes before the IP header of its packets.
        loopback: it leads to the node itself alone.
    """

    number: int
    sources: Mapping[Family, int]
    link_header: int
    loopback: bool


def list_devices() -> dict[str, EgressDevice]:
    """Return every device of this network namespace by its name.

    Raises:
        KernelReadError: they cannot be listed.
    """
    sources = _sources()
    return {
        link.name: EgressDevice(
            link.number,
            sources.get(link.number, {}),
            _ETHERNET_HEADER if link.hardware in (_ETHERNET, _LOOPBACK) else 0,
            link.hardware == _LOOPBACK,
        )
        for link in list_links()
    }


def masquerading_source(addresses: Iterable[Address], gateway: int | None) -> int | None:
    """Return which address of a device MASQUERADE takes; None where there is none.

    That in the subnet of the next hop, else the first, and any rather than none
    (inet_select_addr, net/ipv4/devinet.c).

    Args:
        addresses: of one family, as listed.
        gateway: the next hop; None where it is not known, or the family has no such rule.
    """

    def rank(one: Address) -> tuple[bool, bool]:
        return not one.first_choice, gateway is None or not one.shares_subnet(gateway)

    chosen = min(addresses, key=rank, default=None)
    return None if chosen is None else chosen.address


def _sources() -> dict[int, dict[Family, int]]:
    """Return device → family → address; the next hop is the gateway of the default route."""
    addresses: dict[tuple[int, Family], list[Address]] = {}
    for found in list_addresses():
        addresses.setdefault((found.device, found.family), []).append(found)
    # A device with one address has no choice.
    some = any(f is Family.IPV4 and len(found) > 1 for (_, f), found in addresses.items())
    gateways = _gateways() if some else {}
    sources: dict[int, dict[Family, int]] = {}
    for (device, family), of_device in addresses.items():
        gateway = gateways.get(device) if family is Family.IPV4 else None
        source = masquerading_source(of_device, gateway)
        if source is not None:
            sources.setdefault(device, {})[family] = source
    return sources


def _gateways() -> dict[int, int]:
    """Return device → the gateway of its default route in IPv4."""
    gateways: dict[int, int] = {}
    for route in sorted(list_routes(Family.IPV4, longest=0), key=lambda one: one.metric):
        for device, gateway in route.hops.items():
            if gateway is not None:
                gateways.setdefault(device, gateway)
    return gateways
