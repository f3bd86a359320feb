"""What turns one table of nftables into another, as a value that can be printed.

Packets look a set up while a transaction is being put together and carried out. Kernels
before 6.17 stop at the element nearest to an address, also where that one is not valid yet
or no more, and then find nothing; later ones still miss some (net/netfilter/
nft_set_rbtree.c; commits a60f7bf4a152 and 7e43e0a1141d). So a set is edited in place only
where no range that comes overlaps one that goes. Otherwise another one is filled beside
it, and takes its place together with the rules that ask it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ipmasq_agent.errors import KernelReadError
from ipmasq_agent.planes.nftables.state import (
    BESIDE,
    NftRule,
    NftSet,
    NftTable,
    SetKind,
    asked,
)
from ipmasq_agent.policy.columns import common_ends, differing
from ipmasq_agent.policy.ranges import intersections


@dataclass(frozen=True, slots=True)
class ElementChange:
    """What changes in a set that stays.

    Attributes:
        name: of the set.
        removed: positions, in the set as it is, of the elements that go.
        added: positions, in the set as it should be, of those that come.
        in_place: nothing but these is written; otherwise another set takes its place.
    """

    name: str
    removed: tuple[int, ...]
    added: tuple[int, ...]
    in_place: bool


@dataclass(frozen=True, slots=True)
class TableChange:
    """A change of one table. Packets see all of it at once, or nothing.

    Attributes:
        actual: the table as it was read.
        desired: as it should be.
        anew: the whole table is deleted and, where it should exist, made from nothing.
        chains_removed: names of the chains that go.
        chains_added: names of those that come, with their rules.
        rewritten: names of chains that stay and whose rules are replaced, or written again
            for another set in the place of one that they ask.
        sets_removed: names of the sets that go.
        sets_added: names of those that come, with their elements.
        sets_changed: what changes in those that stay.
    """

    actual: NftTable
    desired: NftTable
    anew: bool = False
    chains_removed: tuple[str, ...] = ()
    chains_added: tuple[str, ...] = ()
    rewritten: tuple[str, ...] = ()
    sets_removed: tuple[str, ...] = ()
    sets_added: tuple[str, ...] = ()
    sets_changed: tuple[ElementChange, ...] = ()

    def __bool__(self) -> bool:
        return self != TableChange(self.actual, self.desired)

    @property
    def counts(self) -> tuple[int, int]:
        """How many lines come and how many go, without writing them down."""
        return _count(self._side(coming=True)), _count(self._side(coming=False))

    @property
    def result(self) -> NftTable:
        """The table that it leads to."""
        return self.desired

    @property
    def added(self) -> list[str]:
        """What comes, as the commands that make it."""
        return list(_lines(self._side(coming=True)))

    @property
    def removed(self) -> list[str]:
        """What goes, as the commands that would make it."""
        return list(_lines(self._side(coming=False)))

    def _side(self, *, coming: bool) -> _Side:
        table = self.desired if coming else self.actual
        if self.anew:
            return _Side(table, None, (), {}, [])
        # Of rewritten chains, the rules that the other side does not have there.
        rules = []
        for name in self.rewritten:
            mine = table.chains[name].rules
            head, tail = common_ends(
                self.actual.chains[name].rules, self.desired.chains[name].rules
            )
            rules += [(name, rule) for rule in mine[head : len(mine) - tail]]
        changed = {each.name: each.added if coming else each.removed for each in self.sets_changed}
        if coming:
            return _Side(table, self.chains_added, self.sets_added, changed, rules)
        return _Side(table, self.chains_removed, self.sets_removed, changed, rules)


class _Side(NamedTuple):
    """What comes or what goes; all of the table where ``chains`` is None."""

    table: NftTable
    chains: Sequence[str] | None
    sets: Sequence[str]
    changed: Mapping[str, Sequence[int]]
    rules: Sequence[tuple[str, NftRule]]


def _count(side: _Side) -> int:
    if side.chains is None:
        return side.table.count()
    changed = sum(map(len, side.changed.values()))
    return side.table.count(side.chains, side.sets) + changed + len(side.rules)


def _lines(side: _Side) -> Iterator[str]:
    table, chains, sets, changed, rules = side
    if chains is None:
        yield from table.lines()
        return
    for name in chains:
        yield table.chain_line(name)
    for name in sets:
        yield table.set_line(name)
        yield from table.element_lines(name)
    for name, positions in changed.items():
        yield from table.element_lines(name, positions)
    for name in chains:
        for rule in table.chains[name].rules:
            yield table.rule_line(name, rule)
    for name, rule in rules:
        yield table.rule_line(name, rule)


def plan(actual: NftTable, desired: NftTable) -> TableChange:
    """Return what must change in ``actual``, which may be nothing.

    Raises:
        KernelReadError: the table seems to be somebody else's.
    """
    _refuse_foreign(actual, desired)
    if not actual.exists or not desired.exists:
        return TableChange(actual, desired, anew=actual.exists or desired.exists)
    if _is_strange(actual, desired):
        return TableChange(actual, desired, anew=True)
    common = actual.chains.keys() & desired.chains.keys()
    staying = actual.sets.keys() & desired.sets.keys()
    changes = [
        change
        for name in desired.sets
        if name in staying
        for change in _set_changes(name, actual.sets[name], desired.sets[name])
    ]
    replaced = {change.name for change in changes if not change.in_place}
    return TableChange(
        actual,
        desired,
        chains_removed=tuple(name for name in actual.chains if name not in common),
        chains_added=tuple(name for name in desired.chains if name not in common),
        rewritten=tuple(
            name
            for name in desired.chains
            if name in common
            and (
                actual.chains[name].rules != desired.chains[name].rules
                or any(not replaced.isdisjoint(asked(rule)) for rule in desired.chains[name].rules)
            )
        ),
        sets_removed=tuple(name for name in actual.sets if name not in staying),
        sets_added=tuple(name for name in desired.sets if name not in staying),
        sets_changed=tuple(changes),
    )


def _is_strange(actual: NftTable, desired: NftTable) -> bool:
    """Whether the table holds what an edit of ours cannot put right."""
    return (
        bool(actual.foreign)
        or any(held.kind is SetKind.UNKNOWN for held in actual.sets.values())
        or any(
            desired.chains[name].hook != held.hook if name in desired.chains else held.hook
            for name, held in actual.chains.items()
        )
        or any(
            desired.sets[name].kind is not held.kind
            for name, held in actual.sets.items()
            if name in desired.sets
        )
    )


def _refuse_foreign(actual: NftTable, desired: NftTable) -> None:
    """Refuse to touch a table that has our name, and neither our comment nor our chains.

    Old kernels keep no comment on a table, so one that holds our chains alone is ours.
    """
    ours = actual.marked or not actual.exists
    strangers = [name for name in actual.chains if not _is_our_name(name)]
    strangers += [name for name in actual.sets if not _is_our_name(name)]
    strangers += actual.foreign
    if strangers and not ours:
        raise KernelReadError(
            f"the table {actual.path} holds what is not ours ({', '.join(strangers[:5])})",
            remedy=f"see it with `nft list table {actual.path}`, and delete it, or rename our "
            f"table with --masq-chain; nothing was written",
        )


def _is_our_name(name: str) -> bool:
    name = name.removesuffix(BESIDE)
    known = ("postrouting", "keep", "sources", "interfaces", "fixed", "parts")
    return name in known or name.startswith("keep-")


def _set_changes(name: str, actual: NftSet, desired: NftSet) -> Iterator[ElementChange]:
    """Yield what changes in a set; nothing where nothing does."""
    if actual == desired:
        return
    in_place = True
    if actual.kind is SetKind.DEVICES:
        removed = [n for n, device in enumerate(actual.names) if device not in desired.names]
        added = [n for n, device in enumerate(desired.names) if device not in actual.names]
    else:
        removed, added = differing(
            (actual.firsts, desired.firsts),
            (actual.lasts, desired.lasts),
            (actual.values, desired.values),
        )
        going = ((actual.firsts[n], actual.lasts[n]) for n in removed)
        coming = ((desired.firsts[n], desired.lasts[n]) for n in added)
        in_place = next(intersections(going, coming), None) is None
    yield ElementChange(name, tuple(removed), tuple(added), in_place)
