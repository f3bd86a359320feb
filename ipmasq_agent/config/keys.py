"""The keys of the document, a record each.

Documents are read, joined, shown and described by this table; what a key does to the policy
stands in ``config.assemble``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ipmasq_agent.config.durations import UNITS
from ipmasq_agent.config.lists import DEVICES, SNAT, SOURCES, cidrs
from ipmasq_agent.config.model import AUTO, DEFAULT_CIDR_LIMIT, Auto, Config, Key
from ipmasq_agent.config.scalars import SWITCH, interval, number, variant, word
from ipmasq_agent.policy.addresses import Family, Prefix
from ipmasq_agent.policy.cidrs import parse_cidr
from ipmasq_agent.policy.decisions import Stated, Verdict
from ipmasq_agent.policy.prefixes import Listed

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
"""The one profile: what Cilium's eBPF masquerading does, with native routing."""
TUNNELLED = "cilium tunnel"
"""The same where the pods of other nodes are reached through a tunnel."""


def _ranges(texts: Iterable[str]) -> Listed:
    return Listed.of((parse_cidr(text), Stated("default")) for text in texts)


def _not_masqueraded(config: Config) -> Listed:
    """Return what the absent key nonMasqueradeCIDRs stands for.

    What is there by default yields to what the user says of the same prefix.
    """
    cilium = config[PROFILE] is not None
    if config[DEFAULT_ACTION] is Verdict.NON_MASQUERADE:
        return Listed.empty()  # to keep is the rule already
    if cilium and any(key.upstream for key in config.mentioned):
        return Listed.empty()  # Cilium has defaults for a document with none of its keys only
    every = cilium or config.flags.nomasq_all_reserved_ranges
    masquerade = config[MASQUERADE_CIDRS]
    ranges = _ranges(PRIVATE + (RESERVED if every else ()))
    return Listed.of(entry for entry in ranges if not masquerade.holds(entry[0]))


def _auto_to_cilium(config: Config) -> Auto | None:
    return AUTO if config[PROFILE] is not None else None


NON_MASQUERADE_CIDRS = Key(
    "nonMasqueradeCIDRs",
    cidrs(masked_by=CILIUM),
    _ranges(PRIVATE),
    "destinations that see the pod's own address",
    default="RFC 1918",
    upstream=True,
    default_of=_not_masqueraded,
)
CIDR_LIMIT: Key[int | None] = Key(
    "cidrLimit",
    number(like=DEFAULT_CIDR_LIMIT),
    DEFAULT_CIDR_LIMIT,
    "more entries than this, all lists of destinations together, are refused",
    default="see below",
    upstream=True,
    default_of=lambda config: config.flags.cidr_limit,
)
MASQ_LINK_LOCAL = Key(
    "masqLinkLocal",
    SWITCH,
    False,
    "masquerade traffic to 169.254.0.0/16 too",
    default="`false`",
    upstream=True,
)
MASQ_LINK_LOCAL_IPV6 = Key(
    "masqLinkLocalIPv6",
    SWITCH,
    False,
    "masquerade traffic to fe80::/10 too",
    default="`false`",
    upstream=True,
)
RESYNC_INTERVAL = Key(
    "resyncInterval",
    # What is shorter keeps a core busy on every node, and heals nothing sooner that matters.
    interval(shortest=UNITS["s"]),
    60 * UNITS["s"],
    "how often the kernel is looked at again, a second or more",
    default="`60s`",
    upstream=True,
)
MASQUERADE_CIDRS = Key(
    "masqueradeCIDRs",
    cidrs(),
    Listed.empty(),
    "destinations to masquerade although a shorter prefix of the other lists covers them",
)
DEFAULT_ACTION = Key(
    "defaultAction",
    word({"masquerade": Verdict.MASQUERADE, "keep": Verdict.NON_MASQUERADE}),
    Verdict.MASQUERADE,
    "what is done with destinations that are in no list: `masquerade`, or `keep` the pod's address",
    default="`masquerade`",
)
POD_CIDRS: Key[tuple[Prefix, ...] | Auto | None] = Key(
    "podCIDRs",
    SOURCES,
    None,
    "the only sources that are masqueraded; `auto` for the pod CIDRs of the node",
    default="any source",
    default_of=_auto_to_cilium,
)
NATIVE_ROUTING_CIDRS = Key(
    "nativeRoutingCIDRs",
    cidrs(),
    Listed.empty(),
    "destinations that can be reached with pod addresses, and see them",
)
EXEMPT_NODE_IPS = Key(
    "exemptNodeIPs",
    SWITCH,
    False,
    "never masquerade traffic to addresses of the cluster's nodes",
    default="`false`",
    default_of=lambda config: config[PROFILE] == CILIUM,
)
EGRESS_INTERFACES: Key[tuple[str, ...] | Auto | None] = Key(
    "egressInterfaces",
    DEVICES,
    None,
    "masquerade only what leaves through these devices; `auto` for those that lead out",
    default="any device",
    default_of=_auto_to_cilium,
)
_NO_SOURCE: Mapping[Family, int | Auto] = {}
SNAT_ADDRESS = Key(
    "snatAddress",
    SNAT,
    _NO_SOURCE,
    "translate to this address; `auto-route` for the preferred source of the route",
    default="that of the interface",
)
PROFILE: Key[str | None] = Key(
    "profile",
    variant({CILIUM: CILIUM}, {CILIUM: {"native": CILIUM, "tunnel": TUNNELLED}}),
    None,
    "`cilium`: all of the document means what it means to Cilium's eBPF masquerading; "
    "`{cilium: tunnel}` where that routes through a tunnel",
)

KEYS: tuple[Key[Any], ...] = (
    NON_MASQUERADE_CIDRS,
    CIDR_LIMIT,
    MASQ_LINK_LOCAL,
    MASQ_LINK_LOCAL_IPV6,
    RESYNC_INTERVAL,
    MASQUERADE_CIDRS,
    DEFAULT_ACTION,
    POD_CIDRS,
    NATIVE_ROUTING_CIDRS,
    EXEMPT_NODE_IPS,
    EGRESS_INTERFACES,
    SNAT_ADDRESS,
    PROFILE,
)
"""In the order in which they are shown."""


def view(config: Config) -> dict[str, Any]:
    """Return upstream's keys, all of them, and those of ours that are in use.

    In use is also what says the opposite of what a profile would.
    """
    return {
        key.name: key.kind.shown(config[key])
        for key in KEYS
        if key.upstream or not config[key] == key.absent == key.absence(config)
    }


def listed(config: Config) -> int:
    """Return how many destinations the lists name."""
    return sum(len(config[key]) for key in KEYS if key.kind.destinations)
