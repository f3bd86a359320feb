"""The policies that are measured, and destinations of which it is plain what they decide.

A document has every second block of a row of equal blocks, so that nothing can be merged,
and a destination in a gap is searched for to the end of whatever data structure there is.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from ipmasq_agent.policy.addresses import Family

_BASE = {
    Family.IPV4: int(ipaddress.IPv4Address("1.0.0.0")),
    Family.IPV6: int(ipaddress.IPv6Address("fd00::")),
}
_LENGTH = {Family.IPV4: 28, Family.IPV6: 64}
DESTINATIONS = {Family.IPV4: "1.0.0.0/8", Family.IPV6: "fd00::/16"}
"""All that a document of up to 100,000 CIDRs speaks of, and the gaps."""
_SPREAD, _STRIDE = 250, 400


@dataclass(frozen=True, slots=True)
class BlockPolicy:
    """A document of some CIDRs that keep the pod's address; all else is masqueraded.

    Attributes:
        cidrs: how many.
        kept: a gap whose addresses it keeps as well; None for none.
        start: the number of its first CIDR.
    """

    family: Family
    cidrs: int
    kept: int | None = None
    start: int = 0

    @property
    def document(self) -> str:
        """The ConfigMap's text."""
        blocks = [2 * n for n in range(self.start, self.start + self.cidrs)]
        if self.kept is not None:
            blocks.append(2 * self.kept + 1)
        length = _LENGTH[self.family]
        lines = (f"- {self.family.show(_first(self.family, block))}/{length}\n" for block in blocks)
        return f"cidrLimit: {len(blocks)}\nnonMasqueradeCIDRs:\n{''.join(lines)}"

    def keeps(self, destination: int) -> bool:
        """Whether the document has the address, told without any of the agent's code."""
        block, length = divmod(destination - _BASE[self.family], _size(self.family))
        assert length >= 0
        if self.kept is not None and block == 2 * self.kept + 1:
            return True
        return block % 2 == 0 and self.start <= block // 2 < self.start + self.cidrs


def in_cidr(family: Family, number: int) -> int:
    """Return an address of the CIDR of that number."""
    return _first(family, 2 * number) + 1


def in_gap(family: Family, number: int) -> int:
    """Return an address behind the CIDR of that number, which no policy of ours has."""
    return _first(family, 2 * number + 1)


def spread(family: Family) -> list[int]:
    """Return addresses in gaps between the first 100,000 CIDRs, far from each other."""
    return [in_gap(family, number * _STRIDE) for number in range(_SPREAD)]


def samples(family: Family, cidrs: int) -> list[int]:
    """Return destinations on both sides of what a policy of so many CIDRs decides.

    First and last addresses of its first, last and some other CIDRs, and of the gaps around
    them, and what lies behind them all.
    """
    numbers = {0, 1, cidrs // 3, cidrs // 2, cidrs - 2, cidrs - 1, cidrs, cidrs + 1}
    size = _size(family)
    found = []
    for block in sorted({2 * n + odd for n in numbers if n >= 0 for odd in (0, 1)}):
        first = _first(family, block)
        # The first address of the whole row is a network's own, which none may be sent to.
        found += [first + 1, first + size - 1]
    return found


def _first(family: Family, block: int) -> int:
    return _BASE[family] + block * _size(family)


def _size(family: Family) -> int:
    return 1 << family.bits - _LENGTH[family]


def served(family: Family) -> str:
    """Return the address at which the world serves, in the gap behind the thousandth CIDR."""
    return family.show(in_gap(family, 1000))
