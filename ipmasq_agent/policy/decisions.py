"""The decision map: every destination address has exactly one verdict, and its reason.

A map is built from entries in evaluation order (the first that covers an address
decides, as in a chain of rules) and kept as sorted disjoint ranges that cover the whole
address space. It remembers its entries, because data planes that evaluate in order
write them in the user's order. Both are columns of numbers; an ``Entry`` is made when it
is asked for.
"""

from __future__ import annotations

import enum
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import compress
from operator import eq
from typing import Generic, NamedTuple, Protocol, TypeVar

from ipmasq_agent.policy.addresses import Family, Prefix
from ipmasq_agent.policy.columns import Chained, Lazy, Mapped, alike, column
from ipmasq_agent.policy.ranges import NOBODY, are_apart, check_ranges, sweep


class Verdict(enum.StrEnum):
    """What happens to the source address of a packet to some destination."""

    MASQUERADE = "masquerade"
    NON_MASQUERADE = "non-masquerade"
    UNKNOWN = "unknown"
    """Only ever read back from a kernel: a rule decides that we cannot read."""


_VERDICTS = tuple(Verdict)
# A verdict as a byte, in columns.
_MARKS = {verdict: mark for mark, verdict in enumerate(_VERDICTS)}


class Reason(Protocol):
    """Why a verdict is what it is: any immutable value that says so as text.

    Reasons are carried, never compared. Of a document they are an ``Origin``, of words that
    stand for themselves a ``Stated``; those who read kernels have their own.
    """

    def __str__(self) -> str: ...


class Origin(NamedTuple):
    """An entry of a document; ``line`` and ``column`` count from 1."""

    text: str
    document: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.text} ({self.document}:{self.line})"


class Stated(NamedTuple):
    """What decides without being written anywhere: a default, a switch, a fact; in words."""

    text: str

    def __str__(self) -> str:
        return self.text


V = TypeVar("V")


class Entry(NamedTuple, Generic[V]):
    """A range of destinations, ends included, with its verdict and the reason for it."""

    first: int
    last: int
    verdict: V
    reason: Reason


REST = Stated("every other destination")


class Entries(Lazy[Entry[Verdict]]):
    """Entries of one family in evaluation order, as columns."""

    __slots__ = ("_firsts", "_lasts", "_marks", "_reasons", "family")

    def __init__(
        self,
        family: Family,
        firsts: Sequence[int],
        lasts: Sequence[int],
        verdicts: Iterable[Verdict],
        reasons: Sequence[Reason],
    ) -> None:
        """Take one item of each column for each entry.

        Raises:
            ValueError: an entry reaches outside the family's address space.
        """
        check_ranges(firsts, lasts, family.last_address)
        self.family = family
        self._firsts = column(family, firsts)
        self._lasts = column(family, lasts)
        self._marks = bytes(map(_MARKS.__getitem__, verdicts))
        self._reasons = reasons

    @classmethod
    def of(cls, family: Family, entries: Iterable[Entry[Verdict]]) -> Entries:
        """Return any entries in this form.

        Raises:
            ValueError: an entry reaches outside the family's address space.
        """
        if isinstance(entries, Entries) and entries.family is family:
            return entries
        columns = tuple(zip(*entries, strict=True)) or ((), (), (), ())
        firsts, lasts, verdicts, reasons = columns
        return cls(family, firsts, lasts, verdicts, reasons)

    def before(self, later: Entries) -> Entries:
        """Return these entries, and after them ``later`` ones."""
        both = (self, later)
        return Entries(
            self.family,
            Chained(entries._firsts for entries in both),
            Chained(entries._lasts for entries in both),
            map(_VERDICTS.__getitem__, self._marks + later._marks),
            Chained(entries._reasons for entries in both),
        )

    def swept(self) -> tuple[list[int], list[int]]:
        """Return where ranges begin, and the position that decides each (see ``sweep``)."""
        return sweep(self._firsts, self._lasts, self.family.last_address)

    def marks(self, positions: Iterable[int], default: Verdict) -> bytes:
        """Return the verdict of each of the positions as a byte, NOBODY's being the default."""
        return bytes(map((self._marks + bytes([_MARKS[default]])).__getitem__, positions))

    def decided(self, position: int) -> tuple[Verdict, Reason]:
        """Return verdict and reason of an entry."""
        return _VERDICTS[self._marks[position]], self._reasons[position]

    def spans(self) -> Iterator[tuple[int, int, Verdict]]:
        """Yield first, last and verdict of each entry; reasons are what takes time to make."""
        verdicts = map(_VERDICTS.__getitem__, self._marks)
        return zip(self._firsts, self._lasts, verdicts, strict=True)

    def apart(self, verdict: Verdict) -> tuple[Sequence[int], Sequence[int]] | None:
        """Return the ends of the entries, ascending, if all have this verdict and none overlap."""
        if self._marks.count(_MARKS[verdict]) < len(self):
            return None
        # Each sorted by itself, in C: ranges that do not overlap end in the order in which
        # they begin, and where some do overlap a later one begins before an end.
        firsts, lasts = sorted(self._firsts), sorted(self._lasts)
        return (firsts, lasts) if are_apart(firsts, lasts) else None

    def _at(self, position: int) -> Entry[Verdict]:
        return Entry(self._firsts[position], self._lasts[position], *self.decided(position))

    def __len__(self) -> int:
        return len(self._firsts)

    def __iter__(self) -> Iterator[Entry[Verdict]]:
        verdicts = map(_VERDICTS.__getitem__, self._marks)
        return map(Entry, self._firsts, self._lasts, verdicts, self._reasons)


class DecisionMap:
    """Sorted disjoint ranges that cover an address family, each with one verdict.

    Two maps are equal when each address has the same verdict in both; reasons and the
    way in which ranges are cut are carried, not compared.

    Attributes:
        entries: what it was built from, in evaluation order.
    """

    __slots__ = (
        *("_deciders", "_marks", "_merged", "_rest", "_starts"),
        *("default", "entries", "family"),
    )

    def __init__(
        self,
        family: Family,
        entries: Iterable[Entry[Verdict]],
        default: Verdict = Verdict.MASQUERADE,
        default_reason: Reason = REST,
    ) -> None:
        """Build the map in O(n log n), of entries the first of which decides about an address.

        Raises:
            ValueError: an entry reaches outside the family's address space.
        """
        self.family = family
        self.entries = columns = Entries.of(family, entries)
        self.default = default
        self._rest = default_reason
        starts, deciders = columns.swept()
        self._starts = column(family, starts)
        self._marks = columns.marks(deciders, default)
        self._deciders = array("i", deciders)
        self._merged: tuple[Sequence[int], bytes] | None = None

    @property
    def ranges(self) -> Sequence[Entry[Verdict]]:
        """The ranges in order, each with the verdict and the reason of its entry."""
        return Mapped(self._range, range(len(self._starts)))

    def _range(self, position: int) -> Entry[Verdict]:
        last = self.family.last_address
        if position + 1 < len(self._starts):
            last = self._starts[position + 1] - 1
        decider = self._deciders[position]
        if decider == NOBODY:
            return Entry(self._starts[position], last, self.default, self._rest)
        return Entry(self._starts[position], last, *self.entries.decided(decider))

    @property
    def verdicts(self) -> frozenset[Verdict]:
        """The verdicts that some address has."""
        return frozenset(_VERDICTS[mark] for mark in set(self._marks))

    def decide(self, address: int) -> Entry[Verdict]:
        """Return the range that ``address`` falls into, in O(log n)."""
        if not 0 <= address <= self.family.last_address:
            raise ValueError(f"{address} is not an address of {self.family.value}")
        return self._range(bisect_right(self._starts, address) - 1)

    def overlaid(self, entries: Iterable[Entry[Verdict]]) -> DecisionMap:
        """Return the map in which ``entries`` decide before those of this one."""
        over = Entries.of(self.family, entries)
        return DecisionMap(self.family, over.before(self.entries), self.default, self._rest)

    def between(self, first: int, last: int) -> Iterator[Entry[Verdict]]:
        """Yield the ranges that overlap ``first`` to ``last``, in order."""
        position = bisect_right(self._starts, first) - 1
        while position < len(self._starts) and self._starts[position] <= last:
            yield self._range(position)
            position += 1

    def changes(self, other: DecisionMap) -> Iterator[tuple[int, int, Verdict, Verdict]]:
        """Yield where the verdicts differ, in order: first, last, verdict here and there.

        Neighbours that differ alike are one.
        """
        if other.family is not self.family:
            raise ValueError("maps of two families have nothing to compare")
        end = self.family.last_address
        (starts, marks), (others, its_marks) = self._shape(), other._shape()
        i, j, first = 0, 0, 0
        while True:
            if starts[i] == others[j] and marks[i] == its_marks[j]:
                # Skip what is alike, but for its last range: that may end differently.
                run = alike(i, j, (starts, others), (marks, its_marks)) - 1
                i, j = i + run, j + run
                first = starts[i]
            left_last = starts[i + 1] - 1 if i + 1 < len(starts) else end
            right_last = others[j + 1] - 1 if j + 1 < len(others) else end
            last = min(left_last, right_last)
            if marks[i] != its_marks[j]:
                yield first, last, _VERDICTS[marks[i]], _VERDICTS[its_marks[j]]
            if last == end:
                return
            first = last + 1
            i += left_last == last
            j += right_last == last

    def stretches(self, verdict: Verdict) -> Iterator[tuple[int, int]]:
        """Return the ranges of one verdict, neighbours joined, as first and last address."""
        return zip(*self.ends(verdict), strict=True)

    def ends(self, verdict: Verdict) -> tuple[list[int], list[int]]:
        """Return first and last addresses of the ranges of one verdict, neighbours joined."""
        starts, marks = self._shape()
        chosen = marks.translate(bytes(mark == _MARKS[verdict] for mark in range(256)))  # 1 or 0
        after = [*starts[1:], self.family.last_address + 1]
        return list(compress(starts, chosen)), [start - 1 for start in compress(after, chosen)]

    def shape(self) -> tuple[tuple[int, Verdict], ...]:
        """Return where each stretch of one verdict begins: what equality compares."""
        starts, marks = self._shape()
        return tuple(zip(starts, map(_VERDICTS.__getitem__, marks), strict=True))

    def _shape(self) -> tuple[Sequence[int], bytes]:
        if self._merged is None:
            starts, marks = self._starts, self._marks
            if any(map(eq, marks, marks[1:])):
                new = [n for n in range(len(marks)) if not n or marks[n] != marks[n - 1]]
                starts = column(self.family, [starts[n] for n in new])
                marks = bytes(map(marks.__getitem__, new))
            self._merged = starts, marks
        return self._merged

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DecisionMap):
            return NotImplemented
        return self.family is other.family and self._shape() == other._shape()

    def __hash__(self) -> int:
        starts, marks = self._shape()
        return hash((self.family, tuple(starts), marks))

    def __repr__(self) -> str:
        shape = self.shape()
        shown = ", ".join(f"{self.family.show(f)}… {v}" for f, v in shape[:6])
        more = "" if len(shape) <= 6 else f", {len(shape) - 6} more"
        return f"DecisionMap({self.family.value}: {shown}{more})"


def entry_of_prefix(prefix: Prefix, verdict: Verdict, reason: Reason) -> Entry[Verdict]:
    """Return the entry that gives every address of ``prefix`` the verdict."""
    return Entry(prefix.first, prefix.last, verdict, reason)


def first_match(
    family: Family, entries: Sequence[Entry[V]], default: V, default_reason: Reason
) -> list[Entry[V]]:
    """Return disjoint ranges in order, each with the verdict of the first entry covering it.

    Neighbours of one verdict and the very same reason are one range.

    Raises:
        ValueError: an entry reaches outside the family's address space.
    """
    firsts, lasts = [e.first for e in entries], [e.last for e in entries]
    check_ranges(firsts, lasts, family.last_address)
    starts, deciders = sweep(firsts, lasts, family.last_address)
    ranges: list[Entry[V]] = []
    lasts_of_ranges = [start - 1 for start in starts[1:]] + [family.last_address]
    verdict_before: V | None = None
    reason_before: Reason | None = None
    for first, last, decider in zip(starts, lasts_of_ranges, deciders, strict=True):
        verdict, reason = default, default_reason
        if decider != NOBODY:
            _, _, verdict, reason = entries[decider]
        if reason is reason_before and verdict is verdict_before:
            ranges[-1] = ranges[-1]._replace(last=last)
        else:
            ranges.append(Entry(first, last, verdict, reason))
        verdict_before, reason_before = verdict, reason
    return ranges
