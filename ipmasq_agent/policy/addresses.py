"""Address families, prefixes and ranges, with addresses as plain integers.

Integers because a policy may hold a hundred thousand prefixes: ``ipaddress`` objects cost
ten times as much to build, to compare and to show.
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Family(enum.Enum):
    """An address family; the parameter that makes one code path serve both.

    Attributes:
        bits: length of an address in bits.
        last_address: the highest address as an integer; the lowest is 0.
    """

    IPV4 = "ipv4"
    IPV6 = "ipv6"

    bits: int
    last_address: int

    def __init__(self, name: str) -> None:
        # Plain attributes: both are asked for several times for each prefix.
        self.bits = 32 if name == "ipv4" else 128
        self.last_address = (1 << self.bits) - 1

    def show(self, address: int) -> str:
        """Return ``address`` in its canonical text form (RFC 5952 for IPv6)."""
        if self is Family.IPV4:
            if not 0 <= address <= 0xFFFFFFFF:
                raise ValueError(f"{address} is not an address of {self.value}")
            high, low = address >> 16, address & 0xFFFF
            return f"{high >> 8}.{high & 255}.{low >> 8}.{low & 255}"
        if address & _LOW_HALF or not 0 < address <= self.last_address:
            return str(ipaddress.IPv6Address(address))
        # Prefixes mostly end in zeros; from half of the address on no other run is as long.
        groups = f"{address >> 64:x}".zfill(16)
        shown = [groups[place : place + 4].lstrip("0") or "0" for place in (0, 4, 8, 12)]
        while shown[-1] == "0":
            shown.pop()
        return ":".join(shown) + "::"


_LOW_HALF = (1 << 64) - 1


class Prefix(NamedTuple):
    """An aligned block of addresses: ``length`` leading bits are fixed."""

    family: Family
    first: int
    length: int

    @property
    def last(self) -> int:
        """The highest address of the block."""
        return self.first | ((1 << (self.family.bits - self.length)) - 1)

    def holds(self, address: int) -> bool:
        """Whether an address of its family lies in it."""
        return self.first <= address <= self.last

    def covers(self, other: Prefix) -> bool:
        """Whether all of another one lies in it."""
        same = self.family is other.family and self.length <= other.length
        return same and self.holds(other.first)

    def __str__(self) -> str:
        return f"{self.family.show(self.first)}/{self.length}"


def parse_address(text: str) -> tuple[Family, int]:
    """Return the family and the integer of an address.

    Raises:
        ValueError: ``text`` is not an address.
    """
    address = ipaddress.ip_address(text)
    return (Family.IPV4 if address.version == 4 else Family.IPV6), int(address)


def prefix_around(family: Family, address: int, length: int) -> Prefix:
    """Return the prefix of a length that an address lies in."""
    host_bits = family.bits - length
    return Prefix(family, address >> host_bits << host_bits, length)


def prefixes_of_range(family: Family, first: int, last: int) -> Iterator[Prefix]:
    """Yield the fewest prefixes that cover exactly ``first`` to ``last``, in order."""
    bits = family.bits
    while first <= last:
        # The block at `first` can grow while it stays aligned and within the range.
        aligned = (first & -first).bit_length() - 1 if first else bits
        fitting = (last - first + 1).bit_length() - 1
        size = aligned if aligned < fitting else fitting
        yield Prefix(family, first, bits - size)
        first += 1 << size


def range_text(family: Family, first: int, last: int) -> str:
    """Return a range as nft prints it: a prefix where it is one."""
    if first == last:
        return family.show(first)
    prefix = next(prefixes_of_range(family, first, last))
    if prefix.last == last:
        return str(prefix)
    return f"{family.show(first)}-{family.show(last)}"


def collapsed(prefixes: Iterable[Prefix]) -> tuple[Prefix, ...]:
    """Return the same addresses in the fewest prefixes, sorted."""
    outermost: list[Prefix] = []
    for prefix in sorted(prefixes, key=lambda p: (p.first, p.length)):
        if outermost and prefix.last <= outermost[-1].last:
            continue
        outermost.append(prefix)
        while len(outermost) > 1 and _siblings(*outermost[-2:]):
            del outermost[-1]
            family, first, length = outermost[-1]
            outermost[-1] = Prefix(family, first, length - 1)
    return tuple(outermost)


def _siblings(left: Prefix, right: Prefix) -> bool:
    parent = Prefix(left.family, left.first, left.length - 1) if left.length else None
    return parent is not None and left.length == right.length and parent.last == right.last
