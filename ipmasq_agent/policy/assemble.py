"""Plain values (a user's prefixes with their origin, switches) joined into a policy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ipmasq_agent.policy.addresses import Family, Prefix
from ipmasq_agent.policy.decisions import DecisionMap, Entry, Origin, Verdict, entry_of_prefix
from ipmasq_agent.policy.model import Action, Capabilities, FamilyPolicy, PortRange

LINK_LOCAL = {
    Family.IPV4: Prefix(Family.IPV4, 0xA9FE0000, 16),  # 169.254.0.0/16, RFC 3927
    Family.IPV6: Prefix(Family.IPV6, 0xFE80 << 112, 10),  # fe80::/10, RFC 4291
}


@dataclass(frozen=True, slots=True)
class Wish:
    """What a document and the flags ask for, family by family.

    Attributes:
        non_masquerade: the user's prefixes in the order of the document.
        masquerade_link_local: families whose link-local addresses are masqueraded too.
        families: those to manage.
    """

    non_masquerade: tuple[tuple[Prefix, Origin], ...]
    masquerade_link_local: frozenset[Family]
    families: tuple[Family, ...]
    ports: tuple[PortRange, ...] = ()
    random_fully: bool = True


def assemble_family(wish: Wish, family: Family, capabilities: Capabilities) -> FamilyPolicy:
    """Return the policy of one family.

    Link-local comes first, as in every ip-masq-agent: it decides for the most packets of
    a node that uses it, and nothing after it can take it back.
    """
    action = Action(wish.ports, wish.random_fully and capabilities.random_fully)
    return FamilyPolicy(DecisionMap(family, _entries(wish, family)), action=action)


def _entries(wish: Wish, family: Family) -> Iterable[Entry[Verdict]]:
    if family not in wish.masquerade_link_local:
        switch = "masqLinkLocal" if family is Family.IPV4 else "masqLinkLocalIPv6"
        origin = Origin(f"link-local, {switch}: false")
        yield entry_of_prefix(LINK_LOCAL[family], Verdict.NON_MASQUERADE, origin)
    for prefix, origin in wish.non_masquerade:
        if prefix.family is family:
            yield entry_of_prefix(prefix, Verdict.NON_MASQUERADE, origin)
