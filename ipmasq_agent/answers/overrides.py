"""Which destinations somebody else decides about, and by which rule.

In step is not in force: the kernel may hold every rule of ours, and a rule of others come
first, or keep packets from meeting ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from ipmasq_agent.answers.in_force import usual
from ipmasq_agent.planes.rules.matching import Question
from ipmasq_agent.planes.rules.neighbours import Neighbours, PostroutingHook, neighbours, overriding
from ipmasq_agent.policy.addresses import Family, prefixes_of_range
from ipmasq_agent.policy.decisions import Entry, Reason, Stated, Verdict
from ipmasq_agent.policy.model import FamilyPolicy

_SHOWN = 4  # ranges in one line
_LISTED = 256  # ranges of one rule as data
_ALONE = 8  # sources, and devices, that are asked about one by one


@dataclass(frozen=True, slots=True)
class Overridden:
    """A rule of others, and the destinations about which it decides otherwise than ours.

    Attributes:
        family: whose.
        wanted: what our policy says.
        verdict: what becomes of the packets.
        rule: what decides.
        ranges: the first of the destinations, ends included, in order.
        count: how many ranges there are.
    """

    family: Family
    wanted: Verdict
    verdict: Verdict
    rule: Reason
    ranges: tuple[tuple[int, int], ...]
    count: int

    def cidrs(self, limit: int) -> list[str]:
        """Return the prefixes of the first ranges."""
        return [
            str(prefix)
            for first, last in self.ranges[:limit]
            for prefix in prefixes_of_range(self.family, first, last)
        ]

    def as_data(self) -> dict[str, Any]:
        """Return it as ``status -o json`` has it."""
        return {
            "family": self.family.value,
            "wanted": self.wanted,
            "verdict": self.verdict,
            "rule": str(self.rule),
            "cidrs": self.cidrs(_LISTED),
            "ranges": self.count,
        }

    def __str__(self) -> str:
        cidrs = self.cidrs(_SHOWN)
        shown = ", ".join(cidrs[:_SHOWN])
        if len(cidrs) > _SHOWN or self.count > _SHOWN:
            shown += f", ... ({self.count} ranges)"
        return f"{shown}: {self.verdict}, not {self.wanted}, by {self.rule}"


class Shadow(NamedTuple):
    """What others do to a policy.

    Attributes:
        overridden: rules that decide about some destinations whatever the packet is.
        partial: rules that do so for some packets, in words.
    """

    overridden: tuple[Overridden, ...] = ()
    partial: tuple[str, ...] = ()


def shadow(policy: FamilyPolicy, hook: PostroutingHook) -> Shadow:
    """Return what others make of a policy that the kernel holds.

    It is asked for each source and device that the policy speaks of by itself: a rule for
    one of them decides there, though not for all packets.
    """
    found: dict[_Key, dict[tuple[int, int], None]] = {}
    counts: Counter[_Key] = Counter()
    asked = usual(policy.guards, hook)
    for one in _each(asked):
        seen: Counter[_Key] = Counter()
        for wanted, (first, last, verdict, rule) in _overrides(policy, neighbours(hook, one)):
            key = wanted, verdict, rule
            seen[key] += 1
            if seen[key] <= _LISTED:
                found.setdefault(key, {})[first, last] = None
        counts |= seen
    overridden = tuple(
        Overridden(policy.family, *key, tuple(ranges)[:_LISTED], counts[key])
        for key, ranges in found.items()
    )
    if not policy.masquerades:
        return Shadow(overridden)
    rules = {item.rule for item in overridden}
    return Shadow(overridden, tuple(dict.fromkeys(_partial(neighbours(hook, asked), rules))))


_Key = tuple[Verdict, Verdict, Reason]


def _overrides(
    policy: FamilyPolicy, others: Neighbours
) -> Iterator[tuple[Verdict, Entry[Verdict]]]:
    """Yield what the policy says of some destinations, and what becomes of them instead."""
    if others.asleep is None:
        found = overriding(policy.decisions, others)
        yield from ((wanted, entry) for wanted, entry in found if entry.verdict is not wanted)
        return
    masqueraded, kept = Verdict.MASQUERADE, Verdict.NON_MASQUERADE
    for first, last in policy.decisions.stretches(masqueraded):
        yield masqueraded, Entry(first, last, kept, Stated(others.asleep))


def _each(asked: Question) -> Iterator[Question]:
    """Yield the question for each source and device alone, where these are few."""
    sources = [(span,) for span in asked.sources or ()]
    devices = [(device,) for device in asked.devices or ()]
    for source in sources if 0 < len(sources) <= _ALONE else [asked.sources]:
        for device in devices if 0 < len(devices) <= _ALONE else [asked.devices]:
            yield Question(source, device, others=False)


def _partial(others: Neighbours, told: Collection[Reason]) -> Iterator[str]:
    """Yield the rules that decide for some packets, but those that are told of already."""
    for exception, _, _ in (*others.partial, *others.untracked):
        untracked = any(exception is item.exception for item in others.untracked)
        counts = untracked or exception.verdict is not Verdict.NON_MASQUERADE
        if counts and exception.rule not in told:
            yield f"{exception} ({exception.verdict})"
