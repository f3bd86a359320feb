"""What the rules of a nat table decide, read as questions about packets.

See ``matching`` for the packet that is asked about, and ``neighbours`` for the chains that
stand beside the table at the same hook of the kernel.
"""

from __future__ import annotations

from dataclasses import replace

from ipmasq_agent.planes.interpretation import Decider, Interpretation, telling
from ipmasq_agent.planes.iptables.actions import GUARDING, action_of, guards_of
from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.planes.rules.matching import question
from ipmasq_agent.planes.rules.rule import Rule, find_all
from ipmasq_agent.planes.rules.table import POSTROUTING, Chain, Table
from ipmasq_agent.planes.rules.walk import VERDICTS, Walk
from ipmasq_agent.policy.decisions import DecisionMap, Entries, Stated, Verdict
from ipmasq_agent.policy.model import FamilyPolicy, Guards


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
    end = Stated(f"no rule of {POSTROUTING} translates it")
    by_rules = [e for e in (*hook.ranges, *walk.returned) if isinstance(e.reason, Decider)]
    decided = Entries(
        table.family,
        [entry.first for entry in by_rules],
        [entry.last for entry in by_rules],
        [VERDICTS.get(entry.verdict, Verdict.NON_MASQUERADE) for entry in by_rules],
        [entry.reason for entry in by_rules],
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
