"""Sweeping, comparing and intersecting ranges, against the slow and obvious way."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipmasq_agent.policy.ranges import NOBODY, check_ranges, intersections, sweep

END = 40
PAIRS = st.tuples(st.integers(0, END), st.integers(0, END)).map(lambda p: (min(p), max(p)))


@st.composite
def disjoint(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Ascending ranges that do not overlap; some touch."""
    ends = sorted(draw(st.sets(st.integers(0, END), max_size=16)))
    made = [
        (first, after - draw(st.integers(0, 1)))
        for first, after in zip(ends[::2], ends[1::2], strict=False)
    ]
    return [(first, last) for first, last in made if first <= last]


def expand(starts: Sequence[int], deciders: Sequence[int]) -> list[int]:
    """Who decides for each address."""
    after = [*starts[1:], END + 1]
    return [d for s, e, d in zip(starts, after, deciders, strict=True) for _ in range(s, e)]


def check_sweep(ranges: list[tuple[int, int]]) -> None:
    starts, deciders = sweep([r[0] for r in ranges], [r[1] for r in ranges], END)
    assert starts[0] == 0
    assert expand(starts, deciders) == [
        next((n for n, (first, last) in enumerate(ranges) if first <= a <= last), NOBODY)
        for a in range(END + 1)
    ]
    assert all(one != next_ for one, next_ in itertools.pairwise(deciders))


@given(st.lists(PAIRS, max_size=12))
def test_the_first_range_that_covers_an_address_decides(ranges: list[tuple[int, int]]) -> None:
    check_sweep(ranges)


@given(disjoint())
def test_ranges_that_do_not_overlap_decide_for_themselves_in_any_order(
    ranges: list[tuple[int, int]],
) -> None:
    check_sweep(ranges)
    check_sweep(ranges[::-1])


@given(disjoint(), disjoint())
def test_intersections_are_the_addresses_that_both_cover(
    left: list[tuple[int, int]], right: list[tuple[int, int]]
) -> None:
    found = list(intersections(left, right))
    for first, last, i, j in found:
        assert left[i][0] <= first <= last <= left[i][1]
        assert right[j][0] <= first <= last <= right[j][1]
    covered = [a for first, last, _, _ in found for a in range(first, last + 1)]
    mine = {a for first, last in left for a in range(first, last + 1)}
    theirs = {a for first, last in right for a in range(first, last + 1)}
    assert covered == sorted(mine & theirs)


@pytest.mark.parametrize(("first", "last"), [(-1, 3), (3, END + 1), (4, 3)])
def test_a_range_outside_the_space_is_refused(first: int, last: int) -> None:
    with pytest.raises(ValueError, match="not a range"):
        check_ranges([0, first], [0, last], END)
