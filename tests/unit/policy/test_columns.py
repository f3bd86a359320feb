"""Columns and views hold what a plain list of the same items holds."""

from __future__ import annotations

from typing import SupportsIndex, overload

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.columns import Chained, Mapped, column, common_ends, differing
from tests.unit.strategies import FAMILIES, addresses

PARTS = st.lists(st.lists(st.integers(), max_size=4), max_size=5)


def check_same(view: Chained[int] | Mapped[int], items: list[int]) -> None:
    assert list(view) == items
    assert len(view) == len(items)
    for position in range(-len(items), len(items)):
        assert view[position] == items[position]
    assert list(view[1:]) == items[1:]
    assert list(view[::-2]) == items[::-2]
    for outside in (len(items), -len(items) - 1):
        with pytest.raises(IndexError):
            view[outside]


@given(PARTS)
def test_sequences_one_after_the_other_read_as_one(parts: list[list[int]]) -> None:
    check_same(Chained(parts), [item for part in parts for item in part])


@given(st.lists(st.integers(), min_size=1), st.data())
def test_picked_items_come_in_the_order_asked_for(whole: list[int], data: st.DataObject) -> None:
    positions = data.draw(st.lists(st.integers(0, len(whole) - 1)))
    check_same(Mapped(whole.__getitem__, positions), [whole[position] for position in positions])


@given(FAMILIES.flatmap(lambda f: st.tuples(st.just(f), st.lists(addresses(f)))))
def test_a_column_holds_any_address_of_its_family(case: tuple[Family, list[int]]) -> None:
    family, numbers = case
    assert list(column(family, numbers)) == numbers


@given(st.lists(st.integers(0, 2), max_size=30), st.lists(st.integers(0, 2), max_size=30))
def test_ends_are_common_up_to_the_first_item_that_differs(mine: list[int], his: list[int]) -> None:
    for shared in ([], [1] * 500):
        left, right = shared + mine, shared + his
        head, tail = common_ends(left, right)
        assert left[:head] == right[:head]
        assert left[head : head + 1] != right[head : head + 1] or left == right
        rest, others = left[head:], right[head:]
        assert rest[len(rest) - tail :] == others[len(others) - tail :]
        if tail < min(len(rest), len(others)):
            assert rest[-1 - tail] != others[-1 - tail]


ROWS = st.dictionaries(st.integers(0, 40), st.integers(0, 1))


@given(ROWS, ROWS, st.integers(0, 40))
def test_rows_that_differ_are_those_that_only_one_side_has(
    mine: dict[int, int], its: dict[int, int], where: int
) -> None:
    for shared in ({}, dict.fromkeys(range(100, 9_100), 2)):
        # What both have lies among what differs.
        left, right = (
            sorted((key + 10_000 * (key < 100 and key > where), value) for key, value in side)
            for side in ({**mine, **shared}.items(), {**its, **shared}.items())
        )
        keys, values = (tuple([row[n] for row in side] for side in (left, right)) for n in (0, 1))
        gone, come = differing((keys[0], keys[1]), (values[0], values[1]))
        assert [left[at] for at in gone] == sorted(set(left).difference(right))
        assert [right[at] for at in come] == sorted(set(right).difference(left))


class Watched(list[int]):
    """A list that counts what is asked of it."""

    items = 0
    longest = 0

    @overload
    def __getitem__(self, asked: SupportsIndex) -> int: ...
    @overload
    def __getitem__(self, asked: slice) -> list[int]: ...
    def __getitem__(self, asked: SupportsIndex | slice) -> int | list[int]:
        if isinstance(asked, slice):
            self.longest = max(self.longest, len(range(len(self))[asked]))
            return super().__getitem__(asked)
        self.items += 1
        return super().__getitem__(asked)


def test_what_lies_between_two_that_differ_is_compared_by_short_slices() -> None:
    many = range(1, 100_001)
    left, right = Watched(many), Watched([0, *many, 100_001])
    assert differing((left, right)) == ([], [0, 100_001])
    for side in (left, right):
        assert side.items < 10
        assert side.longest < 10_000
