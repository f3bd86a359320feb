"""What each key of a document does: a configuration and facts joined into a policy."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any

from ipmasq_agent.config.keys import (
    CIDR_LIMIT,
    DEFAULT_ACTION,
    EGRESS_INTERFACES,
    EXEMPT_NODE_IPS,
    MASQ_LINK_LOCAL,
    MASQ_LINK_LOCAL_IPV6,
    MASQUERADE_CIDRS,
    NATIVE_ROUTING_CIDRS,
    NON_MASQUERADE_CIDRS,
    POD_CIDRS,
    SNAT_ADDRESS,
    listed,
)
from ipmasq_agent.config.model import AUTO, DEFAULT_CIDR_LIMIT, Auto, Config
from ipmasq_agent.policy.addresses import Family, Prefix, collapsed
from ipmasq_agent.policy.decisions import (
    REST,
    DecisionMap,
    Entries,
    Entry,
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
    MANY_RULES,
    Action,
    Capabilities,
    FamilyPolicy,
    FixedSource,
    Guards,
    joined,
)
from ipmasq_agent.policy.prefixes import Listed, ListedReason, entries_of

LINK_LOCAL = {
    Family.IPV4: Prefix(Family.IPV4, 0xA9FE0000, 16),  # 169.254.0.0/16, RFC 3927
    Family.IPV6: Prefix(Family.IPV6, 0xFE80 << 112, 10),  # fe80::/10, RFC 4291
}
NO_SOURCE = Stated("podCIDRs names no source of this family")
NO_DEVICE = Stated("no device of this node is one of egressInterfaces")


def needs(config: Config) -> frozenset[Fact[Any]]:
    """Return the facts without which a configuration cannot be made into a policy."""
    asked: dict[Fact[Any], bool] = {
        NODE_ADDRESSES: config[EXEMPT_NODE_IPS],
        OWN_POD_CIDRS: config[POD_CIDRS] is AUTO,
        LINKS: config[EGRESS_INTERFACES] is not None,
        ROUTES: any(config[SNAT_ADDRESS].get(family) is AUTO for family in config.families),
    }
    return frozenset(fact for fact, needed in asked.items() if needed)


def follows(config: Config) -> frozenset[Fact[Any]]:
    """Return facts whose change calls for another look, though no policy depends on them."""
    named = any(named_source(config, family) is not None for family in config.families)
    return frozenset({ADDRESSES} if named else ())


def named_source(config: Config, family: Family) -> int | None:
    """Return the source address that the document itself gives for a family."""
    source = config[SNAT_ADDRESS].get(family)
    return None if isinstance(source, Auto) else source


def is_large(config: Config, facts: Facts) -> bool:
    """Whether one rule for each prefix would be too many for each packet to pass."""
    nodes = facts.get(NODE_ADDRESSES) if config[EXEMPT_NODE_IPS] else None
    many = MANY_RULES if CIDR_LIMIT in config.written else DEFAULT_CIDR_LIMIT
    return listed(config) + len(nodes or ()) > many


def may_differ(config: Config, before: Facts, after: Facts) -> bool:
    """Whether the two sets of facts may make different policies of a configuration."""
    # The devices of pods come and go all the time; those that a pattern takes do not.
    if _devices(config, before) != _devices(config, after):
        return True
    return any(before.get(fact) != after.get(fact) for fact in needs(config) - {LINKS})


def assemble_family(
    config: Config, family: Family, capabilities: Capabilities, facts: Facts = NO_FACTS
) -> FamilyPolicy:
    """Return the policy of one family.

    Raises:
        ValueError: ``facts`` lack what ``needs`` names.
    """
    missing = facts.missing(needs(config))
    if missing:
        raise ValueError(f"not known yet: {', '.join(fact.what for fact in missing)}")
    action = Action(
        config.flags.to_ports,
        config.flags.random_fully and capabilities.random_fully,
        _fixed_sources(family, config[SNAT_ADDRESS].get(family), facts),
    )
    sources = _sources(config, family, facts)
    devices = _devices(config, facts)
    nobody = NO_SOURCE if sources == () else NO_DEVICE if devices == () else None
    if nobody is not None:
        keep = DecisionMap(family, (), Verdict.NON_MASQUERADE, nobody)
        return FamilyPolicy(keep, action=action)
    default = config[DEFAULT_ACTION]
    rest = REST if default is Verdict.MASQUERADE else Stated("defaultAction: keep")
    decisions = DecisionMap(family, _entries(config, family, facts), default, rest)
    return FamilyPolicy(decisions, Guards(sources=sources, devices=devices), action)


def _entries(config: Config, family: Family, facts: Facts) -> Entries:
    """Return the entries in evaluation order.

    Where all say the same the user's order is kept, link-local first: it decides for the
    most packets of a node that uses it. Where verdicts differ the longest prefix wins,
    and a default of ours yields to what the user says of the same prefix.
    """
    own = config[MASQUERADE_CIDRS]
    ours: list[tuple[Prefix, ListedReason]] = []
    if config[EXEMPT_NODE_IPS]:
        reason = Stated("exemptNodeIPs: address of a node")
        ours += (
            (Prefix(family, address, family.bits), reason)
            for its_family, address in sorted(facts.get(NODE_ADDRESSES) or (), key=lambda a: a[1])
            if its_family is family
        )
    switch = MASQ_LINK_LOCAL if family is Family.IPV4 else MASQ_LINK_LOCAL_IPV6
    if not config[switch] and not own.holds(LINK_LOCAL[family]):
        ours.append((LINK_LOCAL[family], Stated(f"link-local, {switch.name}: false")))
    parts = (
        (Verdict.NON_MASQUERADE, Listed.of(ours)),
        (Verdict.MASQUERADE, own),
        (Verdict.NON_MASQUERADE, config[NON_MASQUERADE_CIDRS]),
        (Verdict.NON_MASQUERADE, config[NATIVE_ROUTING_CIDRS]),
    )
    return entries_of(family, parts, longest_first=len(own.of_family(family)) > 0)


def _sources(config: Config, family: Family, facts: Facts) -> tuple[Prefix, ...] | None:
    cidrs = config[POD_CIDRS]
    if isinstance(cidrs, Auto):
        cidrs = facts.get(OWN_POD_CIDRS)
    if cidrs is None:
        return None
    sources = collapsed(prefix for prefix in cidrs if prefix.family is family)
    return None if sources and not sources[0].length else sources  # all of them: any source


def _devices(config: Config, facts: Facts) -> tuple[str, ...] | None:
    patterns, links = config[EGRESS_INTERFACES], facts.get(LINKS)
    if patterns is None or links is None:
        return None
    if isinstance(patterns, Auto):
        return tuple(sorted(links.egress))
    return tuple(sorted(matching(patterns, links.names)))


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
