"""A document as understood: every key has a value, every prefix knows where it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ipmasq_agent.config.durations import UNITS, show_duration
from ipmasq_agent.policy.addresses import Family, Prefix
from ipmasq_agent.policy.assemble import MANY_RULES, Auto, Wish
from ipmasq_agent.policy.decisions import Verdict
from ipmasq_agent.policy.model import PortRange
from ipmasq_agent.policy.prefixes import Listed

DEFAULT_CIDR_LIMIT = 64
DEFAULT_RESYNC_INTERVAL = 60 * UNITS["s"]
SHORTEST_RESYNC_INTERVAL = UNITS["s"]
"""What is shorter keeps a core busy on every node, and heals nothing sooner that matters."""

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


CILIUM = "cilium"
"""The one profile: what Cilium's eBPF masquerading does."""


@dataclass(frozen=True, slots=True)
class Flags:
    """The flags that bear on what a document means, in the defaults of upstream.

    Attributes:
        cidr_limit: how many entries a document may have that sets no limit itself; None
            for as many as the data plane can hold.
    """

    enable_ipv6: bool = False
    nomasq_all_reserved_ranges: bool = False
    random_fully: bool = True
    to_ports: tuple[PortRange, ...] = ()
    cidr_limit: int | None = DEFAULT_CIDR_LIMIT


@dataclass(frozen=True, slots=True)
class Config:
    """A document completed with defaults.

    Attributes:
        non_masquerade_cidrs: in the order of the document, each with its origin.
        cidr_limit: how many entries are accepted, both families and all lists of
            destinations together; None for no limit.
        cidr_limit_set: the document says so itself.
        masq_link_local: masquerade traffic to 169.254.0.0/16 too.
        masq_link_local_ipv6: masquerade traffic to fe80::/10 too.
        resync_interval: nanoseconds between two looks at the kernel; a second or more.
        masquerade_cidrs: to masquerade even within a shorter prefix that is not.
        default_action: the verdict where no list says anything.
        pod_cidrs: the only sources that are masqueraded; AUTO for those of the node.
        native_routing_cidrs: destinations that can be reached with pod addresses.
        exempt_node_ips: never masquerade traffic to a node of the cluster.
        egress_interfaces: patterns of the only devices to masquerade out of; AUTO for
            those that are found to lead out.
        snat: family → source address, AUTO for the route's preferred one.
        profile: ``cilium``, or None.
    """

    non_masquerade_cidrs: Listed
    cidr_limit: int | None = DEFAULT_CIDR_LIMIT
    cidr_limit_set: bool = False
    masq_link_local: bool = False
    masq_link_local_ipv6: bool = False
    resync_interval: int = DEFAULT_RESYNC_INTERVAL
    masquerade_cidrs: Listed = field(default_factory=Listed.empty)
    default_action: Verdict = Verdict.MASQUERADE
    pod_cidrs: tuple[Prefix, ...] | Auto | None = None
    native_routing_cidrs: Listed = field(default_factory=Listed.empty)
    exempt_node_ips: bool = False
    egress_interfaces: tuple[str, ...] | Auto | None = None
    snat: Mapping[Family, int | Auto] = field(default_factory=dict)
    profile: str | None = None

    @property
    def listed(self) -> int:
        """How many destinations the lists name."""
        lists = (self.non_masquerade_cidrs, self.masquerade_cidrs, self.native_routing_cidrs)
        return sum(len(entries) for entries in lists)

    def wish(self, flags: Flags) -> Wish:
        """Return what this document and the flags ask the policy to be."""
        link_local = {Family.IPV4: self.masq_link_local, Family.IPV6: self.masq_link_local_ipv6}
        families = (Family.IPV4, Family.IPV6) if flags.enable_ipv6 else (Family.IPV4,)
        return Wish(
            non_masquerade=self.non_masquerade_cidrs + self.native_routing_cidrs,
            masquerade_link_local=frozenset(
                f for f, masquerade in link_local.items() if masquerade
            ),
            families=families,
            ports=flags.to_ports,
            random_fully=flags.random_fully,
            masquerade=self.masquerade_cidrs,
            default=self.default_action,
            pod_cidrs=self.pod_cidrs,
            exempt_node_addresses=self.exempt_node_ips,
            egress_interfaces=self.egress_interfaces,
            snat={family: s for family, s in self.snat.items() if family in families},
            large_past=MANY_RULES if self.cidr_limit_set else DEFAULT_CIDR_LIMIT,
        )

    def view(self) -> dict[str, Any]:
        """Return upstream's keys, all of them, and those of ours that are in use."""
        return {
            "nonMasqueradeCIDRs": [str(prefix) for prefix, _ in self.non_masquerade_cidrs],
            "cidrLimit": self.cidr_limit,
            "masqLinkLocal": self.masq_link_local,
            "masqLinkLocalIPv6": self.masq_link_local_ipv6,
            "resyncInterval": show_duration(self.resync_interval),
        } | {key: value for key, value in self._added().items() if value is not None}

    def _added(self) -> dict[str, Any]:
        """Return our own keys, None for each that is off."""
        keep = self.default_action is Verdict.NON_MASQUERADE
        return {
            "masqueradeCIDRs": [str(prefix) for prefix, _ in self.masquerade_cidrs] or None,
            "defaultAction": "keep" if keep else None,
            "podCIDRs": _shown_list(self.pod_cidrs),
            "nativeRoutingCIDRs": [str(p) for p, _ in self.native_routing_cidrs] or None,
            # Said where a profile would otherwise say the opposite.
            "exemptNodeIPs": self.exempt_node_ips if self.exempt_node_ips or self.profile else None,
            "egressInterfaces": _shown_list(self.egress_interfaces),
            "snatAddress": {
                family.value: "auto-route" if isinstance(source, Auto) else family.show(source)
                for family, source in self.snat.items()
            }
            or None,
            "profile": self.profile,
        }


def _shown_list(values: tuple[Prefix, ...] | tuple[str, ...] | Auto | None) -> Any:
    if isinstance(values, Auto):
        return values.value
    return None if values is None else [str(value) for value in values]
