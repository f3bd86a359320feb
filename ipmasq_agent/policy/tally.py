"""Counting what there is much of, in bounded room."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator
from itertools import islice
from typing import Generic, NamedTuple, TypeVar

K = TypeVar("K", bound=Hashable)

ROOM = 1 << 14
"""How many different things are remembered for sure, a few MB of them."""


class Tally(NamedTuple, Generic[K]):
    """How often things were met.

    Attributes:
        counts: those that were met most often, with how often.
        missed: how often each may have been met beyond its count.
    """

    counts: Counter[K]
    missed: int = 0


def tally(things: Iterator[K], most: int, room: int = ROOM) -> Tally[K]:
    """Count things; return those that are met most often.

    What is met seldom is forgotten while counting, and may come again: Manku and Motwani,
    Approximate Frequency Counts over Data Streams (2002).

    Args:
        things: as they are met.
        most: how many to return.
        room: how many different ones are remembered at least.
    """
    counts: Counter[K] = Counter()
    missed = 0
    for first in things:
        counts[first] += 1
        counts.update(islice(things, room))
        if len(counts) > room:
            cut = sorted(counts.values())[-room]
            counts = Counter({thing: n for thing, n in counts.items() if n > cut})
            missed += cut
    return Tally(Counter(dict(counts.most_common(most))), missed)
