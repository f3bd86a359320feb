"""What leads from one state of the eBPF data plane to another.

There are two generations of everything: a policy that differs in much is filled into the
one not in force, and one number switches to it. Where the trie of decisions alone differs,
and in few prefixes, it is edited in place.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ipmasq_agent.planes.bpf.state import (
    BpfRules,
    BpfState,
    DevicePrograms,
    decision_line,
    device_line,
)
from ipmasq_agent.planes.prefixset import Step, difference, in_place

_ANY_CAPACITY = 1 << 32  # a trie is made for more than it holds


@dataclass(frozen=True, slots=True)
class BpfPlan:
    """What leads from one state to another.

    Attributes:
        actual: as it was read.
        desired: what is to be in force; None for nothing of ours.
        steps: edits of the trie of decisions in place; None where the rules are filled
            into the generation not in force, or go.
        attach: devices that get the programs, or get them anew.
        detach: devices that take part in the policy no more.
        update: devices whose address or headers changed.
    """

    actual: BpfState
    desired: BpfRules | None
    steps: tuple[Step, ...] | None = None
    attach: tuple[str, ...] = ()
    detach: tuple[str, ...] = ()
    update: tuple[str, ...] = ()

    @property
    def switches(self) -> bool:
        """Whether other rules come into force."""
        return self.steps is None and self.actual.rules != self.desired

    def __bool__(self) -> bool:
        changes = self.steps or self.switches or self.attach or self.detach or self.update
        return bool(changes or self.actual.remains or self._mends)

    @property
    def _mends(self) -> bool:
        """Whether something is made again that somebody removed."""
        return self.desired is not None and self.actual.damaged

    @property
    def counts(self) -> tuple[int, int]:
        """How many lines come and how many go."""
        old, new = self.actual.rules, self.desired
        if old is None or new is None or not _same_but_keep(old, new):
            return len(self.added), len(self.removed)
        going, coming = difference(old.keep.elements, new.keep.elements)
        coming_beside = len(self.attach) + len(self.update) + self._mends
        return len(coming) + coming_beside, len(going) + len(self.detach) + len(self.update)

    @property
    def result(self) -> BpfState:
        """The state that it leads to."""
        wanted = self.actual.wanted(self.desired)
        hooks = {name: DevicePrograms(device, complete=True) for name, device in wanted.items()}
        return replace(self.actual, rules=self.desired, hooks=hooks, remains=False, damaged=False)

    @property
    def added(self) -> list[str]:
        """What comes."""
        family, wanted = self.actual.family, self.actual.wanted(self.desired)
        lines = _only_in(self.desired, self.actual.rules)
        lines += [device_line(family, name, wanted[name]) for name in (*self.attach, *self.update)]
        if self._mends:
            lines.append(f"{family.value} maps and programs, or pins of theirs, that are missing")
        return lines

    @property
    def removed(self) -> list[str]:
        """What goes."""
        family, hooks = self.actual.family, self.actual.hooks
        lines = _only_in(self.actual.rules, self.desired)
        names = (*self.detach, *self.update)
        lines += [device_line(family, name, hooks[name].device) for name in names]
        if not lines and self and not self.added:
            lines.append(f"{family.value} maps and programs that are not in force")
        return lines


def _only_in(rules: BpfRules | None, others: BpfRules | None) -> list[str]:
    """Return the lines of rules that others have not."""
    if rules is None:
        return []
    if others is not None and _same_but_keep(rules, others):
        _, own = difference(others.keep.elements, rules.keep.elements)
        return [decision_line(rules.family, code) for code in sorted(own)]
    theirs = set(others.lines()) if others is not None else set()
    return [line for line in rules.lines() if line not in theirs]


def _same_but_keep(old: BpfRules, new: BpfRules) -> bool:
    """Whether two sets of rules differ in the trie of decisions at most."""
    return replace(old, keep=new.keep) == new


def plan(actual: BpfState, desired: BpfRules | None) -> BpfPlan:
    """Return the change from one to the other."""
    wanted = actual.wanted(desired)
    steps: tuple[Step, ...] | None = None
    old, new = actual.rules, desired
    if old is not None and new is not None and _same_but_keep(old, new):
        edits = in_place(replace(old.keep, capacity=_ANY_CAPACITY), new.keep)
        steps = None if edits is None else tuple(edits)
    hooks = actual.hooks
    attach = [n for n in wanted if n not in hooks or not hooks[n].complete]
    update = [n for n in wanted if n not in attach and hooks[n].device != wanted[n]]
    detach = [n for n in hooks if n not in wanted]
    return BpfPlan(actual, desired, steps, tuple(attach), tuple(detach), tuple(update))
