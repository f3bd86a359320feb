"""What turns the nat table that was read into the one that should be, in the fewest edits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ipmasq_agent.errors import KernelReadError
from ipmasq_agent.planes.iptables.compile import DesiredChain
from ipmasq_agent.planes.iptables.ownership import refuse_others
from ipmasq_agent.planes.iptables.sets import NO_SET_CHANGE, IpsetChange, change_set
from ipmasq_agent.planes.rules.rule import Rule, find_all
from ipmasq_agent.planes.rules.table import POSTROUTING, Chain, Table
from ipmasq_agent.policy.columns import common_ends

# Up to this many rules in the changed stretch are edited in place, so that the rules
# around it keep their counters; past it the chain is written anew, because each edit by
# position makes the restore program count from the top.
EDITED_IN_PLACE = 64


class NumberedJump(NamedTuple):
    """A rule of POSTROUTING that leads to our chain, and its number among these, from 0."""

    number: int
    rule: Rule


@dataclass(frozen=True, slots=True)
class ChainPlan:
    """What turns the table that was read into the desired one, as a printable value.

    The chain's rules are kept up to ``keep``; from there ``remove`` go and ``insert``
    come. ``rewrite`` holds the whole chain where it is cheaper to write it anew.

    Attributes:
        chain: our chain's name.
        actual: the table as it was read.
        create: the chain does not exist yet.
        delete: the chain is to go, after its rules and the jumps to it.
        keep: how many rules at the top of the chain stay as they are.
        remove: the rules that go, in order, the first of them at position ``keep``.
        insert: the rules that come in their place.
        rewrite: the whole chain, or None where the edits above are applied in place.
        jumps_removed: rules of POSTROUTING that jump to the chain and must not.
        jumps: those to add, in order.
        jump_first: add them before the rules of others rather than after them.
        sets: what becomes of our sets: filled before the rules, dropped after them.
    """

    chain: str
    actual: Table
    create: bool = False
    delete: bool = False
    keep: int = 0
    remove: tuple[Rule, ...] = ()
    insert: tuple[Rule, ...] = ()
    rewrite: tuple[Rule, ...] | None = None
    jumps_removed: tuple[NumberedJump, ...] = ()
    jumps: tuple[Rule, ...] = ()
    jump_first: bool = False
    sets: IpsetChange = NO_SET_CHANGE

    def __bool__(self) -> bool:
        return bool(self.sets) or self.changes_rules

    @property
    def changes_rules(self) -> bool:
        """Whether the table itself is written to."""
        rules = self.remove or self.insert or self.jumps_removed or self.jumps
        return self.create or self.delete or bool(rules)

    @property
    def counts(self) -> tuple[int, int]:
        """How many lines come and how many go, without writing them down."""
        coming, going = self.sets.counts
        return (
            len(self.jumps) + len(self.insert) + coming,
            len(self.jumps_removed) + len(self.remove) + going,
        )

    @property
    def added(self) -> list[str]:
        """The rules that come, as ``-A CHAIN …`` lines."""
        return _lines(self.chain, self.jumps, self.insert) + self.sets.added

    @property
    def removed(self) -> list[str]:
        """The rules that go, as ``-A CHAIN …`` lines."""
        jumps = [jump.rule for jump in self.jumps_removed]
        return _lines(self.chain, jumps, self.remove) + self.sets.removed

    @property
    def result(self) -> Table:
        """The table that it leads to."""
        chains = dict(self.actual.chains)
        hook = chains.get(POSTROUTING, Chain(POSTROUTING, "ACCEPT", ()))
        jumps = list(hook.rules)
        for jump in self.jumps_removed:
            jumps.remove(jump.rule)
        at = 0 if self.jump_first else len(jumps)
        jumps[at:at] = self.jumps
        chains[POSTROUTING] = replace(hook, rules=tuple(jumps))
        rules = self.rewrite
        if rules is None:
            kept = self.actual.rules(self.chain)
            rules = kept[: self.keep] + self.insert + kept[self.keep + len(self.remove) :]
        if self.delete or not (self.create or self.chain in chains):
            chains.pop(self.chain, None)
        else:
            chains[self.chain] = Chain(self.chain, None, rules)
        return Table(self.actual.family, chains, self.sets.result(self.actual.sets))


def _lines(chain: str, jumps: Iterable[Rule], rules: Iterable[Rule]) -> list[str]:
    in_hook = [f"-A {POSTROUTING} {rule.text}" for rule in jumps]
    return [*in_hook, *(f"-A {chain} {rule.text}" for rule in rules)]


def plan(actual: Table, desired: DesiredChain) -> ChainPlan:
    """Return what must change in ``actual``, which may be nothing.

    Raises:
        KernelReadError: our chain or a jump to it holds what cannot be read, so that a
            plan on top of that would be a guess; or the chain is somebody else's.
    """
    placement = desired.placement
    chain = placement.chain
    _refuse_unreadable(actual, chain)
    if not placement.adopt:
        refuse_others(actual, chain)
    exists = chain in actual.chains
    sets = change_set(actual.sets, desired.address_set)
    if not desired.jumps:
        jumps = find_all(actual.rules(POSTROUTING), chain)
        removed = tuple(NumberedJump(*numbered) for numbered in enumerate(jumps))
        rules = actual.rules(chain)
        return ChainPlan(
            chain, actual, delete=exists, remove=rules, jumps_removed=removed, sets=sets
        )
    jumps_removed, jumps_added = _jumps_changed(actual, desired)
    keep, remove, insert = _changed_stretch(actual.rules(chain), desired.rules)
    anew = not exists or len(remove) + len(insert) > EDITED_IN_PLACE
    return ChainPlan(
        chain,
        actual,
        create=not exists,
        keep=keep,
        remove=remove,
        insert=insert,
        rewrite=desired.rules if anew and (remove or insert) else None,
        jumps_removed=jumps_removed,
        jumps=jumps_added,
        jump_first=placement.jump_first,
        sets=sets,
    )


def _refuse_unreadable(actual: Table, chain: str) -> None:
    for name in (chain, POSTROUTING):
        for position, rule in enumerate(actual.rules(name), start=1):
            if not rule.readable and (name == chain or rule.target == chain):
                raise KernelReadError(
                    f"rule {position} of {name} cannot be read in full "
                    f"(what can be read of it: {rule.text!r})",
                    remedy="it was not written by iptables; see it with `nft list table ip nat` "
                    f"(or ip6), and delete it, or rename our chain with --masq-chain "
                    f"(now {chain}); nothing was written",
                )


def _jumps_changed(
    actual: Table, desired: DesiredChain
) -> tuple[tuple[NumberedJump, ...], tuple[Rule, ...]]:
    """Return the jumps that go and those that come.

    Appended means after whatever was there when we came: rules that others append later
    do not make us move, and of our own only those that differ are touched. First means
    first: where one of ours is not, all are put there again. So they are where one of
    them is doubled, as a rule is deleted by what it says.
    """
    rules = actual.rules(POSTROUTING)
    ours = find_all(rules, desired.placement.chain)
    wanted, there = desired.jumps, set(ours)
    leading = rules[: len(wanted)] == wanted
    anew = len(there) < len(ours) or (desired.placement.jump_first and not leading)
    kept = frozenset[Rule]() if anew else there & set(wanted)
    return (
        tuple(NumberedJump(number, rule) for number, rule in enumerate(ours) if rule not in kept),
        tuple(rule for rule in wanted if rule not in kept),
    )


def _changed_stretch(
    actual: Sequence[Rule], desired: Sequence[Rule]
) -> tuple[int, tuple[Rule, ...], tuple[Rule, ...]]:
    """Return how many rules at the top stay, and what goes and comes after them."""
    head, tail = common_ends(actual, desired)
    return (
        head,
        tuple(actual[head : len(actual) - tail]),
        tuple(desired[head : len(desired) - tail]),
    )


def restore_text(change: ChainPlan, *, locked: bool = False) -> str:
    """Return ``change`` as input for ``iptables-restore --noflush``: one transaction.

    A ``:CHAIN`` line makes the chain, or empties it where it exists; without one the
    chain is edited by position. Jumps are deleted by what they say: between our read and
    this write others may have moved them.

    Args:
        change: what is to be written.
        locked: they have not, so that jumps are deleted by position, whatever they say.
    """
    lines = ["*nat"]
    if change.create or change.rewrite is not None or change.delete:
        lines.append(f":{change.chain} - [0:0]")
    hook = enumerate(change.actual.rules(POSTROUTING), start=1)
    positions = [position for position, rule in hook if rule.target == change.chain]
    for jump in reversed(change.jumps_removed):
        which = positions[jump.number] if locked else jump.rule.text
        lines.append(f"-D {POSTROUTING} {which}")
    if change.delete:
        lines.append(f"-X {change.chain}")
    elif change.rewrite is not None:
        lines += (f"-A {change.chain} {rule.text}" for rule in change.rewrite)
    else:
        lines += (f"-D {change.chain} {change.keep + 1}" for _ in change.remove)
        lines += (
            f"-I {change.chain} {change.keep + 1 + offset} {rule.text}"
            for offset, rule in enumerate(change.insert)
        )
    for number, rule in enumerate(change.jumps, start=1):
        where = f"-I {POSTROUTING} {number}" if change.jump_first else f"-A {POSTROUTING}"
        lines.append(f"{where} {rule.text}")
    return "\n".join([*lines, "COMMIT", ""])


def describe(table: Table, chain: str) -> list[str]:
    """Return what is ours in a table: jumps and rules as ``-A`` lines, then our sets."""
    jumps = find_all(table.rules(POSTROUTING), chain)
    elements = [line for held in table.sets.values() for line in held.lines()]
    return _lines(chain, jumps, table.rules(chain)) + elements
