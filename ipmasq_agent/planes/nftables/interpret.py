"""What a table of nftables decides, read as questions about packets.

The packet that is asked about is what a pod sends out: first of its connection, to a
destination that is not the node's own. Only our own table is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from ipmasq_agent.netlink import nft_numbers as nft
from ipmasq_agent.netlink.expressions import (
    Expression,
    Immediate,
    Masquerade,
    Nat,
    Payload,
    SetLookup,
)
from ipmasq_agent.planes.interpretation import (
    Decider,
    Interpretation,
    Partial,
    RuleException,
    telling,
)
from ipmasq_agent.planes.nftables.compile import (
    DEVICES,
    FIXED,
    POSTROUTING,
    RETURN,
    SOURCES,
    TO_THIS_NODE,
    Field,
    in_set,
    of_protocol,
    translating,
)
from ipmasq_agent.planes.nftables.state import NftRule, NftSet, NftTable, SetKind, asked
from ipmasq_agent.planes.rules.matching import Match, matches_of, question
from ipmasq_agent.planes.rules.native import Held, told
from ipmasq_agent.planes.rules.rule import Rule
from ipmasq_agent.planes.rules.table import Table
from ipmasq_agent.planes.rules.walk import NAT, TRANSLATING, VERDICTS, ChainOutcome
from ipmasq_agent.policy.addresses import Family, prefixes_of_range, range_text
from ipmasq_agent.policy.columns import Chained, Mapped
from ipmasq_agent.policy.decisions import DecisionMap, Entries, Stated, Verdict
from ipmasq_agent.policy.model import (
    PORT_PROTOCOLS,
    Action,
    FamilyPolicy,
    FixedSource,
    Guards,
    PortRange,
    joined,
)
from ipmasq_agent.policy.ranges import intersections

_EMPTY = NftSet(SetKind.ADDRESSES)
_DEEPEST = 16  # NFT_JUMP_STACK_SIZE
# Marks of destinations about which a rule further up decides, and of the others.
_TAKEN, _FREE = Verdict.NON_MASQUERADE, Verdict.MASQUERADE


def interpret(table: NftTable, source: int | None = None) -> Interpretation:
    """Return what ``table`` decides about the packets of pods."""
    chain = table.chains.get(POSTROUTING)
    hook = None if chain is None else chain.hook
    rules = () if chain is None else chain.rules
    nobody = Stated(f"no rule of the table {table.path} translates it")
    if hook is None or (hook.type, hook.name) != ("nat", POSTROUTING):
        decisions = DecisionMap(table.family, (), Verdict.NON_MASQUERADE, nobody)
        return Interpretation(FamilyPolicy(decisions))
    guards, guarding = _guards(table, rules)
    action, whole = _action(table, rules[guarding:])
    reading = _Reading(table, source, guarding, whole=whole)
    everything = NftSet(SetKind.ADDRESSES, (0,), (table.family.last_address,))
    reading.walk(POSTROUTING, everything, ())
    decisions = DecisionMap(table.family, reading.entries(), Verdict.NON_MASQUERADE, nobody)
    exceptions = tuple(telling(reading.partial(), decisions))
    return Interpretation(FamilyPolicy(decisions, guards, action), exceptions)


@dataclass(frozen=True, slots=True)
class _Decided:
    """Destinations that a rule decides about, and how; ``named`` where they are of a set."""

    ranges: NftSet
    verdict: Verdict
    rule: Decider
    named: bool


class _Reading:
    """One walk through the chains of a table, in the order in which a packet meets them."""

    def __init__(self, table: NftTable, source: int | None, guarding: int, *, whole: bool) -> None:
        self.table = table
        self.source = source
        # Rules ask sets of addresses for what they match, and that of ours can be told as well.
        known: dict[str, Held] = {}
        for name, held in table.sets.items():
            if held.kind is SetKind.DEVICES:
                known[name] = held.names
            elif held.kind is SetKind.ADDRESSES:
                known[name] = held
        self._known: Mapping[str, Held] = known
        self._sets = Table(table.family, {}, cast(Any, known))
        self._asked = question(source)
        self._guarding = guarding  # rules at the beginning that are guards
        self._whole = whole  # the translating rules are an action, together
        self._decided: list[_Decided] = []
        # Rules for some packets only, their destinations, and what was decided before them.
        self._partial: list[tuple[RuleException, NftSet, int]] = []

    def entries(self, count: int | None = None) -> Entries:
        """Return what was decided, in evaluation order; or the first ``count`` of it."""
        family, decided = self.table.family, self._decided[:count]
        return Entries(
            family,
            Chained(item.ranges.firsts for item in decided),
            Chained(item.ranges.lasts for item in decided),
            (item.verdict for item in decided for _ in item.ranges.firsts),
            Chained(_deciders(family, item) for item in decided),
        )

    def partial(self) -> Iterator[Partial]:
        """Yield the rules that decide for some packets, with the ranges that come to them."""
        for exception, ranges, count in self._partial:
            before = [entry._replace(verdict=_TAKEN) for entry in self.entries(count)]
            reached = DecisionMap(self.table.family, before, _FREE).stretches(_FREE)
            asked = zip(ranges.firsts, ranges.lasts, strict=True)
            for first, last, _, _ in intersections(asked, reached):
                yield Partial(exception, first, last)

    def walk(self, name: str, within: NftSet, callers: tuple[str, ...]) -> None:
        """Read a chain for packets to the destinations ``within``."""
        chain = self.table.chains.get(name)
        for position, rule in enumerate(chain.rules if chain else (), start=1):
            read = told(rule, self.table.family, self._known, str)
            if callers or position > self._guarding:
                self._rule(name, position, rule, read, within, callers)
            elif self.source is not None and self._matches(read) is Match.ALWAYS:
                decider = Decider(name, position, read.text)
                self._decided.append(_Decided(within, Verdict.NON_MASQUERADE, decider, False))

    def _rule(
        self,
        chain: str,
        position: int,
        rule: NftRule,
        read: Rule,
        within: NftSet,
        callers: tuple[str, ...],
    ) -> None:
        matches, target = self._matches(read), read.target
        if matches is Match.NEVER or target is None:
            return
        asks = {each.set: each.into for each in rule if isinstance(each, SetLookup)}
        named = [o.values[0] for o in read.meaning if o.name == "match-set" and "dst" in o.values]
        named += [name for name, into in asks.items() if into not in (None, nft.NFT_REG_VERDICT)]
        ranges = _common([within, *(self._set(name) for name in named)])
        parts = [name for name, into in asks.items() if into == nft.NFT_REG_VERDICT]
        may_call = len(callers) < _DEEPEST and chain not in callers
        if parts and matches is Match.ALWAYS and may_call:
            self._dispatch(parts[0], ranges, (*callers, chain))
            return
        outcome = NAT.outcomes.get(target, ChainOutcome.UNKNOWN)
        verdict = VERDICTS.get(outcome, Verdict.NON_MASQUERADE)
        if matches is Match.UNREADABLE or (callers and outcome is ChainOutcome.RETURN):
            verdict = Verdict.UNKNOWN  # the latter goes on where it came from: we never write it
        decider = Decider(chain, position, read.text)
        if matches is not Match.SOMETIMES:
            self._decided.append(_Decided(ranges, verdict, decider, bool(named)))
        elif not (self._whole and target in TRANSLATING and not callers):
            exception = RuleException(decider, verdict)
            self._partial.append((exception, ranges, len(self._decided)))

    def _dispatch(self, name: str, within: NftSet, callers: tuple[str, ...]) -> None:
        parts = self._set(name)
        for first, last, value in zip(parts.firsts, parts.lasts, parts.values, strict=False):
            part = _common([within, NftSet(SetKind.ADDRESSES, (first,), (last,))])
            self.walk(str(value), part, callers)

    def _matches(self, rule: Rule) -> Match:
        """Return whether a rule is about the packet, its destination apart."""
        return matches_of(rule, self._sets, self._asked, marked=False)

    def _set(self, name: str) -> NftSet:
        return self.table.sets.get(name, _EMPTY)


def _deciders(family: Family, decided: _Decided) -> Sequence[Decider]:
    """Return the reasons for the ranges of one rule: of a set, with the element."""
    rule, ranges = decided.rule, decided.ranges

    def decider(position: int) -> Decider:
        if not decided.named:
            return rule
        element = range_text(family, ranges.firsts[position], ranges.lasts[position])
        return rule._replace(text=f"{rule.text}, with {element} in it")

    return Mapped(decider, range(len(ranges.firsts)))


def _common(sets: Sequence[NftSet]) -> NftSet:
    """Return the addresses that are in all of the sets."""
    found = sets[0]
    for other in sets[1:]:
        if len(found.firsts) == 1 and len(other.firsts):
            first, last = found.firsts[0], found.lasts[0]
            if first <= other.firsts[0] and other.lasts[-1] <= last:
                found = other
                continue
        pairs = zip(found.firsts, found.lasts, strict=True)
        overlaps = list(intersections(pairs, zip(other.firsts, other.lasts, strict=True)))
        found = NftSet(SetKind.ADDRESSES, [o[0] for o in overlaps], [o[1] for o in overlaps])
    return found


def _guards(table: NftTable, rules: Sequence[NftRule]) -> tuple[Guards, int]:
    """Return the guards, and how many rules at the beginning of the chain express them."""
    family = table.family
    local, sources, devices = True, None, None
    of_node: NftRule = (*TO_THIS_NODE, RETURN)
    of_sources: NftRule = (*in_set(Field.SOURCE, SOURCES, family), RETURN)
    expected = [of_node, of_sources, (*in_set(Field.DEVICE, DEVICES, family), RETURN)]
    count = 0
    for rule in rules:
        if rule not in expected:
            break
        del expected[: expected.index(rule) + 1]
        if rule == of_node:
            local = False
        elif rule == of_sources:
            held = table.sets.get(SOURCES, _EMPTY)
            if not held.firsts:
                break  # no source at all: the rule is read as any other
            sources = tuple(p for ends in held.matched() for p in prefixes_of_range(family, *ends))
        else:
            names = table.sets.get(DEVICES, _EMPTY).names
            if not names:
                break
            devices = names
        count += 1
    return Guards(local, sources, devices), count


def _action(table: NftTable, rules: Sequence[NftRule]) -> tuple[Action, bool]:
    """Return the action that the chain's translating rules carry out, and if it is all of them.

    Ports count only where every rule is there that makes them whole; the odd rule of
    somebody's own is an exception, not an action.
    """
    ours = [rule for rule in rules if rule and isinstance(rule[-1], Masquerade | Nat)]
    plain = [rule for rule in ours if all(isinstance(each, _ACTING) for each in rule)]
    random_fully = bool(plain) and _is_random(plain[-1][-1])
    ports: list[PortRange] = []
    for rule in ours:
        if rule[:2] == of_protocol(PORT_PROTOCOLS[-1]) and isinstance(rule[-1], Masquerade):
            ends = [each.data for each in rule if isinstance(each, Immediate)]
            numbers = [int.from_bytes(end, "big") for end in ends if isinstance(end, bytes)]
            ports += [PortRange(numbers[0], numbers[-1])] if numbers else []
    held = table.sets.get(FIXED, _EMPTY)
    fixed = joined(
        FixedSource(first, last, value)
        for first, last, value in zip(held.firsts, held.lasts, held.values, strict=False)
        if isinstance(value, int)
    )
    if not any(FIXED in asked(rule) for rule in plain):
        fixed = ()
    found = Action(tuple(ports), random_fully, fixed)
    whole = list(translating(found, table.family)) == ours
    return (found if whole else replace(found, ports=())), whole


_ACTING = (Payload, SetLookup, Immediate, Masquerade, Nat)
"""Of what a rule is made that translates all packets."""


def _is_random(translating: Expression) -> bool:
    flags = translating.flags if isinstance(translating, Masquerade | Nat) else 0
    return bool(flags & nft.NF_NAT_RANGE_PROTO_RANDOM_FULLY)
