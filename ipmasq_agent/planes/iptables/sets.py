"""What becomes of the ``hash:net`` set that one rule asks in place of many, and its names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from zlib import crc32

from ipmasq_agent.planes.prefixset import AddressSet, Step, difference, in_place, shown
from ipmasq_agent.policy.addresses import Family

NEW = "-new"
"""What is added to a set's name while its contents are filled in, before it is swapped."""
_LONGEST_STEM = 25


@dataclass(frozen=True, slots=True)
class IpsetChange:
    """What becomes of our sets, in this order; the rules are written before the last.

    Attributes:
        target: the set as it will be; None where nothing is to be filled or edited.
        steps: edits in place; None where the set is made, or made anew and swapped in.
        before: the elements that it held before; None where it was not there.
        leftover: sets in the way of making a new one, which nobody asks.
        drop: sets to destroy once no rule refers to them.
    """

    target: AddressSet | None = None
    steps: tuple[Step, ...] | None = None
    before: Sequence[int] | None = None
    leftover: tuple[str, ...] = ()
    drop: tuple[AddressSet, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.target or self.leftover or self.drop)

    @property
    def counts(self) -> tuple[int, int]:
        """How many elements come and how many go."""
        dropped = sum(len(gone.elements) for gone in self.drop)
        if self.target is None:
            return 0, dropped
        going, coming = difference(self.before or (), self.target.elements)
        return len(coming), len(going) + dropped

    @property
    def added(self) -> list[str]:
        """The elements that come, as ``add NAME PREFIX``."""
        if self.target is None:
            return []
        _, coming = difference(self.before or (), self.target.elements)
        return _element_lines("add", self.target, coming)

    @property
    def removed(self) -> list[str]:
        """The elements that go, as ``del NAME PREFIX``."""
        lines = [line for gone in self.drop for line in _element_lines("del", gone, gone.elements)]
        if self.target is not None and self.before is not None:
            going, _ = difference(self.before, self.target.elements)
            lines += _element_lines("del", self.target, going)
        return lines

    def result(self, actual: Mapping[str, AddressSet]) -> dict[str, AddressSet]:
        """Return the sets that it leads to."""
        gone = {*self.leftover, *(each.name for each in self.drop)}
        kept = {name: held for name, held in actual.items() if name not in gone}
        return {**kept, self.target.name: self.target} if self.target else kept


NO_SET_CHANGE = IpsetChange()


def _element_lines(verb: str, of: AddressSet, codes: Iterable[int]) -> list[str]:
    return [f"{verb} {of.name} {shown(code, of.family)}" for code in sorted(codes)]


def set_names(stem: str, family: Family) -> tuple[str, str]:
    """Return the name of a set of ours, and the one under which a new one is filled.

    A set's name has 31 characters at most (IPSET_MAXNAMELEN): a long stem is cut short,
    and told from others by its checksum.
    """
    if len(stem) > _LONGEST_STEM:
        stem = f"{stem[: _LONGEST_STEM - 9]}-{crc32(stem.encode()):08x}"
    name = f"{stem}-{'4' if family is Family.IPV4 else '6'}"
    return name, name + NEW


def change_set(actual: Mapping[str, AddressSet], desired: AddressSet | None) -> IpsetChange:
    """Return what leads from the sets of ours that there are to the one that should be."""
    if desired is None:
        return IpsetChange(drop=tuple(actual.values()))
    leftover = tuple(name for name in actual if name != desired.name)
    held = actual.get(desired.name)
    if held is not None and held.elements == desired.elements:
        return IpsetChange(leftover=leftover)
    steps = in_place(held, desired) if held is not None else None
    return IpsetChange(
        desired,
        None if steps is None else tuple(steps),
        None if held is None else held.elements,
        leftover,
    )
