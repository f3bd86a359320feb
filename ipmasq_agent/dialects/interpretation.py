"""What the rules of a nat table decide, read as questions about packets.

See ``matching`` for the packet that is asked about, and ``hook`` for the chains that stand
beside the table at the same hook of the kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from ipmasq_agent.dialects.actions import GUARDING, action_of, guards_of
from ipmasq_agent.dialects.iptables import POSTROUTING, Placement
from ipmasq_agent.dialects.matching import question
from ipmasq_agent.dialects.rules import Rule, find_all
from ipmasq_agent.dialects.tables import Chain, Table
from ipmasq_agent.dialects.walk import VERDICTS, Partial, RuleException, Walk
from ipmasq_agent.policy.decisions import DecisionMap, Entries, Origin, Verdict
from ipmasq_agent.policy.model import FamilyPolicy, Guards


@dataclass(frozen=True, slots=True)
class Interpretation:
    """What a table decides, and the rules that decide otherwise for some packets.

    Attributes:
        policy: the decisions, with guards and action.
        exceptions: rules for some packets only.
        sources: the rules that translate to another address than the device's or than the
            action says, and that address as text, or a word where it is one of several.
    """

    policy: FamilyPolicy
    exceptions: tuple[RuleException, ...] = ()
    sources: dict[Origin, str] = field(default_factory=dict, compare=False)


def interpret(table: Table, placement: Placement, source: int | None = None) -> Interpretation:
    """Return what ``table`` decides about the packets of pods.

    Args:
        table: as read from a kernel, or as it will be.
        placement: the name of our chain; its masquerade rules tell the action.
        source: ask for packets of this source address only, so that rules which look at
            the source are answered rather than listed.
    """
    own = find_all(table.rules(POSTROUTING), placement.chain)
    guards = guards_of(own, table.family)
    walk = Walk(
        table,
        POSTROUTING,
        question(source),
        own=placement.chain,
        # What the guards say of a jump is no exception to anything.
        guarded=frozenset(own) if guards else (),
        guards=GUARDING if source is None else GUARDING - {"source"},
    )
    hook = walk.chain(POSTROUTING)
    end = Origin(f"no rule of {POSTROUTING} translates it")
    by_rules = [e for e in (*hook.ranges, *walk.returned) if e.origin.line is not None]
    decided = Entries(
        table.family,
        [entry.first for entry in by_rules],
        [entry.last for entry in by_rules],
        [VERDICTS.get(entry.verdict, Verdict.NON_MASQUERADE) for entry in by_rules],
        [entry.origin for entry in by_rules],
    )
    decisions = DecisionMap(table.family, decided, Verdict.NON_MASQUERADE, end)
    if guards is None:
        guards = Guards(local_destinations=any(rule.option("dst-type") is None for rule in own))
    action = action_of(table.rules(placement.chain), table.family)
    policy = FamilyPolicy(decisions, guards, action)
    return Interpretation(policy, tuple(telling(hook.partial, decisions)))


def only_ours(table: Table, placement: Placement) -> Table:
    """Return ``table`` without what others have at the hook; each rule keeps its number."""
    own = placement.chain
    hook = tuple(r if r.target == own else _SOMEBODYS for r in table.rules(POSTROUTING))
    return replace(table, chains={**table.chains, POSTROUTING: Chain(POSTROUTING, None, hook)})


_SOMEBODYS = Rule("(not ours)", ())


def telling(partial: Iterable[Partial], decisions: DecisionMap) -> Iterator[RuleException]:
    """Yield the exceptions that really decide otherwise, each with the ranges where it does."""
    found: dict[RuleException, list[tuple[int, int]]] = {}
    for exception, first, last in partial:
        for entry in decisions.between(first, last):
            if entry.verdict is not exception.verdict:
                differs = max(first, entry.first), min(last, entry.last)
                found.setdefault(exception, []).append(differs)
    for exception, ranges in found.items():
        yield replace(exception, ranges=tuple(ranges))
