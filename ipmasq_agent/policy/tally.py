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
        counts: how often each was met; of very many those that were met most often.
        missed: how often each may have been met beyond its count.
    """

    counts: Counter[K]
    missed: int = 0


def tally(things: Iterator[K], room: int = ROOM) -> Tally[K]:
    """Count things.

    What is met seldom is forgotten while counting, and may come again: Manku and Motwani,
    Approximate Frequency Counts over Data Streams (2002).

    Args:
        things: as they are met.
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
    return Tally(counts, missed)
