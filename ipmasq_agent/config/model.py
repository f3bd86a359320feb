"""A document as understood: every key has a value, every prefix knows where it came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ipmasq_agent.config.durations import UNITS, show_duration
from ipmasq_agent.policy.addresses import Family, Prefix
from ipmasq_agent.policy.assemble import Wish
from ipmasq_agent.policy.decisions import Origin
from ipmasq_agent.policy.model import PortRange

DEFAULT_CIDR_LIMIT = 64
DEFAULT_RESYNC_INTERVAL = 60 * UNITS["s"]

# RFC 1918: address space for private networks.
PRIVATE = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")
# What --nomasq-all-reserved-ranges adds, each with the RFC that reserves it.
RESERVED = (
    "100.64.0.0/10",  # RFC 6598, shared address space
    "192.0.0.0/24",  # RFC 6890, protocol assignments
    "192.0.2.0/24",  # RFC 5737, documentation
    "192.88.99.0/24",  # RFC 7526, 6to4 relays
    "198.18.0.0/15",  # RFC 2544, benchmarks
    "198.51.100.0/24",  # RFC 5737, documentation
    "203.0.113.0/24",  # RFC 5737, documentation
    "240.0.0.0/4",  # RFC 1112, class E
)


@dataclass(frozen=True, slots=True)
class Flags:
    """The flags that bear on what a document means, in the defaults of upstream."""

    enable_ipv6: bool = False
    nomasq_all_reserved_ranges: bool = False
    random_fully: bool = True
    to_ports: tuple[PortRange, ...] = ()


@dataclass(frozen=True, slots=True)
class Config:
    """A document completed with defaults.

    Attributes:
        non_masquerade_cidrs: in the order of the document, each with its origin.
        cidr_limit: how many of them are accepted, both families together.
        masq_link_local: masquerade traffic to 169.254.0.0/16 too.
        masq_link_local_ipv6: masquerade traffic to fe80::/10 too.
        resync_interval: nanoseconds between two looks at the kernel; above 0.
    """

    non_masquerade_cidrs: tuple[tuple[Prefix, Origin], ...]
    cidr_limit: int = DEFAULT_CIDR_LIMIT
    masq_link_local: bool = False
    masq_link_local_ipv6: bool = False
    resync_interval: int = DEFAULT_RESYNC_INTERVAL

    def wish(self, flags: Flags) -> Wish:
        """Return what this document and the flags ask the policy to be."""
        link_local = {Family.IPV4: self.masq_link_local, Family.IPV6: self.masq_link_local_ipv6}
        families = (Family.IPV4, Family.IPV6) if flags.enable_ipv6 else (Family.IPV4,)
        return Wish(
            non_masquerade=self.non_masquerade_cidrs,
            masquerade_link_local=frozenset(
                f for f, masquerade in link_local.items() if masquerade
            ),
            families=families,
            ports=flags.to_ports,
            random_fully=flags.random_fully,
        )

    def view(self) -> dict[str, Any]:
        """Return the document's own keys, all of them, as plain data."""
        return {
            "nonMasqueradeCIDRs": [str(prefix) for prefix, _ in self.non_masquerade_cidrs],
            "cidrLimit": self.cidr_limit,
            "masqLinkLocal": self.masq_link_local,
            "masqLinkLocalIPv6": self.masq_link_local_ipv6,
            "resyncInterval": show_duration(self.resync_interval),
        }
