"""The decision map: every destination address has exactly one verdict, and its reason.

A map is built from entries in evaluation order (the first that covers an address
decides, as in a chain of rules) and kept as sorted disjoint ranges that cover the whole
address space. It remembers its entries, because data planes that evaluate in order
write them in the user's order.
"""

from __future__ import annotations

import enum
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from operator import gt
from typing import Generic, NamedTuple, TypeVar

from ipmasq_agent.policy.addresses import Family, Prefix


class Verdict(enum.StrEnum):
    """What happens to the source address of a packet to some destination."""

    MASQUERADE = "masquerade"
    NON_MASQUERADE = "non-masquerade"
    UNKNOWN = "unknown"
    """Only ever read back from a kernel: a rule decides that we cannot read."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a verdict comes from: the user's own entry, a default, or a rule that was read.

    ``line`` and ``column`` count from 1 and are None where there is no document.
    """

    text: str
    document: str | None = None
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        if self.document is None:
            return self.text
        place = "" if self.line is None else f":{self.line}"
        return f"{self.text} ({self.document}{place})"


V = TypeVar("V")


class Entry(NamedTuple, Generic[V]):
    """A range of destinations, ends included, with its verdict and the reason for it."""

    first: int
    last: int
    verdict: V
    origin: Origin


class Difference(NamedTuple):
    """A range of destinations on which two maps disagree, and what each says."""

    first: int
    last: int
    left: Entry[Verdict]
    right: Entry[Verdict]


REST = Origin("every other destination")


class DecisionMap:
    """Sorted disjoint ranges that cover an address family, each with one verdict.

    Two maps are equal when each address has the same verdict in both; reasons and the
    way in which ranges are cut are carried, not compared.
    """

    __slots__ = ("_firsts", "_shape", "default", "entries", "family", "ranges")

    def __init__(
        self,
        family: Family,
        entries: Iterable[Entry[Verdict]],
        default: Verdict = Verdict.MASQUERADE,
        default_origin: Origin = REST,
    ) -> None:
        """Build the map in O(n log n).

        Args:
            family: whose addresses these are.
            entries: in evaluation order; where several cover an address the first decides.
            default: the verdict where none does.
            default_origin: the reason that goes with it.

        Raises:
            ValueError: an entry reaches outside the family's address space.
        """
        self.family = family
        self.entries = tuple(entries)
        self.default = default
        self.ranges = first_match(family, self.entries, default, default_origin)
        self._firsts = [entry.first for entry in self.ranges]
        self._shape: tuple[tuple[int, Verdict], ...] | None = None

    def decide(self, address: int) -> Entry[Verdict]:
        """Return the range that ``address`` falls into, in O(log n)."""
        if not 0 <= address <= self.family.last_address:
            raise ValueError(f"{address} is not an address of {self.family.value}")
        return self.ranges[bisect_right(self._firsts, address) - 1]

    def between(self, first: int, last: int) -> Iterator[Entry[Verdict]]:
        """Yield the ranges that overlap ``first`` to ``last``, in order."""
        position = bisect_right(self._firsts, first) - 1
        while position < len(self.ranges) and self.ranges[position].first <= last:
            yield self.ranges[position]
            position += 1

    def difference(self, other: DecisionMap) -> Iterator[Difference]:
        """Yield the ranges on which the verdicts differ, in order; none when equal."""
        if other.family is not self.family:
            raise ValueError("maps of two families have nothing to compare")
        mine, theirs = iter(self.ranges), iter(other.ranges)
        left, right = next(mine), next(theirs)
        first = 0
        while True:
            last = min(left.last, right.last)
            if left.verdict is not right.verdict:
                yield Difference(first, last, left, right)
            if last == self.family.last_address:
                return
            first = last + 1
            if left.last == last:
                left = next(mine)
            if right.last == last:
                right = next(theirs)

    def shape(self) -> tuple[tuple[int, Verdict], ...]:
        """Return where each stretch of one verdict begins: what equality compares."""
        if self._shape is None:
            shape: list[tuple[int, Verdict]] = []
            for entry in self.ranges:
                if not shape or shape[-1][1] is not entry.verdict:
                    shape.append((entry.first, entry.verdict))
            self._shape = tuple(shape)
        return self._shape

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DecisionMap):
            return NotImplemented
        return self.family is other.family and self.shape() == other.shape()

    def __hash__(self) -> int:
        return hash((self.family, self.shape()))

    def __repr__(self) -> str:
        shown = ", ".join(f"{self.family.show(f)}… {v}" for f, v in self.shape()[:6])
        more = "" if len(self.shape()) <= 6 else f", {len(self.shape()) - 6} more"
        return f"DecisionMap({self.family.value}: {shown}{more})"


def entry_of_prefix(prefix: Prefix, verdict: Verdict, origin: Origin) -> Entry[Verdict]:
    """Return the entry that gives every address of ``prefix`` the verdict."""
    return Entry(prefix.first, prefix.last, verdict, origin)


def first_match(
    family: Family, entries: Sequence[Entry[V]], default: V, default_origin: Origin
) -> list[Entry[V]]:
    """Return disjoint ranges in order, each with the verdict of the first entry covering it.

    One sweep over the address space, keeping the entries that cover the current address.
    The heap holds (position, last) of the entries entered so far, so its top is the one
    that decides; those that ended are dropped only when they come to the top.
    """
    end = family.last_address
    firsts = [entry.first for entry in entries]
    lasts = [entry.last for entry in entries]
    if entries and (min(firsts) < 0 or max(lasts) > end or any(map(gt, firsts, lasts))):
        raise ValueError(f"an entry is not a range of {family.value} addresses")
    order = sorted(range(len(entries)), key=firsts.__getitem__)
    starts = [firsts[position] for position in order]
    starts.append(end + 1)  # so that after the last there is always one more
    ranges: list[Entry[V]] = []
    covering: list[tuple[int, int]] = []
    address, upcoming = 0, 0
    before: Origin | None = None
    while address <= end:
        while starts[upcoming] <= address:
            position = order[upcoming]
            heappush(covering, (position, lasts[position]))
            upcoming += 1
        while covering and covering[0][1] < address:
            heappop(covering)
        last = starts[upcoming] - 1
        verdict, origin = default, default_origin
        if covering:
            position, its_last = covering[0]
            _, _, verdict, origin = entries[position]
            last = min(last, its_last)
        if origin is before and ranges[-1].verdict is verdict:
            ranges[-1] = ranges[-1]._replace(last=last)
        else:
            ranges.append(Entry(address, last, verdict, origin))
        before = origin
        address = last + 1
    return ranges
