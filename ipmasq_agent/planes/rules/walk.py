"""The chains of a table as a packet meets them: which rule decides, for each destination.

Rules that run before and after our chain count as much as ours. A rule that holds for some
packets only is an exception; one that cannot be read makes the verdict unknown for the
destinations that it may match.
"""

from __future__ import annotations

import enum
from bisect import bisect_right
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from ipmasq_agent.planes.interpretation import Decider, Partial, RuleException
from ipmasq_agent.planes.rules.matching import (
    Match,
    Question,
    destination_of,
    destinations,
    matches_of,
)
from ipmasq_agent.planes.rules.rule import Rule
from ipmasq_agent.planes.rules.table import Table
from ipmasq_agent.policy.decisions import Entry, Stated, Verdict, first_match
from ipmasq_agent.policy.ranges import intersections

_MARKING = frozenset({"MARK", "CONNMARK"})
_PASSING = _MARKING | {"LOG", "NFLOG", "TRACE", "AUDIT", "SET", "ULOG"}
# Chains call chains; the kernel allows 16 levels in nf_tables, and knows no loops.
_DEEPEST = 64

V = TypeVar("V")


class ChainOutcome(enum.Enum):
    """What a chain does with a packet; RETURN where no rule of it decides."""

    MASQUERADE = enum.auto()
    KEEP = enum.auto()
    RETURN = enum.auto()
    UNKNOWN = enum.auto()


VERDICTS = {
    ChainOutcome.MASQUERADE: Verdict.MASQUERADE,
    ChainOutcome.KEEP: Verdict.NON_MASQUERADE,
    ChainOutcome.UNKNOWN: Verdict.UNKNOWN,
}


@dataclass(frozen=True, slots=True)
class ChainRole:
    """What chains of a kind are asked.

    Attributes:
        outcomes: target → what it means that a packet comes to it.
        passing: targets after which a packet goes on in the chain; None for all others.
    """

    outcomes: Mapping[str, ChainOutcome]
    passing: Container[str] | None


_ENDINGS = {"ACCEPT": ChainOutcome.KEEP, "RETURN": ChainOutcome.RETURN}
TRANSLATING = ("MASQUERADE", "SNAT", "NETMAP")
NAT = ChainRole(_ENDINGS | dict.fromkeys(TRANSLATING, ChainOutcome.MASQUERADE), _PASSING)
"""Is its source translated?"""
TRACKING = ChainRole(
    _ENDINGS
    | dict.fromkeys(("DROP", "REJECT"), ChainOutcome.KEEP)
    | {"NOTRACK": ChainOutcome.MASQUERADE},
    None,
)
"""Is it left untracked? MASQUERADE stands for yes: to drop it is not what is asked."""


class ChainReading(NamedTuple):
    """What a chain does: to each destination for certain, and to some packets; marks set."""

    ranges: list[Entry[ChainOutcome]]
    partial: list[Partial]
    marked: bool


def overlapping(ranges: list[Entry[V]], first: int, last: int) -> Iterator[Entry[V]]:
    """Yield those of the sorted, complete ranges that overlap ``first`` to ``last``."""
    index = bisect_right(ranges, first, key=lambda entry: entry.first) - 1
    while index < len(ranges) and ranges[index].first <= last:
        yield ranges[index]
        index += 1


class Walk:
    """One walk through a table; each chain is read once, however often it is jumped to.

    Attributes:
        returned: the destinations that our chain returned, each with the rule that did.
        sources: the rules that translate to an address of their own, and that address as
            text, or a word where it is one of several.
        marked: a rule that was passed may have set the packet's mark.
    """

    def __init__(
        self,
        table: Table,
        base: str,
        asked: Question,
        *,
        own: str = "",
        guarded: Container[Rule] = (),
        guards: Container[str] = (),
        kind: ChainRole = NAT,
        suffix: str = "",
    ) -> None:
        """Prepare to walk.

        Args:
            table: with the chains.
            base: the chain that packets enter.
            asked: which packets.
            own: the chain that is ours.
            guarded: rules of ``base`` of which ``guards`` are no matches that count.
            guards: names of options.
            kind: what is asked.
            suffix: what tells the table's chains from those of others.
        """
        self.table = table
        self.base = base
        self.own = own
        self.marked = False
        self.returned: list[Entry[ChainOutcome]] = []
        self.sources: dict[Decider, str] = {}
        self._asked = asked
        self._guarded, self._guards = guarded, guards
        self._kind = kind
        self._suffix = suffix
        self._read: dict[tuple[str, bool], ChainReading] = {}

    def chain(self, name: str, callers: tuple[str, ...] = ()) -> ChainReading:
        """Return what a chain does; its outcome is RETURN where no rule decides."""
        key = (name, self.marked)
        if key not in self._read:
            self._read[key] = self._read_chain(name, (*callers, name))
        self.marked = self._read[key].marked
        return self._read[key]

    def _read_chain(self, name: str, callers: tuple[str, ...]) -> ChainReading:
        family = self.table.family
        entries: list[Entry[ChainOutcome]] = []
        positions: list[int] = []  # of the rule that each of the entries comes from
        doubted: list[Entry[ChainOutcome]] = []  # with those that may leave the chain early
        partial: list[tuple[int, Partial]] = []
        returning: list[tuple[int, Partial]] = []
        for position, rule in enumerate(self.table.rules(name), start=1):
            for item in self._rule(name, position, rule, callers):
                if isinstance(item, Entry):
                    doubted.append(item)
                    if item.verdict is ChainOutcome.UNKNOWN and rule.target == "RETURN":
                        continue
                    entries.append(item)
                    positions.append(position)
                elif item.exception.verdict is Verdict.UNKNOWN and rule.target == "RETURN":
                    returning.append((position, item))
                else:
                    partial.append((position, item))
            last = entries[-1] if entries else None
            if last and last.first == 0 and last.last == family.last_address:
                break  # no packet gets past it
        end = Stated(f"end of {name}")
        ranges = first_match(family, entries, ChainOutcome.RETURN, end)
        if len(doubted) > len(entries):
            # Where the rest of the chain decides nothing, to return or not is the same.
            same = [entry for entry in ranges if entry.verdict is ChainOutcome.RETURN]
            ranges = first_match(family, [*same, *doubted], ChainOutcome.RETURN, end)
        reached: list[Partial] = []
        if partial or returning:
            deciders = [
                Entry(entry.first, entry.last, position, entry.reason)
                for entry, position in zip(entries, positions, strict=True)
            ]
            reach = first_match(family, deciders, len(self.table.rules(name)) + 1, end)
            reached += _reached(partial, reach)
            # To return early matters only where the rest of the chain would decide.
            reached += (
                item.within(entry.first, entry.last)
                for item in _reached(returning, reach)
                for entry in overlapping(ranges, item.first, item.last)
                if entry.verdict is not ChainOutcome.RETURN
            )
        return ChainReading(ranges, reached, self.marked)

    def _rule(
        self, chain: str, position: int, rule: Rule, callers: tuple[str, ...]
    ) -> Iterator[Entry[ChainOutcome] | Partial]:
        """Yield what a rule decides for certain, and what it decides for some packets."""
        everything = ((0, self.table.family.last_address),)
        prefix = destination_of(rule, self.table.family)
        decider = Decider(chain + self._suffix, position, rule.text, prefix)
        if not rule.readable:
            yield Entry(*everything[0], ChainOutcome.UNKNOWN, decider)
            return
        guarded = chain == self.base and rule in self._guarded
        matches = matches_of(
            rule,
            self.table,
            self._asked,
            marked=self.marked,
            but=self._guards if guarded else (),
        )
        if matches is Match.NEVER:
            return
        self.marked |= rule.option("marks") is not None
        target = self._target(rule)
        if target is None:
            return
        ranges = destinations(rule, self.table)
        if ranges is None:
            ranges = everything
        calls = target in self.table.chains and target not in callers and len(callers) < _DEEPEST
        if calls:
            called = self.chain(target, callers)
            if matches is Match.ALWAYS and target == self.own:
                self.returned += clipped(
                    [e for e in called.ranges if e.verdict is ChainOutcome.RETURN], ranges
                )
            for first, last in ranges:
                for item in called.partial:
                    if item.first <= last and first <= item.last:
                        yield item.within(first, last)
            leaves = rule.option("goto") is not None
            decided = [e for e in called.ranges if leaves or e.verdict is not ChainOutcome.RETURN]
            outcomes = clipped(decided, ranges)
        else:
            outcome = self._kind.outcomes.get(target, ChainOutcome.UNKNOWN)
            if target in TRANSLATING[1:]:
                source = rule.option("to-source")
                self.sources[decider] = source.values[0] if source and source.values else "several"
            outcomes = (Entry(first, last, outcome, decider) for first, last in ranges)
        for entry in outcomes:
            if matches is Match.ALWAYS:
                yield entry
            elif matches is Match.UNREADABLE:
                yield Entry(entry.first, entry.last, ChainOutcome.UNKNOWN, decider)
            else:
                verdict = VERDICTS.get(entry.verdict, Verdict.UNKNOWN)
                if entry.verdict is ChainOutcome.RETURN and chain in (self.own, self.base):
                    verdict = Verdict.NON_MASQUERADE
                exception = RuleException(decider, verdict)
                yield Partial(exception, entry.first, entry.last)

    def _target(self, rule: Rule) -> str | None:
        """Return where the rule leads; None where the packet just goes on."""
        target = rule.target
        if target == "CT" and rule.option("notrack"):
            target = "NOTRACK"
        if target is None or target in self.table.chains or target in self._kind.outcomes:
            return target
        self.marked |= target in _MARKING
        if self._kind.passing is not None:
            return None if target in self._kind.passing else target
        return target if target.startswith(_OPEN) else None


_OPEN = ("vmap ", "verdict ")
"""How targets begin that may lead anywhere."""


def clipped(
    entries: Sequence[Entry[ChainOutcome]], ranges: Sequence[tuple[int, int]]
) -> Iterator[Entry[ChainOutcome]]:
    """Yield the parts of the entries that lie within the ranges; both ascend."""
    if len(ranges) == 1 and entries:
        first, last = ranges[0]
        if first <= entries[0].first and entries[-1].last <= last:
            yield from entries
            return
    spans = ((entry.first, entry.last) for entry in entries)
    for first, last, position, _ in intersections(spans, ranges):
        yield entries[position]._replace(first=first, last=last)


def _reached(partial: list[tuple[int, Partial]], deciders: list[Entry[int]]) -> Iterator[Partial]:
    """Yield the parts of each range that no rule before the exception decides."""
    for position, item in partial:
        for decider in overlapping(deciders, item.first, item.last):
            if decider.verdict >= position:
                yield item.within(decider.first, decider.last)
