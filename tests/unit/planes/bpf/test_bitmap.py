"""The bitmap of IPv4's decisions says what the policy does, and does so while it is edited."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby, pairwise

import pytest
from hypothesis import example, given, settings

from ipmasq_agent.planes.bpf import bitmap as bitmaps
from ipmasq_agent.planes.bpf import layout
from ipmasq_agent.planes.bpf.bitmap import (
    ASK_PART,
    ASK_TRIE,
    BLOCK_SIZE,
    PARTS,
    Bitmap,
    bitmap,
    code_of,
    code_of_part,
    paint,
    rewriting,
)
from ipmasq_agent.planes.prefixset import compile_set, difference
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.decisions import DecisionMap, Entry, Stated, Verdict
from tests.unit.strategies import maps, nested_ipv4

V4 = Family.IPV4
CODES = {
    Verdict.MASQUERADE: layout.MASQUERADE,
    Verdict.NON_MASQUERADE: layout.NON_MASQUERADE,
}
POLICIES = nested_ipv4() | maps(V4, max_size=4)


def elements(decisions: DecisionMap) -> tuple[int, ...]:
    return tuple(compile_set(decisions, "decisions").elements)


def code(held: Bitmap, address: int) -> int:
    """What a bitmap says about an address."""

    def block(number: int) -> bytes | bytearray | None:
        if number < 2 * PARTS:
            first = (number - PARTS) * BLOCK_SIZE
            return held.outline[first : first + BLOCK_SIZE]
        return held.details.get(number)

    return code_of(address, block)


def borders(*policies: DecisionMap) -> list[int]:
    """Addresses on both sides of everything that decides."""
    found = {0, V4.last_address}
    for policy in policies:
        for first, last, _ in policy.entries.spans():
            found |= {first - 1, first, last, last + 1}
    return sorted(address for address in found if 0 <= address <= V4.last_address)


def decided(policy: DecisionMap, addresses: list[int]) -> dict[int, int]:
    """What a policy says of addresses, as codes."""
    return {address: CODES[policy.decide(address).verdict] for address in addresses}


@settings(max_examples=300)
@given(POLICIES)
@example(DecisionMap(V4, (), Verdict.NON_MASQUERADE))
def test_each_address_is_decided_as_the_policy_says(policy: DecisionMap) -> None:
    held, expected = bitmap(elements(policy)), decided(policy, borders(policy))
    assert {address: code(held, address) for address in expected} == expected


def stages(held: Bitmap, old: DecisionMap, new: DecisionMap) -> Iterator[None]:
    """Edit a bitmap as that of the kernel is, and say at each write that it was done."""
    before, after = elements(old), elements(new)
    going, coming = difference(before, after)
    change = rewriting(before, after, going | coming)
    for number in change.after:
        paint(held.outline, number, 1, ASK_TRIE)
    yield
    for number, codes in change.blocks.items():
        held.details[number] = bytearray(codes)
        yield
    for _, ends in groupby(change.after.items(), key=lambda item: item[0] >> 8):
        for number, code in ends:
            paint(held.outline, number, 1, code)
        yield


@settings(max_examples=30)
@given(POLICIES, POLICIES, POLICIES)
def test_an_edited_one_says_at_each_moment_what_the_old_or_the_new_policy_does(
    first: DecisionMap, second: DecisionMap, third: DecisionMap
) -> None:
    held = bitmap(elements(first))
    for old, new in pairwise((first, second, third)):
        before, after = (decided(policy, borders(old, new)) for policy in (old, new))
        for _ in stages(held, old, new):
            for address in after:
                assert code(held, address) in (ASK_TRIE, before[address], after[address])
        assert held.outline == bitmap(elements(new)).outline
        assert bitmap(elements(new)).details.items() <= held.details.items()
        assert {address: code(held, address) for address in after} == after


def test_an_edit_concerns_the_blocks_of_what_changes_alone() -> None:
    old = [
        Entry(n << 8, n << 8 | 15, Verdict.NON_MASQUERADE, Stated("x")) for n in range(0, 999, 3)
    ]
    new = [*old, Entry(700 << 8 | 128, 700 << 8 | 128, Verdict.NON_MASQUERADE, Stated("x"))]
    before, after = (elements(DecisionMap(V4, entries)) for entries in (old, new))
    change = rewriting(before, after, set(after) - set(before))
    assert change.before == change.after == {2: ASK_PART}
    # The /24 that has parts now comes first, then the /16 that leads to it.
    assert list(change.blocks) == [1 << 24 | 700, 1 << 16 | 2]


def test_what_has_no_room_is_left_to_the_trie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bitmaps, "MOST_DETAILS", 3)
    kept = [10 << 24 | n << 8 for n in range(4)] + [11 << 24]
    policy = DecisionMap(V4, [Entry(n, n, Verdict.NON_MASQUERADE, Stated("x")) for n in kept])
    held = bitmap(elements(policy))
    assert len(held.details) == 3
    assert [code(held, address) for address in kept] == [2, 2, ASK_TRIE, ASK_TRIE, ASK_TRIE]
    assert [code(held, address + 1) for address in kept] == [1, 1, ASK_TRIE, ASK_TRIE, ASK_TRIE]
    assert code(held, 12 << 24) == layout.MASQUERADE


@pytest.mark.parametrize("count", [1, 2, 4, 8, 64, 256])
def test_parts_are_painted_and_their_neighbours_are_not(count: int) -> None:
    for part in range(0, PARTS, count):
        codes = bytearray(BLOCK_SIZE)
        paint(codes, part, count, ASK_PART)
        painted = [n for n in range(PARTS) if code_of_part(codes, n)]
        assert painted == list(range(part, part + count))
