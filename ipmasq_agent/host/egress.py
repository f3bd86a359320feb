"""What translating packets at a device takes: its number, its address, its headers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ipmasq_agent.host.rtnetlink import Address, list_addresses, list_links, list_routes
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


def _sources() -> dict[int, dict[Family, int]]:
    """Return device → family → address.

    Of several, that in the subnet of the gateway of the device's default route, as MASQUERADE
    has it (inet_select_addr, net/ipv4/devinet.c); else the first. Any is better than none.
    """
    addresses = list_addresses()
    gateways = _gateways(addresses)
    sources: dict[int, dict[Family, int]] = {}
    for found in sorted(
        addresses,
        key=lambda one: (not one.first_choice, not _reaches(one, gateways)),  # else as listed
    ):
        sources.setdefault(found.device, {}).setdefault(found.family, found.address)
    return sources


def _gateways(addresses: Iterable[Address]) -> dict[int, int]:
    """Return device → the gateway of its default route in IPv4.

    Only of devices with more than one address there: others have no choice.
    """
    counts = Counter(found.device for found in addresses if found.family is Family.IPV4)
    if not any(count > 1 for count in counts.values()):
        return {}
    gateways: dict[int, int] = {}
    for route in sorted(list_routes(Family.IPV4, longest=0), key=lambda one: one.metric):
        for device, gateway in route.hops.items():
            if gateway is not None:
                gateways.setdefault(device, gateway)
    return gateways


def _reaches(found: Address, gateways: Mapping[int, int]) -> bool:
    gateway = gateways.get(found.device)
    return found.family is Family.IPV4 and gateway is not None and found.shares_subnet(gateway)
