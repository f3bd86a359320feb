"""The decisions of IPv4 as a bitmap: packets are decided by it, and not by the trie.

A block of addresses (a /8, a /16 or a /24) has 256 parts, and a code for each: a verdict, or
that it is decided in the block that the part is itself. So three look-ups decide at most, one
where a whole /16 is decided alike. Blocks of /8 are always there (the outline), the others
(details) where their parts differ.

A code is what the trie says, or that the trie is to be asked. So a block that there is no
room for is left to it, and what is being edited as well.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from ipmasq_agent.planes.bpf.layout import MASQUERADE, NON_MASQUERADE
from ipmasq_agent.planes.prefixset import LENGTHS, SHIFT, Parts, element, parts

ASK_TRIE, ASK_PART = 0, 3
"""Codes that are no verdicts."""
PARTS, BLOCK_SIZE = 256, 64
MOST_DETAILS = 1 << 18
"""Blocks past this many are left to the trie: 128 bytes of the kernel's memory each."""
_UNIFORM = tuple(bytes([0b01010101 * code]) for code in range(4))  # four parts with one code
_VERDICTS = NON_MASQUERADE, MASQUERADE  # of a prefix, of an exception
_SIXTEENS = 1 << 16
# Where more /16 than this have changed, all elements are gone through, and not those around.
_FEW = 1024


class Bitmap(NamedTuple):
    """What is decided by prefixes.

    Attributes:
        outline: the 256 blocks of /8, one after the other: a code for each /16.
        details: number of a block (see ``block_number``) → its codes.
    """

    outline: bytearray
    details: dict[int, bytearray]


class Rewriting(NamedTuple):
    """What changes of a bitmap where some prefixes do.

    Attributes:
        before: which /16 are concerned, by their first 16 bits → their codes before.
        after: the same, afterwards.
        blocks: details that are to be written, inner ones before those around them.
    """

    before: Mapping[int, int]
    after: Mapping[int, int]
    blocks: Mapping[int, bytes]


def block_number(address: int, length: int) -> int:
    """Return the number of the block that an address is in, of 8, 16 or 24 bits."""
    return 1 << length | address >> 32 - length


def bitmap(elements: Iterable[int]) -> Bitmap:
    """Return the bitmap of a set of prefixes (``prefixset.element``), ascending."""
    outline = bytearray(_UNIFORM[MASQUERADE] * BLOCK_SIZE * PARTS)
    details: dict[int, bytearray] = {}
    # A prefix comes before those within it, and each covers what came before. They are taken
    # apart and blocks are found here: this is done for each of a hundred thousand.
    for code in elements:
        first, length, verdict = code >> SHIFT, code >> 1 & LENGTHS, _VERDICTS[code & 1]
        if length <= 16:
            paint(outline, first >> 16, 1 << 16 - length, verdict)
        elif length <= 24:
            block = details.get(1 << 16 | first >> 16) or _added(details, outline, first, 16)
            if block:
                paint(block, first >> 8 & 255, 1 << 24 - length, verdict)
        else:
            block = details.get(1 << 24 | first >> 8) or _added(details, outline, first, 24)
            if block:
                paint(block, first & 255, 1 << 32 - length, verdict)
    return Bitmap(outline, details)


def _added(
    details: dict[int, bytearray], outline: bytearray, address: int, length: int
) -> bytearray | None:
    """Return a new block, and have the one around it say so; None where there is no room."""
    around: bytearray | None = outline
    part = address >> 16
    if length == 24:
        around = details.get(block_number(address, 16)) or _added(details, outline, address, 16)
        part = address >> 8 & 255
    code = code_of_part(around, part) if around else ASK_TRIE
    if around is None or code == ASK_TRIE:
        return None
    if len(details) >= MOST_DETAILS:
        paint(around, part, 1, ASK_TRIE)
        return None
    paint(around, part, 1, ASK_PART)
    made = details[block_number(address, length)] = bytearray(_UNIFORM[code] * BLOCK_SIZE)
    return made


def paint(codes: bytearray, part: int, count: int, code: int) -> None:
    """Give parts a code: as many as a prefix has, beginning where it may."""
    at = part >> 2
    if count >= 4:
        end = at + (count >> 2)
        codes[at:end] = _UNIFORM[code] * (end - at)
        return
    bit = (part & 3) * 2
    mask = (1 << 2 * count) - 1 << bit
    codes[at] = codes[at] & ~mask | 85 * code & mask


def code_of_part(codes: bytes | bytearray, part: int) -> int:
    """Return the code of a part."""
    return codes[part >> 2] >> (part & 3) * 2 & 3


def code_of(address: int, block: Callable[[int], bytes | bytearray | None]) -> int:
    """Return what decides about an address: a verdict, or ``ASK_TRIE``.

    Args:
        address: of IPv4.
        block: returns the codes of a block by its number; None where it is missing.
    """
    for length in (8, 16, 24):
        codes = block(block_number(address, length))
        code = ASK_TRIE if codes is None else code_of_part(codes, address >> 24 - length & 255)
        if code != ASK_PART:
            break
    return code


def rewriting(old: Sequence[int], new: Sequence[int], changed: Iterable[int]) -> Rewriting:
    """Return what leads from the bitmap of one set to that of another, by all that may differ."""
    sixteens = sorted({n for code in changed for n in _sixteens(parts(code))})
    before, after = (bitmap(_around(elements, sixteens)) for elements in (old, new))
    return Rewriting(
        {n: code_of_part(before.outline, n) for n in sixteens},
        {n: code_of_part(after.outline, n) for n in sixteens},
        {
            number: bytes(codes)
            for number, codes in reversed(after.details.items())
            if before.details.get(number) != codes
        },
    )


def _sixteens(prefix: Parts) -> range:
    """Return the /16 that have an address of a prefix."""
    first = prefix.first >> 16
    return range(first, first + (1 << max(0, 16 - prefix.length)))


def _around(elements: Sequence[int], sixteens: Sequence[int]) -> Iterable[int]:
    """Return the elements that have an address of some /16, ascending; perhaps more."""
    if len(sixteens) > _FEW:
        return elements
    found: set[int] = set()
    for number in sixteens:
        first = number << 16
        low, high = (bisect_left(elements, element(end, 0)) for end in (first, first + _SIXTEENS))
        found.update(elements[low:high])
        for length in range(1, 16):  # those that begin before it
            start = element(first >> 32 - length << 32 - length, length)
            at = bisect_left(elements, start, hi=low)
            if at < low and elements[at] | 1 == start | 1:
                found.add(elements[at])
    return sorted(found)
