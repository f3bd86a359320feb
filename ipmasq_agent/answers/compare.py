"""Where two policies decide otherwise about the same packets.

Two kinds of difference are told apart. A destination may have another verdict: those are
ranges. And of the packets to one destination, a side may masquerade only those of some
sources or devices, or give them another address: those are conditions. Either makes two
sides unequal. Which source port is taken, and how, is only remarked upon: the receiver
still sees the same host.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ipmasq_agent.answers.differences import DecisionChange, decision_changes
from ipmasq_agent.policy.addresses import Family, Prefix, range_text
from ipmasq_agent.policy.decisions import DecisionMap, Stated, Verdict
from ipmasq_agent.policy.model import FamilyPolicy, FixedSource

_SHOWN = 4  # sources, devices or addresses of a condition, as many as fit on a line


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two that are compared.

    Attributes:
        label: what the user called it.
        policies: those of the families that it manages.
        conditions_known: False where the packets it speaks of, and the address they get,
            cannot be told from what was read.
        notes: what to know about it when reading the answer.
    """

    label: str
    policies: Mapping[Family, FamilyPolicy]
    conditions_known: bool = True
    notes: tuple[str, ...] = ()

    def entry(self, prefix: Prefix) -> str:
        """Return what decides for the first address of a prefix: it stands for the others."""
        return str(self.policy(prefix.family).decisions.decide(prefix.first).reason)

    def policy(self, family: Family) -> FamilyPolicy:
        """Return what it does with packets of a family: nothing, where it is not managed."""
        if family in self.policies:
            return self.policies[family]
        reason = Stated(f"{self.label} does not manage {family.value}")
        return FamilyPolicy(DecisionMap(family, (), Verdict.NON_MASQUERADE, reason))


class Condition(NamedTuple):
    """Something on which masquerading depends, beside the destination, and its two values."""

    family: Family
    name: str
    left: str
    right: str


@dataclass(frozen=True, slots=True)
class PolicyComparison:
    """The answer; see ``as_data`` for its shape as JSON."""

    left: Side
    right: Side
    ranges: tuple[DecisionChange, ...] = ()
    conditions: tuple[Condition, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def equal(self) -> bool:
        """Whether each packet is treated alike on both sides, as far as can be told."""
        return not self.ranges and not self.conditions

    def as_data(self) -> dict[str, Any]:
        """Return the contract of ``compare -o json``, with keys of our own beside it."""
        return {
            "equal": self.equal,
            "left": self.left.label,
            "right": self.right.label,
            "differences": [
                {
                    "family": change.family.value,
                    "cidr": str(prefix),
                    "address": change.family.show(prefix.first),
                    "left": change.before,
                    "right": change.after,
                    "leftEntry": self.left.entry(prefix),
                    "rightEntry": self.right.entry(prefix),
                }
                for change in self.ranges
                for prefix in change.prefixes
            ],
            "conditions": [
                {"family": c.family.value, "name": c.name, "left": c.left, "right": c.right}
                for c in self.conditions
            ],
            "notes": list(self.notes),
        }

    def as_lines(self, limit: int) -> Iterator[str]:
        """Yield the answer for people, in the manner of a diff.

        Args:
            limit: how many ranges of a family to show.
        """
        if self.equal:
            families = " and ".join(f.value for f in Family if self._managed(f))
            about = f" about {families}" if families else ": neither manages any packet"
            yield f"{self.left.label} and {self.right.label} decide alike{about}"
            return
        yield f"--- {self.left.label}"
        yield f"+++ {self.right.label}"
        for family in Family:
            for condition in self.conditions:
                if condition.family is family:
                    yield f"@@ {family.value}, {condition.name} @@"
                    yield f"-{condition.left}"
                    yield f"+{condition.right}"
            changes = [change for change in self.ranges if change.family is family]
            for change in changes[:limit]:
                sample = change.prefixes[0]
                yield f"@@ {change}, for example {family.show(change.first)} @@"
                yield f"-{change.before}: {self.left.entry(sample)}"
                yield f"+{change.after}: {self.right.entry(sample)}"
            if len(changes) > limit:
                more = len(changes) - limit
                yield f"... and {more} more {family.value} ranges; -o json shows them all"

    def _managed(self, family: Family) -> bool:
        return family in self.left.policies or family in self.right.policies


def compare(left: Side, right: Side) -> PolicyComparison:
    """Return where two sides differ.

    A family that only one side manages is compared with doing nothing, which is what
    becomes of its packets on the other; a note says so.
    """
    ranges: list[DecisionChange] = []
    conditions: list[Condition] = []
    notes = [f"{side.label}: {note}" for side in (left, right) for note in side.notes]
    for family in Family:
        managing = [side for side in (left, right) if family in side.policies]
        if not managing:
            continue
        if len(managing) == 1:
            other = right if managing[0] is left else left
            notes.append(
                f"{family.value} is managed by {managing[0].label} alone; {other.label} leaves "
                "its packets as they are"
            )
        one, two = left.policy(family), right.policy(family)
        ranges += _ranges(one.decisions, two.decisions)
        if not (one.masquerades and two.masquerades):
            continue  # there is nothing that both do under some condition
        if left.conditions_known and right.conditions_known:
            conditions += _conditions(family, one, two)
            notes += _port_notes(left.label, right.label, one, two)
    return PolicyComparison(left, right, tuple(ranges), tuple(conditions), tuple(notes))


def _ranges(left: DecisionMap, right: DecisionMap) -> list[DecisionChange]:
    """Return the ranges that differ, and those of which neither side can say anything."""
    changes = list(decision_changes(left, right))
    unknown = Verdict.UNKNOWN
    if unknown not in left.verdicts & right.verdicts:
        return changes
    for entry in left.ranges:
        if entry.verdict is unknown:
            for other in right.between(entry.first, entry.last):
                if other.verdict is unknown:
                    first, last = max(entry.first, other.first), min(entry.last, other.last)
                    changes.append(DecisionChange(left.family, first, last, unknown, unknown))
    return sorted(changes, key=lambda change: change.first)


def _conditions(family: Family, left: FamilyPolicy, right: FamilyPolicy) -> Iterator[Condition]:
    one, two = _told(left), _told(right)
    for name, (value, text) in one.items():
        other_value, other_text = two[name]
        if value != other_value:
            yield Condition(family, name, text, other_text)


def _told(policy: FamilyPolicy) -> dict[str, tuple[Any, str]]:
    """Return name → value and its text, for everything that is a condition."""
    guards, fixed = policy.guards, policy.action.fixed
    local = "left alone" if not guards.local_destinations else "treated as any other"
    return {
        "packets from": (guards.sources, _list("any source", guards.sources)),
        "packets out of": (guards.devices, _list("any device", guards.devices)),
        "packets to the node itself": (guards.local_destinations, local),
        "source address given": (fixed, _addresses(policy.family, fixed)),
    }


def _list(otherwise: str, values: Sequence[object] | None) -> str:
    if values is None:
        return otherwise
    more = f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
    return ", ".join(map(str, values[:_SHOWN])) + more


def _addresses(family: Family, fixed: Sequence[FixedSource]) -> str:
    otherwise = "that of the egress interface"
    return _list(otherwise, [_address(family, item) for item in fixed] or None)


def _address(family: Family, item: FixedSource) -> str:
    shown = family.show(item.address)
    if (item.first, item.last) == (0, family.last_address):
        return shown
    return f"{shown} to {range_text(family, item.first, item.last)}"


def _port_notes(left: str, right: str, one: FamilyPolicy, two: FamilyPolicy) -> Iterator[str]:
    family = one.family.value
    if one.action.ports != two.action.ports:
        ports = [_list("any", policy.action.ports or None) for policy in (one, two)]
        yield f"{family} source ports differ: {ports[0]} ({left}), {ports[1]} ({right})"
    if one.action.random_fully != two.action.random_fully:
        random = left if one.action.random_fully else right
        yield f"{family} source ports are chosen fully at random by {random} only"
