"""A long list of prefixes behaves as the plain tuple of its pairs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ipmasq_agent.policy.addresses import Family, Prefix
from ipmasq_agent.policy.decisions import Origin, Verdict, entry_of_prefix
from ipmasq_agent.policy.prefixes import Listed, entries_of
from tests.unit.strategies import FAMILIES, VERDICTS, prefixes

Pairs = list[tuple[Prefix, Origin]]
PAIRS = st.lists(
    st.tuples(FAMILIES.flatmap(prefixes), st.integers(1, 9).map(lambda n: Origin("x", "cm", n, 1))),
    max_size=8,
)


@given(PAIRS, FAMILIES.flatmap(prefixes))
def test_a_list_reads_as_its_pairs(pairs: Pairs, other: Prefix) -> None:
    listed = Listed.of(pairs)
    assert list(listed) == pairs
    assert listed == pairs
    assert repr(listed) == repr(tuple(pairs))
    assert [listed[n] for n in range(-len(pairs), len(pairs))] == pairs + pairs
    assert listed[::2] == tuple(pairs[::2])
    assert list(listed.prefixes()) == [prefix for prefix, _ in pairs]
    assert listed.holds(other) == (other in [prefix for prefix, _ in pairs])
    assert all(pair in listed for pair in pairs)


@given(st.lists(PAIRS, max_size=3))
def test_lists_join_in_order(lists: list[Pairs]) -> None:
    pairs = [pair for one in lists for pair in one]
    assert Listed.chained(map(Listed.of, lists)) == pairs


@given(PAIRS, PAIRS)
def test_another_list_is_another(pairs: Pairs, others: Pairs) -> None:
    assert (Listed.of(pairs) == others) == (pairs == others)
    assert Listed.of(pairs) != "a list"


@given(PAIRS, FAMILIES)
def test_the_prefixes_of_one_family_keep_their_order(pairs: Pairs, family: Family) -> None:
    expected = [pair for pair in pairs if pair[0].family is family]
    assert Listed.of(pairs).of_family(family) == expected
    firsts, lasts, lengths, origins = Listed.of(pairs).columns(family)
    assert list(firsts) == [prefix.first for prefix, _ in expected]
    assert list(lasts) == [prefix.last for prefix, _ in expected]
    assert list(lengths) == [prefix.length for prefix, _ in expected]
    assert list(origins) == [origin for _, origin in expected]


@given(st.lists(st.tuples(VERDICTS, PAIRS), max_size=3), FAMILIES, st.booleans())
def test_entries_are_tried_in_the_order_written_or_longest_first(
    parts: list[tuple[Verdict, Pairs]], family: Family, longest_first: bool
) -> None:
    expected = [
        (prefix, verdict, origin)
        for verdict, pairs in parts
        for prefix, origin in pairs
        if prefix.family is family
    ]
    if longest_first:
        expected.sort(key=lambda item: -item[0].length)
    listed = [(verdict, Listed.of(pairs)) for verdict, pairs in parts]
    made = entries_of(family, listed, longest_first=longest_first)
    assert list(made) == [entry_of_prefix(*item) for item in expected]
    assert [made[n] for n in range(len(made))] == list(made)
