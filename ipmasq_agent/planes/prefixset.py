"""A set of prefixes in which the longest that holds an address decides: how kernels keep many.

A prefix with ``nomatch`` is an exception within a shorter one, and the order of additions
means nothing. So such a set can say all that a decision map can, in the user's own
prefixes. ipset's ``hash:net`` and the tries of eBPF both are such sets; ``hash:net`` holds
no /0, so two /1 stand for that (ipset(8)).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ipmasq_agent.policy.addresses import Family, Prefix, prefixes_of_range
from ipmasq_agent.policy.columns import differing
from ipmasq_agent.policy.decisions import DecisionMap, Verdict

IN_PLACE = 256
"""Up to this many elements are changed in place; past it a new set is filled and swapped."""
_LEAST_ELEMENTS = 1 << 16
# An element is one integer: the prefix' first address, its length in 8 bits, nomatch in one.
_LENGTH_BITS = 8
LENGTHS = (1 << _LENGTH_BITS) - 1
SHIFT = _LENGTH_BITS + 1


def element(first: int, length: int, nomatch: bool = False) -> int:
    """Return a prefix as an element; elements sort by address, then by length."""
    return first << SHIFT | length << 1 | nomatch


class Parts(NamedTuple):
    """An element taken apart."""

    first: int
    length: int
    nomatch: bool


def parts(code: int) -> Parts:
    """Return what an element is made of."""
    return Parts(code >> SHIFT, code >> 1 & LENGTHS, bool(code & 1))


@dataclass(frozen=True, slots=True)
class AddressSet:
    """A hash:net set of one family.

    Attributes:
        elements: see ``element``; ascending, and no prefix twice.
        capacity: how many elements it takes (ipset's maxelem).
    """

    name: str
    family: Family
    elements: Sequence[int]
    capacity: int = _LEAST_ELEMENTS

    def lines(self) -> list[str]:
        """Return the elements one by one, as ``add NAME PREFIX``."""
        return [f"add {self.name} {shown(code, self.family)}" for code in self.elements]

    def matched(self) -> Iterator[tuple[int, int]]:
        """Yield the ranges of addresses that the set matches, ascending, ends included."""
        start, end = 0, -1
        for first, last, code in self.decided():
            if code & 1:
                continue
            if first == end + 1 and end >= 0:
                end = last
                continue
            if end >= 0:
                yield start, end
            start, end = first, last
        if end >= 0:
            yield start, end

    def decided(self) -> Iterator[tuple[int, int, int]]:
        """Yield ascending ranges, ends included, each with the element that decides there.

        What lies in no element is left out.
        """
        host_bits = [(1 << self.family.bits - n) - 1 for n in range(self.family.bits + 1)]
        around: list[tuple[int, int]] = []  # (last address, element), the innermost at the end
        at = 0  # what is below has been told of
        for code in self.elements:
            first, length = code >> SHIFT, code >> 1 & LENGTHS
            while around and around[-1][0] < first:
                last, inner = around.pop()
                if at <= last:
                    yield at, last, inner
                    at = last + 1
            if around and at < first:
                yield at, first - 1, around[-1][1]
            around.append((first | host_bits[length], code))
            at = first
        while around:
            last, inner = around.pop()
            if at <= last:
                yield at, last, inner
                at = last + 1


def compile_set(decisions: DecisionMap, name: str) -> AddressSet:
    """Return the set that matches exactly what is not masqueraded.

    Entries nest or are apart, as prefixes do. One that lies within an entry which comes
    before it decides about nothing; of the others the innermost decides, as in the set.
    One that says what the one around it says is left out.
    """
    found = _elements_apart(decisions)
    if found is None:
        found = _elements_nested(decisions)
    capacity = max(_LEAST_ELEMENTS, 1 << (2 * len(found)).bit_length())
    return AddressSet(name, decisions.family, tuple(found), capacity)


def _elements_apart(decisions: DecisionMap) -> list[int] | None:
    """Return the elements where the entries are prefixes to keep, apart; None where not.

    So most long lists are, and each change of one waits for this.
    """
    if decisions.default is not Verdict.MASQUERADE:
        return None
    columns = decisions.entries.apart(Verdict.NON_MASQUERADE)
    if columns is None:
        return None
    bits, whole = decisions.family.bits, decisions.family.last_address
    found = [
        first << SHIFT | bits - size.bit_length() << 1
        for first, last in zip(*columns, strict=True)
        # Of a prefix the two ends differ in its host bits, and these begin as zeros.
        if not ((size := first ^ last) & (size + 1) or first & size) and size < whole
    ]
    return found if len(found) == len(columns[0]) else None


def _elements_nested(decisions: DecisionMap) -> list[int]:
    """Return the elements for any entries."""
    family = decisions.family
    items = sorted(_items(decisions))
    found: list[int] = []
    open_: list[tuple[int, bool, int]] = []  # (last address, keeps, position)
    for first, length, position, keeps in items:
        while open_ and open_[-1][0] < first:
            open_.pop()
        around, before = (open_[-1][1], open_[-1][2]) if open_ else (False, None)
        if before is not None and before < position:
            continue
        open_.append((first | (1 << family.bits - length) - 1, keeps, position))
        if keeps is not around:
            found.append(element(first, length, not keeps))
    return found


def _items(decisions: DecisionMap) -> Iterator[tuple[int, int, int, bool]]:
    """Yield (first, length, position, keeps) of each prefix that the entries are made of."""
    family = decisions.family
    position = -1
    for position, (first, last, verdict) in enumerate(decisions.entries.spans()):
        if verdict is Verdict.UNKNOWN:
            reason = decisions.entries[position].reason
            raise ValueError(f"no set can carry out what is unknown: {reason}")
        keeps = verdict is Verdict.NON_MASQUERADE
        size = last - first
        if not size & (size + 1) and not first & size and size < family.last_address:
            yield first, family.bits - size.bit_length(), position, keeps
            continue
        for prefix in prefixes_of_range(family, first, last):
            for half in _halves(prefix):
                yield half.first, half.length, position, keeps
    if decisions.default is Verdict.NON_MASQUERADE:
        for half in _halves(Prefix(family, 0, 0)):
            yield half.first, half.length, position + 1, True


def _halves(prefix: Prefix) -> tuple[Prefix, ...]:
    if prefix.length:
        return (prefix,)
    half = 1 << prefix.family.bits - 1
    return Prefix(prefix.family, 0, 1), Prefix(prefix.family, half, 1)


class Step(NamedTuple):
    """One edit of a set: an element that comes, or changes, or goes."""

    code: int
    gone: bool = False


def in_place(old: AddressSet, new: AddressSet) -> list[Step] | None:
    """Return edits, one after the other, that lead from one set to the other; or None.

    After each of them every address is matched as in the old or as in the new set. What
    comes does so from the longest prefix to the shortest, and then what goes from the
    shortest to the longest. So of the elements around an address the innermost is at each
    moment its innermost of the old set, or of the new one: what is longer than it among
    the new has come already, what is longer among the old has not gone yet.

    None where the two differ in too much. Also where the last prefix of some length would
    go: the kernel then moves its list of lengths up while packets walk along it
    (mtype_del_cidr in net/netfilter/ipset/ip_set_hash_gen.h), and one that misses a length
    misses its prefix: 944 packets of 2 million, in 70,000 such deletions on 6.18.
    """
    going, coming = difference(old.elements, new.elements)
    if len(coming) + len(going) > IN_PLACE or len(old.elements) + len(coming) > old.capacity:
        return None
    removals = {code for code in going if code ^ 1 not in coming}
    if not _holds_lengths(new.elements, {parts(code).length for code in removals}):
        return None
    return [
        *(Step(code) for code in sorted(coming, key=_length, reverse=True)),
        *(Step(code, gone=True) for code in sorted(removals, key=_length)),
    ]


def _length(code: int) -> int:
    return parts(code).length


def _holds_lengths(codes: Iterable[int], lengths: set[int]) -> bool:
    """Whether there is an element of each of the lengths."""
    missing = set(lengths)
    for code in codes:
        if not missing:
            break
        missing.discard(code >> 1 & LENGTHS)
    return not missing


def difference(old: Sequence[int], new: Sequence[int]) -> tuple[set[int], set[int]]:
    """Return the elements that go and those that come, of two sets' ascending ones."""
    going, coming = differing((old, new))
    return {old[at] for at in going}, {new[at] for at in coming}


def shown(code: int, family: Family) -> str:
    """Return an element as ipset takes it: the prefix, and ``nomatch`` for an exception."""
    # Taken apart by hand: this is done for each of a hundred thousand.
    prefix = f"{family.show(code >> SHIFT)}/{code >> 1 & LENGTHS}"
    return f"{prefix} nomatch" if code & 1 else prefix
