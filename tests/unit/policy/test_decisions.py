"""Every address has exactly one verdict: that of the first entry that covers it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipmasq_agent.policy.addresses import Family, Prefix
from ipmasq_agent.policy.decisions import (
    DecisionMap,
    Entry,
    Stated,
    Verdict,
    entry_of_prefix,
    first_match,
)
from tests.unit.strategies import ANY_MAP, FAMILIES, VERDICTS, addresses, entries, maps

V4 = Family.IPV4
MASQ, KEEP = Verdict.MASQUERADE, Verdict.NON_MASQUERADE
HERE = Stated("here")


def naive(entries: Sequence[Entry[Verdict]], default: Verdict, address: int) -> Verdict:
    """The reference: walk the entries as a packet walks a chain."""
    for entry in entries:
        if entry.first <= address <= entry.last:
            return entry.verdict
    return default


def corners(decisions: DecisionMap) -> set[int]:
    """Every address at which a verdict may change, and its neighbours."""
    ends = {0, decisions.family.last_address}
    for entry in (*decisions.entries, *decisions.ranges):
        ends |= {entry.first - 1, entry.first, entry.last, entry.last + 1}
    return {end for end in ends if 0 <= end <= decisions.family.last_address}


def _joined(ranges: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Ascending ranges, with those that touch as one."""
    while ranges:
        first, last = ranges.pop(0)
        while ranges and ranges[0][0] == last + 1:
            last = ranges.pop(0)[1]
        yield first, last


def check_map(decisions: DecisionMap, others: Sequence[int]) -> None:
    expected = 0
    assert list(decisions.ranges) == [decisions.ranges[n] for n in range(len(decisions.ranges))]
    assert list(decisions.entries.spans()) == [entry[:3] for entry in decisions.entries]
    ends = sorted((entry.first, entry.last) for entry in decisions.entries)
    overlap = any(before[1] >= after[0] for before, after in itertools.pairwise(ends))
    for verdict in Verdict:
        apart = decisions.entries.apart(verdict)
        if overlap or any(entry.verdict is not verdict for entry in decisions.entries):
            assert apart is None
        else:
            assert apart is not None
            assert list(zip(*apart, strict=True)) == ends
        said = [(e.first, e.last) for e in decisions.ranges if e.verdict is verdict]
        assert (verdict in decisions.verdicts) == bool(said)
        assert list(zip(*decisions.ends(verdict), strict=True)) == list(_joined(list(said)))
        assert list(decisions.stretches(verdict)) == list(_joined(said))
    for entry in decisions.ranges:
        assert entry.first == expected
        assert entry.last >= entry.first
        expected = entry.last + 1
    assert expected == decisions.family.last_address + 1
    for address in corners(decisions) | set(others):
        found = decisions.decide(address)
        assert found.first <= address <= found.last
        assert found.verdict is naive(decisions.entries, decisions.default, address)


MAP_AND_ADDRESSES = FAMILIES.flatmap(lambda f: st.tuples(maps(f), st.lists(addresses(f))))
TWO_MAPS = FAMILIES.flatmap(lambda f: st.tuples(maps(f), maps(f), st.lists(addresses(f))))


@given(MAP_AND_ADDRESSES)
def test_every_address_has_exactly_one_verdict_and_it_is_that_of_the_first_entry(
    case: tuple[DecisionMap, list[int]],
) -> None:
    check_map(*case)


@pytest.mark.long
@settings(max_examples=1_000)
@given(
    FAMILIES.flatmap(
        lambda f: st.tuples(maps(f, 30), st.lists(addresses(f), min_size=5, max_size=20))
    )
)
def test_many_entries_give_every_address_the_verdict_of_the_first(
    case: tuple[DecisionMap, list[int]],
) -> None:
    check_map(*case)


@given(ANY_MAP)
def test_the_reason_of_a_range_is_the_entry_that_decides_it(decisions: DecisionMap) -> None:
    for found in decisions.ranges:
        covering = [e for e in decisions.entries if e.first <= found.first <= e.last]
        if covering:
            assert found.reason is covering[0].reason
            assert covering[0].first <= found.first <= found.last <= covering[0].last
        else:
            assert str(found.reason) == "every other destination"


def check_difference(left: DecisionMap, right: DecisionMap, others: Sequence[int]) -> None:
    changes = list(left.changes(right))
    assert (not changes) == (left == right)
    assert [(first, last, b, a) for first, last, a, b in right.changes(left)] == changes
    for change, following in itertools.pairwise(changes):
        assert change[1] + 1 < following[0] or change[2:] != following[2:]
    for address in corners(left) | corners(right) | set(others):
        mine, theirs = left.decide(address).verdict, right.decide(address).verdict
        said = [c[2:] for c in changes if c[0] <= address <= c[1]]
        assert said == ([(mine, theirs)] if mine is not theirs else [])


@given(TWO_MAPS)
def test_difference_is_symmetric_and_covers_exactly_the_addresses_that_differ(
    case: tuple[DecisionMap, DecisionMap, list[int]],
) -> None:
    check_difference(*case)


@given(MAP_AND_ADDRESSES)
def test_a_map_cut_in_another_way_for_other_reasons_is_equal_and_hashes_alike(
    case: tuple[DecisionMap, list[int]],
) -> None:
    decisions, cuts = case
    pieces = []
    for entry in decisions.ranges:
        ends = sorted({cut for cut in cuts if entry.first < cut <= entry.last})
        for first, after in zip([entry.first, *ends], [*ends, entry.last + 1], strict=True):
            pieces.append(Entry(first, after - 1, entry.verdict, Stated(f"piece at {first}")))
    other = DecisionMap(decisions.family, reversed(pieces), KEEP)
    assert other == decisions
    assert hash(other) == hash(decisions)
    assert list(other.changes(decisions)) == []


@settings(max_examples=50)
@given(
    FAMILIES.flatmap(
        lambda f: st.tuples(maps(f), st.tuples(addresses(f), addresses(f)).map(sorted))
    )
)
def test_between_yields_just_the_ranges_that_overlap(case: tuple[DecisionMap, list[int]]) -> None:
    decisions, (first, last) = case
    expected = [e for e in decisions.ranges if e.first <= last and first <= e.last]
    assert list(decisions.between(first, last)) == expected


@given(FAMILIES.flatmap(entries), VERDICTS)
def test_a_map_of_one_family_never_equals_that_of_another(
    made: list[Entry[Verdict]], default: Verdict
) -> None:
    del made
    v4, v6 = DecisionMap(V4, (), default), DecisionMap(Family.IPV6, (), default)
    assert v4 != v6
    with pytest.raises(ValueError, match="two families"):
        list(v4.changes(v6))


@pytest.mark.parametrize(("first", "last"), [(-1, 5), (0, 1 << 32), (6, 5)])
def test_an_entry_outside_the_address_space_is_refused(first: int, last: int) -> None:
    with pytest.raises(ValueError, match="not a range"):
        DecisionMap(V4, [Entry(0, 1, KEEP, HERE), Entry(first, last, KEEP, HERE)])


@pytest.mark.parametrize("address", [-1, 1 << 32])
def test_what_is_no_address_of_the_family_has_no_verdict(address: int) -> None:
    with pytest.raises(ValueError, match="not an address"):
        DecisionMap(V4, ()).decide(address)


def test_a_map_equals_no_other_thing_and_shows_where_verdicts_begin() -> None:
    decisions = DecisionMap(V4, [entry_of_prefix(Prefix(V4, 10 << 24, 8), KEEP, HERE)])
    assert decisions != "a map"
    assert "10.0.0.0" in repr(decisions)
    many = DecisionMap(V4, [Entry(n, n, KEEP, HERE) for n in range(0, 40, 2)])
    assert "more" in repr(many)


def test_first_match_takes_any_verdicts_and_joins_ranges_of_one_reason() -> None:
    found = first_match(V4, [Entry(5, 9, "a", HERE), Entry(10, 12, "a", HERE)], "b", Stated("rest"))
    assert [(e.first, e.last, e.verdict) for e in found] == [
        (0, 4, "b"),
        (5, 12, "a"),
        (13, V4.last_address, "b"),
    ]


@pytest.mark.parametrize("family", list(Family))
def test_a_hundred_thousand_prefixes_are_looked_up_and_compared(family: Family) -> None:
    step, shift = 100_000, family.bits - 24
    entries = [
        entry_of_prefix(Prefix(family, (n * 2) << shift, 24), KEEP, HERE) for n in range(step)
    ]
    decisions = DecisionMap(family, entries)
    assert len(decisions.ranges) == 2 * step
    for n in (0, 1, 4_711, step - 1):
        assert decisions.decide((n * 2) << shift).verdict is KEEP
        assert decisions.decide((n * 2 + 1) << shift).verdict is MASQ
    changed = DecisionMap(family, [*entries[:500], *entries[501:]])
    assert list(decisions.changes(changed)) == [(entries[500].first, entries[500].last, KEEP, MASQ)]
    nested = DecisionMap(family, [Entry(n, step * 2 - n, KEEP, HERE) for n in range(step)])
    assert nested.decide(step).verdict is KEEP
