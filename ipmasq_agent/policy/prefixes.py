"""A user's prefixes, by the hundred thousand, in the order in which they are written."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import compress, repeat

from ipmasq_agent.policy.addresses import Family, Prefix
from ipmasq_agent.policy.columns import Chained, Lazy, Mapped
from ipmasq_agent.policy.decisions import Entries, Origin, Stated, Verdict

ListedReason = Origin | Stated
"""Why a prefix is in a list: an entry of a document, or words that stand for one."""
_FAMILIES = tuple(Family)
_HOST_BITS = {
    family: tuple((1 << family.bits - length) - 1 for length in range(family.bits + 1))
    for family in Family
}


class Listed(Lazy[tuple[Prefix, ListedReason]]):
    """Prefixes of any family with their reasons, as columns; pairs are made on access.

    Equal to any sequence of the same pairs.
    """

    __slots__ = ("_families", "_firsts", "_lengths", "_reasons")

    def __init__(
        self,
        families: Iterable[Family],
        firsts: Sequence[int],
        lengths: Iterable[int],
        reasons: Sequence[ListedReason],
    ) -> None:
        """Take one item of each column for each prefix; ``reasons`` may make its items."""
        self._families = bytes(map(_FAMILIES.index, families))
        self._firsts = firsts
        self._lengths = bytes(lengths)
        self._reasons = reasons

    @classmethod
    def empty(cls) -> Listed:
        """Return a list of nothing."""
        return cls((), (), (), ())

    @classmethod
    def of(cls, pairs: Iterable[tuple[Prefix, ListedReason]]) -> Listed:
        """Return any pairs in this form."""
        if isinstance(pairs, Listed):
            return pairs
        prefixes: list[Prefix] = []
        reasons: list[ListedReason] = []
        for prefix, reason in pairs:
            prefixes.append(prefix)
            reasons.append(reason)
        return cls(
            (prefix.family for prefix in prefixes),
            [prefix.first for prefix in prefixes],
            (prefix.length for prefix in prefixes),
            reasons,
        )

    @classmethod
    def chained(cls, lists: Iterable[Sequence[tuple[Prefix, ListedReason]]]) -> Listed:
        """Return several one after the other."""
        parts = [part for part in map(cls.of, lists) if len(part)]
        if len(parts) == 1:
            return parts[0]
        whole = cls.empty()
        whole._families = b"".join(part._families for part in parts)
        whole._firsts = [first for part in parts for first in part._firsts]
        whole._lengths = b"".join(part._lengths for part in parts)
        whole._reasons = Chained(part._reasons for part in parts)
        return whole

    def of_family(self, family: Family) -> Listed:
        """Return those of one family, in the same order."""
        wanted = _FAMILIES.index(family)
        count = self._families.count(wanted)
        if count == len(self):
            return self
        chosen = [number == wanted for number in self._families]
        return Listed(
            repeat(family, count),
            list(compress(self._firsts, chosen)),
            compress(self._lengths, chosen),
            Mapped(self._reasons.__getitem__, array("i", compress(range(len(self)), chosen))),
        )

    def columns(
        self, family: Family
    ) -> tuple[Sequence[int], Sequence[int], Sequence[int], Sequence[ListedReason]]:
        """Return first address, last address, length and reason of those of one family."""
        chosen = self.of_family(family)
        host_bits = _HOST_BITS[family]
        lasts = [
            first | host_bits[length]
            for first, length in zip(chosen._firsts, chosen._lengths, strict=True)
        ]
        return chosen._firsts, lasts, chosen._lengths, chosen._reasons

    def holds(self, prefix: Prefix) -> bool:
        """Whether a prefix is listed."""
        wanted = _FAMILIES.index(prefix.family), prefix.first, prefix.length
        return wanted in zip(self._families, self._firsts, self._lengths, strict=True)

    def _at(self, position: int) -> tuple[Prefix, ListedReason]:
        family = _FAMILIES[self._families[position]]
        prefix = Prefix(family, self._firsts[position], self._lengths[position])
        return prefix, self._reasons[position]

    def prefixes(self) -> Iterator[Prefix]:
        """Yield the prefixes alone."""
        return map(Prefix, map(_FAMILIES.__getitem__, self._families), self._firsts, self._lengths)

    def __iter__(self) -> Iterator[tuple[Prefix, ListedReason]]:
        return zip(self.prefixes(), self._reasons, strict=True)

    def __len__(self) -> int:
        return len(self._families)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return NotImplemented if not isinstance(other, Sequence) else False
        return all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    def __repr__(self) -> str:
        return repr(tuple(self))


def entries_of(
    family: Family, parts: Iterable[tuple[Verdict, Listed]], *, longest_first: bool
) -> Entries:
    """Return the prefixes of one family as entries in the order in which they are tried.

    Args:
        family: whose prefixes to take.
        parts: prefixes, each list with the verdict of all of them, in order.
        longest_first: try longer ones first; of two as long, the one named first.
    """
    firsts: list[int] = []
    lasts: list[int] = []
    lengths: list[int] = []
    verdicts: list[Verdict] = []
    sources: list[Sequence[ListedReason]] = []
    for verdict, listed in parts:
        its_firsts, its_lasts, its_lengths, its_reasons = listed.columns(family)
        firsts += its_firsts
        lasts += its_lasts
        lengths += its_lengths
        verdicts += repeat(verdict, len(its_firsts))
        sources.append(its_reasons)
    reasons: Sequence[ListedReason] = Chained(sources)
    if longest_first:
        order = sorted(range(len(firsts)), key=lengths.__getitem__, reverse=True)
        firsts, lasts, verdicts = (
            list(map(firsts.__getitem__, order)),
            list(map(lasts.__getitem__, order)),
            list(map(verdicts.__getitem__, order)),
        )
        reasons = Mapped(reasons.__getitem__, array("i", order))
    return Entries(family, firsts, lasts, verdicts, reasons)
