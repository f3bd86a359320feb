"""A change of our nftables table as transactions of the kernel."""

from __future__ import annotations

from collections.abc import Iterable

from ipmasq_agent.netlink.expressions import Counter, Masquerade, Nat
from ipmasq_agent.netlink.nft_batch import Batch
from ipmasq_agent.planes.nftables.compile import KEEP
from ipmasq_agent.planes.nftables.plan import ElementChange, TableChange
from ipmasq_agent.planes.nftables.state import BESIDE, COMMENT, NftRule, asked, renamed
from ipmasq_agent.planes.nftables.wire import elements_for, set_form


class Writing:
    """A change on its way to the kernel.

    What refers to something goes before it and comes after it: rules to sets and chains,
    the elements of a verdict map to chains.

    Attributes:
        held_as: the names of sets in the kernel, once it is done, where not their own.
    """

    def __init__(self, change: TableChange) -> None:
        self.planned = change
        self.actual, self.desired = change.actual, change.desired
        self.family = self.desired.family
        self._replaced = [edit.name for edit in change.sets_changed if not edit.in_place]
        before = {} if change.anew else self.actual.held_as
        self.held_as = {own: raw for own, raw in before.items() if own in self.desired.sets}
        for name in self._replaced:
            self.held_as[name] = _beside(self._raw(name))
        chains = self.desired.chains if change.anew else change.chains_added
        self._hooked = [name for name in chains if self.desired.chains[name].hook]
        self._hookless = [name for name in chains if name not in self._hooked]

    def preparation(self) -> Batch:
        """Return what packets do not meet yet: new sets, and the chains of new parts.

        Not where a table is to be undone: then it is all made at once.
        """
        batch = self._batch()
        if self.planned.anew and not self.actual.exists and self.desired.exists:
            self._make_table(batch)
        elif not self.planned.anew:
            taken = {self._raw(name) for name in self.actual.sets}
            for name in self._replaced:
                if self.held_as[name] in taken:
                    batch.delete_set(self.held_as[name])  # left from a change broken off
            self._make(batch, self.planned.sets_added)
        return batch

    def change(self) -> Batch:
        """Return what makes it count."""
        batch, planned = self._batch(), self.planned
        if planned.anew:
            if self.actual.exists:
                batch.delete_table()
                if self.desired.exists:
                    self._make_table(batch)
            self._hook(batch)
            return batch
        for name in (*planned.chains_removed, *planned.rewritten):
            batch.empty_chain(name)
        for edit in planned.sets_changed:
            if edit.in_place:
                self._edit(batch, edit)
        self._hook(batch)
        for name in planned.rewritten:
            self._fill(batch, name)
        spared = set(self.held_as.values()) | {self._raw(name) for name in self._replaced}
        for name in planned.sets_removed:
            if self._raw(name) not in spared:
                batch.delete_set(self._raw(name))
        for name in self._replaced:
            batch.delete_set(self._raw(name))
        for name in planned.chains_removed:
            batch.delete_chain(name)
        return batch

    def _batch(self) -> Batch:
        return Batch(self.family, self.desired.name)

    def _raw(self, name: str) -> str:
        """Return the name that a set has in the kernel now."""
        return self.actual.held_as.get(name, name)

    def _make_table(self, batch: Batch) -> None:
        batch.add_table(COMMENT)
        self._make(batch, self.desired.sets)

    def _make(self, batch: Batch, sets: Iterable[str]) -> None:
        """Add sets, and the chains that packets come to through them alone."""
        for name in self._hookless:
            batch.add_chain(name)
        for name in (*sets, *self._replaced):
            held, raw = self.desired.sets[name], self.held_as.get(name, name)
            batch.add_set(raw, set_form(held.kind, self.family))
            batch.add_elements(raw, elements_for(held, self.family, range(len(held))))
        for name in self._hookless:
            self._fill(batch, name)

    def _hook(self, batch: Batch) -> None:
        for name in self._hooked:
            hook = self.desired.chains[name].hook
            if hook is not None:
                batch.add_chain(name, hook.type, hook.priority)
            self._fill(batch, name)

    def _fill(self, batch: Batch, chain: str) -> None:
        rules = self.desired.chains[chain].rules
        batch.add_rules(chain, [renamed(_counting(rule), self.held_as) for rule in rules])

    def _edit(self, batch: Batch, edit: ElementChange) -> None:
        actual, desired = self.actual.sets[edit.name], self.desired.sets[edit.name]
        raw, whole = self._raw(edit.name), len(edit.removed) == len(actual) > 0
        gone = None if whole else elements_for(actual, self.family, edit.removed)
        batch.delete_elements(raw, gone)
        batch.add_elements(raw, elements_for(desired, self.family, edit.added))


def _counting(rule: NftRule) -> NftRule:
    """Return a rule that counts what it decides: nobody compares that, and scrapes read it."""
    if isinstance(rule[-1], Masquerade | Nat) or any(name.startswith(KEEP) for name in asked(rule)):
        return *rule[:-1], Counter(), rule[-1]
    return rule


def _beside(raw: str) -> str:
    return raw.removesuffix(BESIDE) if raw.endswith(BESIDE) else raw + BESIDE
