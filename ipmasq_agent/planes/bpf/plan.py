"""What leads from one state of the eBPF data plane to another.

There are two generations of everything: a policy that differs in much is filled into the
one not in force, and one number switches to it. Where the trie of decisions alone differs,
and in few prefixes, it is edited in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ipmasq_agent.planes.bpf.state import (
    BpfRules,
    BpfState,
    DevicePrograms,
    address_lines,
    decision_line,
)
from ipmasq_agent.planes.prefixset import Step, difference, in_place
from ipmasq_agent.policy.facts import EgressDevice

_ANY_CAPACITY = 1 << 32  # a trie is made for more than it holds


@dataclass(frozen=True, slots=True)
class BpfPlan:
    """What leads from one state to another.

    Attributes:
        actual: as it was read.
        desired: what is to be in force; None for nothing of ours.
        steps: edits of the trie of decisions in place; None where the rules are filled
            into the generation not in force, or go.
        attach: devices that get the programs or get them anew, or come to take part.
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
        addresses = self.desired is not None and self.actual.own != self.actual.addresses
        return bool(changes or addresses or self.actual.remains or self._mends)

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
        more, fewer = self._on_the_node
        return len(coming) + len(more) + self._mends, len(going) + len(fewer)

    @property
    def result(self) -> BpfState:
        """The state that it leads to."""

        def working(devices: Mapping[str, EgressDevice]) -> dict[str, DevicePrograms]:
            return {name: DevicePrograms(device, complete=True) for name, device in devices.items()}

        return replace(
            self.actual,
            rules=self.desired,
            hooks=working(self.actual.wanted(self.desired)),
            beside=working(self.actual.wanted_beside(self.desired)),
            own=frozenset() if self.desired is None else self.actual.addresses,
            remains=False,
            damaged=False,
        )

    @property
    def added(self) -> list[str]:
        """What comes."""
        lines = _only_in(self.desired, self.actual.rules) + self._on_the_node[0]
        if self._mends:
            family = self.actual.family.value
            lines.append(f"{family} maps and programs, or pins of theirs, that are missing")
        return lines

    @property
    def removed(self) -> list[str]:
        """What goes."""
        lines = _only_in(self.actual.rules, self.desired) + self._on_the_node[1]
        if not lines and self and not self.added:
            lines.append(f"{self.actual.family.value} maps and programs that are not in force")
        return lines

    @property
    def _on_the_node(self) -> tuple[list[str], list[str]]:
        """Lines of devices and addresses: those that come, and those that go."""
        then = self.result
        old, new = self.actual.device_lines(), then.device_lines()
        told = {*self.attach, *self.update}
        coming = [line for name, line in new.items() if name in told or old.get(name) != line]
        going = [line for name, line in old.items() if name in self.update or new.get(name) != line]
        coming += address_lines(then.family, then.own - self.actual.own)
        going += address_lines(then.family, self.actual.own - then.own)
        return coming, going


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
    known = {**actual.beside, **actual.hooks}
    needed = {**wanted, **actual.wanted_beside(desired)}
    attach = [
        name
        for name in needed
        if name not in known
        or not known[name].complete
        or (name in wanted and name not in actual.hooks)
    ]
    update = [n for n in needed if n not in attach and known[n].device != needed[n]]
    detach = [n for n in actual.hooks if n not in wanted]
    return BpfPlan(actual, desired, steps, tuple(attach), tuple(detach), tuple(update))
