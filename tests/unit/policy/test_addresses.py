"""Ranges as prefixes, exactly and with no prefix too many."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipmasq_agent.policy.addresses import Family, Prefix, parse_address, prefixes_of_range
from tests.unit.strategies import FAMILIES, addresses, prefixes


@given(FAMILIES.flatmap(lambda f: st.tuples(st.just(f), addresses(f), addresses(f))))
def test_prefixes_of_a_range_cover_it_exactly_and_in_order(case: tuple[Family, int, int]) -> None:
    family, *ends = case
    first, last = sorted(ends)
    expected = first
    for prefix in prefixes_of_range(family, first, last):
        assert prefix.first == expected
        assert prefix.first % (1 << family.bits - prefix.length) == 0
        expected = prefix.last + 1
    assert expected == last + 1


@given(FAMILIES.flatmap(lambda f: st.tuples(st.just(f), addresses(f), addresses(f))))
def test_prefixes_of_a_range_are_as_few_as_the_standard_library_finds(
    case: tuple[Family, int, int],
) -> None:
    family, *ends = case
    first, last = sorted(ends)
    make = ipaddress.IPv4Address if family is Family.IPV4 else ipaddress.IPv6Address
    summary = ipaddress.summarize_address_range(make(first), make(last))
    assert [str(p) for p in prefixes_of_range(family, first, last)] == [str(n) for n in summary]


@given(FAMILIES.flatmap(prefixes))
def test_a_prefix_is_the_one_prefix_of_its_own_range(prefix: Prefix) -> None:
    assert list(prefixes_of_range(prefix.family, prefix.first, prefix.last)) == [prefix]


def test_an_empty_range_has_no_prefixes() -> None:
    assert list(prefixes_of_range(Family.IPV4, 5, 4)) == []


@given(FAMILIES.flatmap(lambda f: st.tuples(st.just(f), addresses(f))))
def test_an_address_that_is_shown_reads_back(case: tuple[Family, int]) -> None:
    family, address = case
    assert parse_address(family.show(address)) == case


@pytest.mark.parametrize("text", ["", "10.0.0", "10.0.0.256", "010.0.0.1", "::g", "10.0.0.0/8"])
def test_what_is_not_an_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_address(text)


@given(FAMILIES.flatmap(lambda f: st.tuples(st.just(f), addresses(f), st.integers(0, f.bits))))
def test_an_address_is_shown_as_the_standard_library_shows_it(
    case: tuple[Family, int, int],
) -> None:
    family, address, zeros = case
    make = ipaddress.IPv4Address if family is Family.IPV4 else ipaddress.IPv6Address
    for shown in (address, address >> zeros << zeros):
        assert family.show(shown) == str(make(shown))


@pytest.mark.parametrize("family", list(Family))
def test_what_is_no_address_is_not_shown(family: Family) -> None:
    for number in (-1, -(1 << 64), family.last_address + 1, family.last_address + (1 << 64)):
        with pytest.raises(ValueError, match=r"address|permitted"):
            family.show(number)
