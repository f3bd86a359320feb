"""Two changes at the ends of something large take no memory for what lies between them."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Sequence

import pytest

from ipmasq_agent.planes.nftables.compile import KEEP
from ipmasq_agent.planes.nftables.plan import plan
from ipmasq_agent.planes.nftables.state import NftTable, addresses
from ipmasq_agent.planes.prefixset import difference, element
from ipmasq_agent.policy.addresses import Family, Prefix
from ipmasq_agent.policy.decisions import DecisionMap, Stated, Verdict, entry_of_prefix

Compared = Callable[[Sequence[Prefix], Sequence[Prefix]], Callable[[], int]]
"""Makes of two lists of prefixes what is compared, and returns what counts the differences."""


def ranges(before: Sequence[Prefix], after: Sequence[Prefix]) -> Callable[[], int]:
    def table(held: Sequence[Prefix]) -> NftTable:
        family = held[0].family
        kept = addresses(family, [p.first for p in held], [p.last for p in held])
        return NftTable(family, "x", sets={KEEP: kept})

    old, new = table(before), table(after)
    return lambda: sum(plan(old, new).counts)


def elements(before: Sequence[Prefix], after: Sequence[Prefix]) -> Callable[[], int]:
    old, new = (tuple(element(p.first, p.length) for p in held) for held in (before, after))
    return lambda: sum(map(len, difference(old, new)))


def verdicts(before: Sequence[Prefix], after: Sequence[Prefix]) -> Callable[[], int]:
    old, new = (
        DecisionMap(
            held[0].family,
            [entry_of_prefix(p, Verdict.NON_MASQUERADE, Stated("a test")) for p in held],
        )
        for held in (before, after)
    )
    assert old != new
    return lambda: sum(1 for _ in old.changes(new))


@pytest.mark.parametrize("compared", [ranges, elements, verdicts])
@pytest.mark.parametrize("family", list(Family))
def test_what_lies_between_two_far_changes_takes_no_memory(
    family: Family, compared: Compared
) -> None:
    many = [Prefix(family, number << family.bits - 22, 24) for number in range(100_000)]
    differences = compared(many[1:-1], many)
    tracemalloc.start()
    try:
        assert differences() == 2
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # A column of all of them is 400 kB at the least.
    assert most < 1 << 18
