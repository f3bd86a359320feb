"""Intervals as the kernel's bytes and back, by the column and one by one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipmasq_agent.errors import KernelReadError
from ipmasq_agent.netlink import nft_elements
from ipmasq_agent.netlink.attributes import attributes
from ipmasq_agent.netlink.expressions import NftVerdict
from ipmasq_agent.netlink.nft_elements import (
    Element,
    Intervals,
    elements_of,
    intervals_of,
    pack,
    packed_elements,
    packed_intervals,
)
from ipmasq_agent.policy.addresses import Family
from tests.unit.strategies import FAMILIES, addresses


@st.composite
def intervals(draw: st.DrawFn) -> tuple[Family, Intervals]:
    """Disjoint intervals with a gap between two, as neighbours are joined."""
    family = draw(FAMILIES)
    ends = sorted(set(draw(st.lists(addresses(family), max_size=12))))
    pairs = [(a, b) for a, b in zip(ends[::2], ends[1::2], strict=False)]
    apart = [p for n, p in enumerate(pairs) if not n or pairs[n - 1][1] + 1 < p[0]]
    return family, Intervals([a for a, _ in apart], [b for _, b in apart])


def as_listed(family: Family, held: Intervals) -> bytes:
    """Return what the kernel lists: from the highest address down, nothing marked nested."""
    elements = [e for part in packed_intervals(family, held) for e in elements_of(part)]
    return b"".join(nft_elements._listed(element) for element in reversed(elements))


@given(intervals())
def test_what_is_packed_is_read_back(made: tuple[Family, Intervals]) -> None:
    family, held = made
    packed = b"".join(packed_intervals(family, held))
    assert intervals_of(family, packed) == Intervals(list(held.firsts), list(held.lasts))
    by_column = nft_elements._columns(family, as_listed(family, held))
    assert by_column == Intervals(list(held.firsts), list(held.lasts))
    assert intervals_of(family, as_listed(family, held)) == by_column


@given(intervals(), st.booleans())
def test_what_a_map_gives_is_read_back(made: tuple[Family, Intervals], chains: bool) -> None:
    family, (firsts, lasts, _) = made
    size = family.bits // 8
    values = [
        NftVerdict(-3, f"part{first}") if chains else first.to_bytes(size, "big")
        for first in firsts
    ]
    held = Intervals(firsts, lasts, values or ())
    assert intervals_of(family, b"".join(packed_intervals(family, held))) == held


@given(intervals(), st.data())
def test_what_is_not_of_the_usual_form_is_read_one_by_one(
    made: tuple[Family, Intervals], data: st.DataObject
) -> None:
    family, held = made
    elements = list(elements_of(as_listed(family, held)))
    shuffled = data.draw(st.permutations(elements))
    # The nft program ends an interval that never began, at the lowest address.
    shuffled.append(Element(bytes(family.bits // 8), is_end=True))
    listed = b"".join(nft_elements._listed(element) for element in shuffled)
    assert intervals_of(family, listed) == Intervals(list(held.firsts), list(held.lasts))


def test_neighbours_that_were_not_joined_stay_two() -> None:
    listed = [Element(bytes([10, 0, 0, n])) for n in (0, 8)]
    listed += [Element(bytes([10, 0, 0, n]), is_end=True) for n in (8, 16)]
    first = 10 << 24
    packed = b"".join(packed_elements(listed))
    found = intervals_of(Family.IPV4, packed)
    assert found == Intervals([first, first + 8], [first + 7, first + 15])


def test_keys_of_another_length_are_an_error_and_not_addresses() -> None:
    with pytest.raises(KernelReadError, match="16 bytes"):
        intervals_of(Family.IPV4, pack(Element(bytes(16))))


@pytest.mark.parametrize("family", list(Family))
def test_no_message_holds_more_than_its_length_can_say(family: Family) -> None:
    firsts = [n * 4 for n in range(5000)]
    parts = list(packed_intervals(family, Intervals(firsts, [n + 1 for n in firsts])))
    assert len(parts) > 2
    assert max(map(len, parts)) <= 0xFFFF - 4
    assert sum(len(list(attributes(part))) for part in parts) == 10_000
    elements = (Element(n.to_bytes(16, "big")) for n in range(5000))
    parts = list(packed_elements(elements))
    assert max(map(len, parts)) <= 0xFFFF - 4
    assert sum(len(list(attributes(part))) for part in parts) == 5000
