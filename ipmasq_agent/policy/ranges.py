"""Ranges of addresses by the hundred thousand: who decides where, and where two overlap."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from heapq import heappop, heappush
from itertools import islice
from operator import gt, lt

NOBODY = -1
"""In place of the position of an entry: none covers this range."""


def check_ranges(firsts: Sequence[int], lasts: Sequence[int], end: int) -> None:
    """Make sure that each range goes upwards within 0 to ``end``.

    Raises:
        ValueError: one does not.
    """
    if firsts and (min(firsts) < 0 or max(lasts) > end or any(map(gt, firsts, lasts))):
        raise ValueError("an entry is not a range of addresses of its family")


def are_apart(firsts: Sequence[int], lasts: Sequence[int]) -> bool:
    """Whether ranges ascend without overlapping."""
    return all(map(lt, lasts, islice(firsts, 1, None)))


def sweep(firsts: Sequence[int], lasts: Sequence[int], end: int) -> tuple[list[int], list[int]]:
    """Cut 0 to ``end`` into ranges, each with the lowest position that covers it.

    Args:
        firsts: where each range begins, in the order in which they count.
        lasts: where each ends, itself included.
        end: the last address.

    Returns:
        The first address of each range, ascending from 0, and for each the position that
        decides or ``NOBODY``. No two neighbours have the same one. O(n log n).
    """
    order: Sequence[int] = range(len(firsts))
    if any(map(gt, firsts, islice(firsts, 1, None))):
        order = sorted(order, key=firsts.__getitem__)
        starting = [firsts[position] for position in order]
        ending = [lasts[position] for position in order]
    else:
        starting, ending = list(firsts), list(lasts)
    if are_apart(starting, ending):
        return _apart(starting, ending, order, end)
    return _nested(starting, lasts, order, end)


def _apart(
    starting: list[int], ending: list[int], order: Sequence[int], end: int
) -> tuple[list[int], list[int]]:
    """Do it for ranges that do not overlap, in ascending order."""
    starts, deciders = [], []
    address = 0
    for first, last, position in zip(starting, ending, order, strict=True):
        if address < first:
            starts.append(address)
            deciders.append(NOBODY)
        starts.append(first)
        deciders.append(position)
        address = last + 1
    if address <= end:
        starts.append(address)
        deciders.append(NOBODY)
    return starts, deciders


def _nested(
    starting: list[int], lasts: Sequence[int], order: Sequence[int], end: int
) -> tuple[list[int], list[int]]:
    """Do it for any ranges, ascending by where they start.

    One sweep over the address space. The heap holds the positions of those entered so far,
    so its top is the one that decides; those that ended are dropped only when they come to
    the top, and those that the top outlasts and outranks never get in.
    """
    starts: list[int] = []
    deciders: list[int] = []
    covering: list[int] = []
    starting.append(end + 1)  # so that after the last there is always one more
    address, upcoming, before, start = 0, 0, None, starting[0]
    while address <= end:
        while start <= address:
            position = order[upcoming]
            if not covering or position < covering[0] or lasts[position] > lasts[covering[0]]:
                heappush(covering, position)
            upcoming += 1
            start = starting[upcoming]
        while covering and lasts[covering[0]] < address:
            heappop(covering)
        decider, after = NOBODY, start
        if covering:
            decider = covering[0]
            if lasts[decider] < start:
                after = lasts[decider] + 1
        if decider != before:
            starts.append(address)
            deciders.append(decider)
            before = decider
        address = after
    return starts, deciders


_NONE = (0, -1)  # an empty range: the list has ended


def intersections(
    left: Iterable[tuple[int, int]], right: Iterable[tuple[int, int]]
) -> Iterator[tuple[int, int, int, int]]:
    """Yield where two lists of disjoint ascending ranges overlap, in linear time.

    Yields:
        first and last address of each overlap, and the positions of the two in their lists.
    """
    mine, theirs = enumerate(left), enumerate(right)
    i, (first, last) = next(mine, (0, _NONE))
    j, (other_first, other_last) = next(theirs, (0, _NONE))
    while first <= last and other_first <= other_last:
        low = first if first > other_first else other_first
        high = last if last < other_last else other_last
        if low <= high:
            yield low, high, i, j
        if last <= other_last:
            i, (first, last) = next(mine, (0, _NONE))
        else:
            j, (other_first, other_last) = next(theirs, (0, _NONE))
