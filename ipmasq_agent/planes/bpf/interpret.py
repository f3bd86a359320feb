"""What the programs of the eBPF data plane decide with the maps that they have."""

from __future__ import annotations

from functools import partial

from ipmasq_agent.planes.bpf.state import BpfRules, BpfState
from ipmasq_agent.planes.interpretation import Decider, Interpretation
from ipmasq_agent.planes.prefixset import AddressSet, parts
from ipmasq_agent.policy.addresses import Family, Prefix
from ipmasq_agent.policy.columns import Mapped
from ipmasq_agent.policy.decisions import DecisionMap, Entries, Stated, Verdict
from ipmasq_agent.policy.model import Action, FamilyPolicy, Guards, joined

TRIE = "the trie of decisions"
_VERDICTS = (Verdict.NON_MASQUERADE, Verdict.MASQUERADE)  # of a prefix, of an exception


def interpret(state: BpfState, source: int | None = None) -> Interpretation:
    """Return what the programs decide with these maps.

    A device without both programs takes part in nothing, whatever the maps say of it.
    """
    rules = state.rules
    working = tuple(sorted(name for name, hook in state.hooks.items() if hook.complete))
    if rules is None:
        return _nothing(state.family, "no policy is in force in the maps")
    if not working:
        return _nothing(state.family, "no device has the programs")
    if source is not None and not _admits(rules, source):
        return _nothing(state.family, "its source is not in the trie of sources")
    # Where each device that is meant has its programs the user's own list is the guard.
    devices = rules.devices if state.wanted(rules).keys() <= set(working) else working
    guards = Guards(rules.local_destinations, rules.sources, devices)
    action = Action(rules.ports, rules.random_fully, joined(rules.fixed))
    policy = FamilyPolicy(_decisions(rules.keep), guards, action)
    return Interpretation(policy, programs=working)


def _nothing(family: Family, why: str) -> Interpretation:
    """Return that nothing is masqueraded."""
    kept = DecisionMap(family, (), Verdict.NON_MASQUERADE, Stated(why))
    return Interpretation(FamilyPolicy(kept))


def _admits(rules: BpfRules, source: int) -> bool:
    if rules.sources is None:
        return True
    return any(prefix.holds(source) for prefix in rules.sources)


def _decisions(keep: AddressSet) -> DecisionMap:
    family = keep.family
    firsts, lasts, elements = tuple(zip(*keep.decided(), strict=True)) or ((), (), ())
    verdicts = (_VERDICTS[parts(code).nomatch] for code in elements)
    deciders = Mapped(partial(_decider, family), elements)
    entries = Entries(family, firsts, lasts, verdicts, deciders)
    rest = Stated(f"no prefix in {TRIE} keeps it")
    return DecisionMap(family, entries, Verdict.MASQUERADE, rest)


def _decider(family: Family, code: int) -> Decider:
    first, length, _ = parts(code)
    prefix = Prefix(family, first, length)
    return Decider(TRIE, None, str(prefix), prefix)
