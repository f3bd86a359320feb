"""Plain values (a user's prefixes with their origin, switches, facts) joined into a policy."""

from __future__ import annotations

import enum
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ipmasq_agent.policy.addresses import Family, Prefix
from ipmasq_agent.policy.decisions import (
    REST,
    DecisionMap,
    Entries,
    Entry,
    Reason,
    Stated,
    Verdict,
    first_match,
)
from ipmasq_agent.policy.facts import (
    ADDRESSES,
    LINKS,
    NO_FACTS,
    NODE_ADDRESSES,
    OWN_POD_CIDRS,
    ROUTES,
    Fact,
    Facts,
)
from ipmasq_agent.policy.model import (
    Action,
    Capabilities,
    FamilyPolicy,
    FixedSource,
    Guards,
    PortRange,
    joined,
)
from ipmasq_agent.policy.prefixes import Listed, ListedReason, entries_of

LINK_LOCAL = {
    Family.IPV4: Prefix(Family.IPV4, 0xA9FE0000, 16),  # 169.254.0.0/16, RFC 3927
    Family.IPV6: Prefix(Family.IPV6, 0xFE80 << 112, 10),  # fe80::/10, RFC 4291
}


MANY_RULES = 256
"""How many rules a packet may have to pass before a set is much the better form: at 1,000
new flows are down to two thirds of what a set gives."""


class Auto(enum.Enum):
    """Says that a value is to be taken from the host or the cluster."""

    AUTO = "auto"


AUTO = Auto.AUTO


@dataclass(frozen=True, slots=True)
class Wish:
    """What a document and the flags ask for, family by family.

    Attributes:
        non_masquerade: the user's prefixes to leave alone, in the order of the document.
        masquerade: the user's prefixes to masquerade; of two that cover an address the
            longer one decides.
        default: the verdict where no prefix decides.
        masquerade_link_local: families whose link-local addresses are masqueraded too.
        families: those to manage.
        pod_cidrs: only packets from these sources are masqueraded; None for any source.
        exempt_node_addresses: never masquerade what goes to a node of the cluster.
        egress_interfaces: only out of these devices: globs, ``!`` before one excludes;
            None for any device.
        snat: family → the source address to use, or AUTO for the route's preferred one;
            without an entry it is that of the egress interface.
        large_past: how many prefixes are too many for one rule each.
    """

    non_masquerade: Sequence[tuple[Prefix, ListedReason]]
    masquerade_link_local: frozenset[Family]
    families: tuple[Family, ...]
    ports: tuple[PortRange, ...] = ()
    random_fully: bool = True
    masquerade: Sequence[tuple[Prefix, ListedReason]] = ()
    default: Verdict = Verdict.MASQUERADE
    pod_cidrs: tuple[Prefix, ...] | Auto | None = None
    exempt_node_addresses: bool = False
    egress_interfaces: tuple[str, ...] | Auto | None = None
    snat: Mapping[Family, int | Auto] = field(default_factory=dict)
    large_past: int = MANY_RULES

    @property
    def needs(self) -> frozenset[Fact[Any]]:
        """The facts without which this cannot be made into a policy."""
        asked: dict[Fact[Any], bool] = {
            NODE_ADDRESSES: self.exempt_node_addresses,
            OWN_POD_CIDRS: self.pod_cidrs is AUTO,
            LINKS: self.egress_interfaces is not None,
            ROUTES: AUTO in self.snat.values(),
        }
        return frozenset(need for need, needed in asked.items() if needed)

    def named_source(self, family: Family) -> int | None:
        """Return the source address that the document itself gives for a family."""
        source = self.snat.get(family)
        return None if isinstance(source, Auto) else source

    @property
    def follows(self) -> frozenset[Fact[Any]]:
        """Facts whose change calls for another look, though no policy depends on them."""
        named = any(self.named_source(family) is not None for family in self.families)
        return frozenset({ADDRESSES} if named else ())

    def is_large(self, facts: Facts) -> bool:
        """Whether one rule for each prefix would be too many for each packet to pass."""
        nodes = facts.get(NODE_ADDRESSES) if self.exempt_node_addresses else None
        size = len(self.non_masquerade) + len(self.masquerade) + len(nodes or ())
        return size > self.large_past

    def sees(self, before: Facts, after: Facts) -> bool:
        """Whether the two sets of facts may make different policies of this wish."""
        # The devices of pods come and go all the time; those that a pattern takes do not.
        if _devices(self, before) != _devices(self, after):
            return True
        return any(before.get(fact) != after.get(fact) for fact in self.needs - {LINKS})


def assemble_family(
    wish: Wish, family: Family, capabilities: Capabilities, facts: Facts = NO_FACTS
) -> FamilyPolicy:
    """Return the policy of one family.

    Raises:
        ValueError: ``facts`` lack what ``wish.needs`` names.
    """
    missing = facts.missing(wish.needs)
    if missing:
        raise ValueError(f"not known yet: {', '.join(fact.what for fact in missing)}")
    action = Action(
        wish.ports,
        wish.random_fully and capabilities.random_fully,
        _fixed_sources(family, wish.snat.get(family), facts),
    )
    sources = _sources(wish, family, facts)
    devices = _devices(wish, facts)
    nobody = _admits_nobody(sources, devices)
    if nobody is not None:
        keep = DecisionMap(family, (), Verdict.NON_MASQUERADE, nobody)
        return FamilyPolicy(keep, action=action)
    decisions = DecisionMap(family, _entries(wish, family, facts), wish.default, _rest(wish))
    return FamilyPolicy(decisions, Guards(sources=sources, devices=devices), action)


def _rest(wish: Wish) -> Reason:
    return REST if wish.default is Verdict.MASQUERADE else Stated("defaultAction: keep")


def _entries(wish: Wish, family: Family, facts: Facts) -> Entries:
    """Return the entries in evaluation order.

    Where all say the same the user's order is kept, link-local first: it decides for the
    most packets of a node that uses it. Where verdicts differ the longest prefix wins,
    and a default of ours yields to what the user says of the same prefix.
    """
    own, kept = Listed.of(wish.masquerade), Listed.of(wish.non_masquerade)
    ours: list[tuple[Prefix, ListedReason]] = []
    if wish.exempt_node_addresses:
        reason = Stated("exemptNodeIPs: address of a node")
        ours += (
            (Prefix(family, address, family.bits), reason)
            for its_family, address in sorted(facts.get(NODE_ADDRESSES) or (), key=lambda a: a[1])
            if its_family is family
        )
    if family not in wish.masquerade_link_local and not own.holds(LINK_LOCAL[family]):
        switch = "masqLinkLocal" if family is Family.IPV4 else "masqLinkLocalIPv6"
        ours.append((LINK_LOCAL[family], Stated(f"link-local, {switch}: false")))
    parts = (
        (Verdict.NON_MASQUERADE, Listed.of(ours)),
        (Verdict.MASQUERADE, own),
        (Verdict.NON_MASQUERADE, kept),
    )
    return entries_of(family, parts, longest_first=len(own.of_family(family)) > 0)


def _sources(wish: Wish, family: Family, facts: Facts) -> tuple[Prefix, ...] | None:
    cidrs = facts.get(OWN_POD_CIDRS) if wish.pod_cidrs is AUTO else wish.pod_cidrs
    if cidrs is None or isinstance(cidrs, Auto):
        return None
    sources = collapsed(prefix for prefix in cidrs if prefix.family is family)
    return None if sources and not sources[0].length else sources  # all of them: any source


def collapsed(prefixes: Iterable[Prefix]) -> tuple[Prefix, ...]:
    """Return the same addresses in the fewest prefixes, sorted."""
    outermost: list[Prefix] = []
    for prefix in sorted(prefixes, key=lambda p: (p.first, p.length)):
        if outermost and prefix.last <= outermost[-1].last:
            continue
        outermost.append(prefix)
        while len(outermost) > 1 and _siblings(*outermost[-2:]):
            del outermost[-1]
            family, first, length = outermost[-1]
            outermost[-1] = Prefix(family, first, length - 1)
    return tuple(outermost)


def _siblings(left: Prefix, right: Prefix) -> bool:
    parent = Prefix(left.family, left.first, left.length - 1) if left.length else None
    return parent is not None and left.length == right.length and parent.last == right.last


def _devices(wish: Wish, facts: Facts) -> tuple[str, ...] | None:
    links = facts.get(LINKS)
    if wish.egress_interfaces is None or links is None:
        return None
    if isinstance(wish.egress_interfaces, Auto):
        return tuple(sorted(links.egress))
    return tuple(sorted(matching(wish.egress_interfaces, links.names)))


def matching(patterns: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return the names that a pattern takes and no ``!`` pattern excludes.

    Where every pattern excludes, what is left of all names is meant.
    """
    excluding = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    including = [pattern for pattern in patterns if not pattern.startswith("!")] or ["*"]
    return [
        name
        for name in names
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in including)
        and not any(fnmatch.fnmatchcase(name, pattern) for pattern in excluding)
    ]


def _admits_nobody(
    sources: tuple[Prefix, ...] | None, devices: tuple[str, ...] | None
) -> Reason | None:
    if sources == ():
        return Stated("podCIDRs names no source of this family")
    if devices == ():
        return Stated("no device of this node is one of egressInterfaces")
    return None


def _fixed_sources(
    family: Family, snat: int | Auto | None, facts: Facts
) -> tuple[FixedSource, ...]:
    if snat is None:
        return ()
    if not isinstance(snat, Auto):
        return (FixedSource(0, family.last_address, snat),)
    routes = [(prefix, a) for prefix, a in facts.get(ROUTES) or () if prefix.family is family]
    routes.sort(key=lambda route: -route[0].length)
    reason = Stated("route")
    entries = [Entry(prefix.first, prefix.last, a, reason) for prefix, a in routes]
    ranges = first_match(family, entries, None, reason)
    return joined(FixedSource(f, last, a) for f, last, a, _ in ranges if a is not None)
