"""What translating packets at a device takes: its number, its address, its headers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ipmasq_agent.host.rtnetlink import list_addresses, list_links
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
        sources: family → the address that the kernel would take first for what it sends.
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
    sources: dict[int, dict[Family, int]] = {}
    for wanted in (True, False):  # any address is better than none
        for found in list_addresses():
            if found.first_choice is wanted:
                sources.setdefault(found.device, {}).setdefault(found.family, found.address)
    return {
        link.name: EgressDevice(
            link.number,
            sources.get(link.number, {}),
            _ETHERNET_HEADER if link.hardware in (_ETHERNET, _LOOPBACK) else 0,
            link.hardware == _LOOPBACK,
        )
        for link in list_links()
    }
