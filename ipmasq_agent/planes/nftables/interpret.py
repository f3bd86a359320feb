"""What a table of nftables decides, read as questions about packets.

The packet that is asked about is what a pod sends out: first of its connection, to a
destination that is not the node's own. Only our own table is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ipmasq_agent.planes.interpretation import (
    Decider,
    Interpretation,
    Partial,
    RuleException,
    telling,
)
from ipmasq_agent.planes.nftables.compile import DEVICES, FIXED, POSTROUTING, SOURCES, translating
from ipmasq_agent.planes.nftables.rules import (
    Dispatch,
    Ending,
    Field,
    InSet,
    NftMatch,
    NftRule,
    OfProtocol,
    ToThisNode,
    Translate,
    Unreadable,
)
from ipmasq_agent.planes.nftables.state import NftSet, NftTable, SetKind
from ipmasq_agent.policy.addresses import Family, Prefix, prefixes_of_range, range_text
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
    reading.walk(POSTROUTING, _everything(table.family), ())
    decisions = DecisionMap(table.family, reading.entries(), Verdict.NON_MASQUERADE, nobody)
    exceptions = tuple(telling(reading.partial(), decisions))
    return Interpretation(FamilyPolicy(decisions, guards, action), exceptions)


def _everything(family: Family) -> NftSet:
    return NftSet(SetKind.ADDRESSES, (0,), (family.last_address,))


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
            text = rule.text(self.table.family)
            if callers or position > self._guarding:
                self._rule(name, position, rule, text, within, callers)
            elif self.source is not None and self._concerns(rule) is True:
                decider = Decider(name, position, text)
                self._decided.append(_Decided(within, Verdict.NON_MASQUERADE, decider, False))

    def _rule(
        self,
        chain: str,
        position: int,
        rule: NftRule,
        text: str,
        within: NftSet,
        callers: tuple[str, ...],
    ) -> None:
        concerns = self._concerns(rule)
        if concerns is False:
            return
        named = [
            m.name for m in rule.matches if isinstance(m, InSet) and m.field is Field.DESTINATION
        ]
        if isinstance(rule.action, Translate) and rule.action.fixed is not None:
            named.append(rule.action.fixed)
        unknown = any(self._set(name).kind is SetKind.UNKNOWN for name in named)
        ranges = _common([within, *(self._set(name) for name in named if not unknown)])
        if isinstance(rule.action, Dispatch):
            if concerns is True and len(callers) < _DEEPEST and chain not in callers:
                self._dispatch(rule.action, ranges, (*callers, chain))
                return
            verdict = Verdict.UNKNOWN
        elif isinstance(rule.action, Unreadable) or unknown:
            verdict = Verdict.UNKNOWN
        elif isinstance(rule.action, Translate):
            verdict = Verdict.MASQUERADE
        else:
            verdict = Verdict.NON_MASQUERADE
            if callers and rule.action is Ending.RETURN:
                verdict = Verdict.UNKNOWN  # goes on where it came from, which we never write
        decider = Decider(chain, position, text)
        if concerns is True:
            self._decided.append(_Decided(ranges, verdict, decider, bool(named)))
        elif not (self._whole and isinstance(rule.action, Translate) and not callers):
            exception = RuleException(decider, verdict)
            self._partial.append((exception, ranges, len(self._decided)))

    def _dispatch(self, action: Dispatch, within: NftSet, callers: tuple[str, ...]) -> None:
        parts = self._set(action.name)
        for first, last, value in zip(parts.firsts, parts.lasts, parts.values, strict=False):
            part = _common([within, NftSet(SetKind.ADDRESSES, (first,), (last,))])
            self.walk(str(value), part, callers)

    def _concerns(self, rule: NftRule) -> bool | None:
        """Whether the rule is about the packet, its destination apart; None for some packets."""
        answers = [self._matches(match) for match in rule.matches]
        if False in answers:
            return False
        return None if None in answers else True

    def _matches(self, match: NftMatch) -> bool | None:
        if isinstance(match, ToThisNode):
            return False
        if not isinstance(match, InSet):
            return None
        if match.field is Field.DESTINATION:
            return True
        if match.field is Field.SOURCE and self.source is not None:
            sources = self._set(match.name)
            pairs = zip(sources.firsts, sources.lasts, strict=True)
            return not any(first <= self.source <= last for first, last in pairs)
        return None

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
    of_sources, of_devices = InSet(Field.SOURCE, SOURCES), InSet(Field.DEVICE, DEVICES)
    expected: list[NftMatch] = [ToThisNode(), of_sources, of_devices]
    count = 0
    for rule in rules:
        if rule.action is not Ending.RETURN or len(rule.matches) != 1:
            break
        (match,) = rule.matches
        if match not in expected:
            break
        del expected[: expected.index(match) + 1]
        if isinstance(match, ToThisNode):
            local = False
        elif match == of_sources:
            held = table.sets.get(SOURCES, _EMPTY)
            if not held.firsts:
                break  # no source at all: the rule is read as any other
            sources = tuple(_prefixes(family, held))
        elif match == of_devices:
            names = table.sets.get(DEVICES, _EMPTY).names
            if not names:
                break
            devices = names
        count += 1
    return Guards(local, sources, devices), count


def _prefixes(family: Family, ranges: NftSet) -> Iterator[Prefix]:
    for first, last in zip(ranges.firsts, ranges.lasts, strict=True):
        yield from prefixes_of_range(family, first, last)


def _action(table: NftTable, rules: Sequence[NftRule]) -> tuple[Action, bool]:
    """Return the action that the chain's translating rules carry out, and if it is all of them.

    Ports count only where every rule is there that makes them whole; the odd rule of
    somebody's own is an exception, not an action.
    """
    ours = [rule for rule in rules if isinstance(rule.action, Translate)]
    plain = [rule.action for rule in ours if not rule.matches]
    random_fully = bool(plain) and isinstance(plain[-1], Translate) and plain[-1].random_fully
    ports: list[PortRange] = []
    for rule in ours:
        action = rule.action
        if isinstance(action, Translate) and action.fixed is None and action.ports is not None:
            ports += [action.ports] if OfProtocol(PORT_PROTOCOLS[-1]) in rule.matches else []
    held = table.sets.get(FIXED, _EMPTY)
    fixed = joined(
        FixedSource(first, last, value)
        for first, last, value in zip(held.firsts, held.lasts, held.values, strict=False)
        if isinstance(value, int)
    )
    if not any(isinstance(action, Translate) and action.fixed == FIXED for action in plain):
        fixed = ()
    found = Action(tuple(ports), random_fully, fixed)
    whole = list(translating(found)) == ours
    return (found if whole else replace(found, ports=())), whole
