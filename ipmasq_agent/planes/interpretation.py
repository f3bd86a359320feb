"""What a state of any data plane decides, and what decides otherwise for some packets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from ipmasq_agent.policy.decisions import DecisionMap, Origin, Verdict
from ipmasq_agent.policy.model import FamilyPolicy


@dataclass(frozen=True, slots=True)
class RuleException:
    """A rule that decides otherwise than the map, for some packets only.

    Attributes:
        chain: where the rule stands.
        position: its number in the chain, from 1.
        text: what it says, in the words of its data plane.
        verdict: what it decides.
        ranges: the destinations, ends included, for which that is not the map's verdict.
    """

    chain: str
    position: int
    text: str
    verdict: Verdict
    ranges: tuple[tuple[int, int], ...] = field(default=(), compare=False)

    def concerns(self, destination: int) -> bool:
        """Whether packets to ``destination`` may be decided otherwise by this rule."""
        return any(first <= destination <= last for first, last in self.ranges)

    def __str__(self) -> str:
        return f"rule {self.position} of {self.chain}: {self.text}"


class Partial(NamedTuple):
    """A rule that decides for some packets, and a destination range in which it does."""

    exception: RuleException
    first: int
    last: int

    def within(self, first: int, last: int) -> Partial:
        """Return the part of it between two destinations."""
        return self._replace(first=max(self.first, first), last=min(self.last, last))


@dataclass(frozen=True, slots=True)
class Interpretation:
    """What a table decides, and the rules that decide otherwise for some packets.

    Attributes:
        policy: the decisions, with guards and action.
        exceptions: rules for some packets only.
        sources: the rules that translate to another address than the device's or than the
            action says, and that address as text, or a word where it is one of several.
    """

    policy: FamilyPolicy
    exceptions: tuple[RuleException, ...] = ()
    sources: dict[Origin, str] = field(default_factory=dict, compare=False)


def telling(partial: Iterable[Partial], decisions: DecisionMap) -> Iterator[RuleException]:
    """Yield the exceptions that really decide otherwise, each with the ranges where it does."""
    found: dict[RuleException, list[tuple[int, int]]] = {}
    for exception, first, last in partial:
        for entry in decisions.between(first, last):
            if entry.verdict is not exception.verdict:
                differs = max(first, entry.first), min(last, entry.last)
                found.setdefault(exception, []).append(differs)
    for exception, ranges in found.items():
        yield replace(exception, ranges=tuple(ranges))
