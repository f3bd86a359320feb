"""What a state of any data plane decides, and what decides otherwise for some packets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from ipmasq_agent.policy.addresses import Prefix
from ipmasq_agent.policy.decisions import DecisionMap, Verdict
from ipmasq_agent.policy.model import FamilyPolicy


class Decider(NamedTuple):
    """What decides in a kernel: a rule of a chain, or what a set or a trie holds.

    Attributes:
        where: the chain, the set or the trie.
        position: the number of a rule in its chain, from 1; None where order means nothing.
        text: what it says, in the words of its data plane.
        prefix: the destinations that it names, where that is one prefix.
    """

    where: str
    position: int | None
    text: str
    prefix: Prefix | None = None

    def __str__(self) -> str:
        if self.position is None:
            return f"{self.text} ({self.where})"
        return f"rule {self.position} of {self.where}: {self.text}"


@dataclass(frozen=True, slots=True)
class RuleException:
    """A rule that decides otherwise than the map, for some packets only.

    Attributes:
        rule: which one.
        verdict: what it decides.
        ranges: the destinations, ends included, for which that is not the map's verdict.
    """

    rule: Decider
    verdict: Verdict
    ranges: tuple[tuple[int, int], ...] = field(default=(), compare=False)

    def concerns(self, destination: int) -> bool:
        """Whether packets to ``destination`` may be decided otherwise by this rule."""
        return any(first <= destination <= last for first, last in self.ranges)

    def __str__(self) -> str:
        return str(self.rule)


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
        programs: the devices with the programs that decide; none where rules do.
    """

    policy: FamilyPolicy
    exceptions: tuple[RuleException, ...] = ()
    programs: tuple[str, ...] = ()

    @property
    def located(self) -> Interpretation:
        """It with the devices of its programs as a guard, where the user names none."""
        guards = self.policy.guards
        if not self.programs or guards.devices is not None:
            return self
        guards = replace(guards, devices=self.programs)
        return replace(self, policy=replace(self.policy, guards=guards))


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
