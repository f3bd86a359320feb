"""A decision map as a hash:net set, and the way from one set to another."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st

from ipmasq_agent.planes.prefixset import (
    IN_PLACE,
    AddressSet,
    compile_set,
    difference,
    element,
    in_place,
    parts,
)
from ipmasq_agent.policy.addresses import Family, Prefix
from ipmasq_agent.policy.decisions import DecisionMap, Entry, Stated, Verdict
from tests.unit.strategies import FAMILIES, entries, maps, prefixes

V4, V6 = Family.IPV4, Family.IPV6
KEEP, MASQ = Verdict.NON_MASQUERADE, Verdict.MASQUERADE


def longest(elements: Iterable[int], family: Family, address: int) -> int | None:
    """The element that decides about an address, written down as ipset(8) has it."""
    around = []
    for code in elements:
        first, length, _ = parts(code)
        if address >> family.bits - length == first >> family.bits - length:
            around.append(code)
    return max(around, key=lambda code: parts(code).length, default=None)


def matches(elements: frozenset[int], family: Family, address: int) -> bool:
    """What hash:net says of an address."""
    code = longest(elements, family, address)
    return code is not None and not parts(code).nomatch


@st.composite
def nests(draw: st.DrawFn, family: Family) -> DecisionMap:
    """A map of prefixes that often nest, of both verdicts, in any order."""
    made = [
        Entry(p.first, p.last, draw(st.sampled_from([KEEP, MASQ])), Stated("x"))
        for p in draw(st.lists(prefixes(family), max_size=12))
    ]
    return DecisionMap(family, made, draw(st.sampled_from([KEEP, MASQ])))


@settings(max_examples=400)
@given(FAMILIES.flatmap(lambda f: st.one_of(maps(f), nests(f))))
def test_a_set_says_what_the_map_says_and_reads_back_as_it(decisions: DecisionMap) -> None:
    made = compile_set(decisions, "x")
    assert list(made.matched()) == list(decisions.stretches(KEEP))
    assert list(made.elements) == sorted(set(made.elements))
    assert all(parts(code).length for code in made.elements)
    covered = 0
    for first, last, code in made.decided():
        assert covered <= first <= last
        covered = last + 1
        for address in (first, last):
            assert longest(made.elements, made.family, address) == code
    for entry in list(decisions.ranges)[:40]:
        for address in (entry.first, entry.last):
            assert matches(frozenset(made.elements), made.family, address) is (
                decisions.decide(address).verdict is KEEP
            )


@given(FAMILIES.flatmap(lambda f: st.tuples(st.just(f), st.lists(prefixes(f), max_size=8))))
def test_prefixes_that_do_not_overlap_are_the_elements(case: tuple[Family, list[Prefix]]) -> None:
    family, drawn = case
    apart: list[Prefix] = []
    for prefix in drawn:
        if prefix.length and all(prefix.last < o.first or o.last < prefix.first for o in apart):
            apart.append(prefix)
    decisions = DecisionMap(family, [Entry(p.first, p.last, KEEP, Stated("x")) for p in apart])
    made = compile_set(decisions, "x")
    assert list(made.elements) == sorted(element(p.first, p.length) for p in apart)


def with_every_length(made: list[Entry[Verdict]], family: Family, default: Verdict) -> DecisionMap:
    """Return a map of the entries, in the lower half, and of one prefix of each length above."""
    half = 1 << family.bits - 1
    lower = [e._replace(first=e.first >> 1, last=e.last >> 1) for e in made]
    other = MASQ if default is KEEP else KEEP
    upper = [
        Entry(half | size, half | 2 * size - 1, other, Stated("one of each"))
        for size in (1 << family.bits - length for length in range(2, family.bits + 1))
    ]
    return DecisionMap(family, [*lower, *upper], default)


@settings(max_examples=200)
@given(FAMILIES.flatmap(lambda f: st.tuples(nests(f), entries(f, 3), st.data())))
def test_in_every_state_on_the_way_each_address_has_its_old_or_its_new_verdict(
    drawn: tuple[DecisionMap, list[Entry[Verdict]], st.DataObject],
) -> None:
    had, more, data = drawn
    kept = [e for e in had.entries if data.draw(st.booleans())]
    before = with_every_length(list(had.entries), had.family, had.default)
    after = with_every_length([*more, *kept], had.family, had.default)
    old, new = compile_set(before, "x"), compile_set(after, "x")
    steps = in_place(old, new)
    if steps is None:
        # Only the half itself has a length of its own; or an odd range is many prefixes.
        going, coming = difference(old.elements, new.elements)
        assert element(0, 1) in going or len(going) + len(coming) > IN_PLACE
        return
    half = 1 << before.family.bits - 1
    points = {p for d in (before, after) for e in d.ranges for p in (e.first, e.last) if p < half}
    verdicts = {p: {before.decide(p).verdict, after.decide(p).verdict} for p in points}
    state = set(old.elements)
    for step in steps:
        state -= {step.code, step.code ^ 1}
        state |= set() if step.gone else {step.code}
        held = frozenset(code for code in state if parts(code).first < half)
        for point, allowed in verdicts.items():
            says = KEEP if matches(held, before.family, point) else MASQ
            assert says in allowed
    assert sorted(state) == list(new.elements)


@settings(max_examples=300)
@given(FAMILIES.flatmap(nests))
def test_no_element_says_what_the_one_around_it_says(decisions: DecisionMap) -> None:
    made = compile_set(decisions, "x")
    bits = made.family.bits
    for code in made.elements:
        first, length, nomatch = parts(code)
        around = [
            (other.length, other.nomatch)
            for other in map(parts, made.elements)
            if other.length < length
            and first >> bits - other.length == other.first >> bits - other.length
        ]
        assert nomatch is not max(around, default=(0, True))[1]


def test_one_that_comes_or_goes_among_very_many_is_one_step() -> None:
    many = tuple(element(n << 8, 24) for n in range(50_000))
    whole = AddressSet("x", V4, many, 1 << 17)
    for number in (0, 77, 49_999):
        fewer = AddressSet("x", V4, many[:number] + many[number + 1 :], 1 << 17)
        assert in_place(fewer, whole) == [(many[number], False)]
        assert in_place(whole, fewer) == [(many[number], True)]


def test_a_new_set_is_filled_where_too_much_differs_or_the_old_one_is_too_small() -> None:
    few = tuple(element(n << 8, 24) for n in range(IN_PLACE + 1))
    assert in_place(AddressSet("x", V4, ()), AddressSet("x", V4, few)) is None
    assert in_place(AddressSet("x", V4, few[:1], 1), AddressSet("x", V4, few[:2], 8)) is None


def test_what_comes_does_so_before_anything_goes_and_what_is_around_goes_first() -> None:
    rest = (element(1 << 30, 1), element(1 << 30, 2), element(1 << 30, 3), element(1 << 30, 9))
    old = AddressSet("x", V4, (element(0, 2), element(0, 3, True), *rest))
    new = AddressSet("x", V4, (element(0, 4), element(0, 9, True), *rest))
    assert in_place(old, new) == [
        (element(0, 9, True), False),
        (element(0, 4), False),
        (element(0, 2), True),
        (element(0, 3, True), True),
    ]


def test_a_prefix_that_is_the_last_of_its_length_is_never_deleted_under_packets() -> None:
    alone = AddressSet("x", V4, (element(0, 8), element(1 << 30, 24)))
    assert in_place(alone, AddressSet("x", V4, alone.elements[:1])) is None
    # Another of that length comes in its stead, before it goes.
    other = AddressSet("x", V4, (element(0, 8), element(2 << 30, 24)))
    assert in_place(alone, other) == [(other.elements[1], False), (alone.elements[1], True)]
    # One that changes sides has not gone.
    turned = AddressSet("x", V4, (element(0, 8, True), element(1 << 30, 24)))
    assert in_place(alone, turned) == [(element(0, 8, True), False)]
