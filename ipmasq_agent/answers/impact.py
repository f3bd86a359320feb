"""Which connections a change decides otherwise: what the next one like each would leave as."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ipmasq_agent.answers.explain import EgressPath, fate
from ipmasq_agent.answers.table import aligned
from ipmasq_agent.planes.interpretation import Interpretation, RuleException
from ipmasq_agent.planes.rules.matching import question
from ipmasq_agent.planes.rules.neighbours import Neighbours, PostroutingHook, neighbours
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.decisions import Verdict
from ipmasq_agent.policy.flows import Flow
from ipmasq_agent.policy.model import FamilyPolicy

UNKNOWN = "unknown"
_KEPT = Verdict.NON_MASQUERADE
_SHOWN = 20  # rows, a screen's worth

RouteOf = Callable[[Family, int, int], EgressPath]
"""Tells where the node sends what goes to a destination, and comes from a source."""


class Ruling:
    """All that decides about the connections of a family, before the change or after it.

    Args:
        interpret: what is ours decides, for any source or for one.
        hook: what stands beside it.
    """

    def __init__(
        self, interpret: Callable[[int | None], Interpretation], hook: PostroutingHook
    ) -> None:
        self._interpret = interpret
        self._hook = hook
        self._whole = interpret(None).located
        self._of_sources: dict[int, FamilyPolicy] = {}
        self._others: dict[tuple[int, str | None], Neighbours] = {}

    def like(self, other: Ruling) -> bool:
        """Whether both differ in destinations alone: those who agree about one agree of it."""
        mine, its = self._whole, other._whole
        looks_at_more = mine.exceptions or its.exceptions
        return (
            not looks_at_more
            and self._hook == other._hook
            and mine.policy.guards == its.policy.guards
        )

    def wanted(self, destination: int) -> tuple[Verdict, int | None]:
        """Return what our own policy says of a destination, and the source that it fixes."""
        policy = self._whole.policy
        fixed = (f.address for f in policy.action.fixed if f.first <= destination <= f.last)
        return policy.decisions.decide(destination).verdict, next(fixed, None)

    def leaves_as(self, flow: Flow, route: EgressPath) -> str:
        """Return the source address with which a new connection like ``flow`` would leave."""
        source, destination = flow.source.address, flow.reached.address
        own = flow.family.show(source)
        if route.local:
            return own
        key = source, route.device
        if key not in self._others:
            self._others[key] = neighbours(self._hook, question(*key))
        found = fate(self._policy(source), self._others[key], destination, source, route)
        if found.verdict is _KEPT:
            return own
        translated = found.translated_to if found.verdict is Verdict.MASQUERADE else None
        return translated or UNKNOWN

    def doubts(self, flow: Flow, route: EgressPath) -> Iterator[RuleException]:
        """Yield the rules of others that decide about such a connection if more of it fits.

        The same arguments were asked about by ``leaves_as``.
        """
        others = self._others.get((flow.source.address, route.device))
        if others is None:
            return
        some = [one for one in others.partial if one.exception.verdict is not _KEPT]
        for exception, first, last in (*some, *others.untracked):
            if first <= flow.reached.address <= last:
                yield exception

    def _policy(self, source: int) -> FamilyPolicy:
        if not self._whole.exceptions:
            return self._whole.policy
        if source not in self._of_sources:
            self._of_sources[source] = self._interpret(source).located.policy
        return self._of_sources[source]


class Diverted(NamedTuple):
    """Connections of one pod to one destination that would leave otherwise.

    Attributes:
        source, destination: addresses, as packets have them before translation.
        now, then: the source addresses with which they leave; ``UNKNOWN`` where a rule that
            cannot be read decides.
    """

    family: Family
    source: int
    destination: int
    now: str
    then: str


@dataclass(frozen=True, slots=True)
class Impact:
    """How many connections a change decides otherwise.

    Attributes:
        connections: how many were asked about.
        changed: how many of each would leave otherwise, most first.
        established: how many of those are.
        doubts: rules of others that look at more than addresses and device, and may decide
            about some of them.
    """

    connections: int
    changed: Mapping[Diverted, int]
    established: Mapping[Diverted, int]
    doubts: tuple[str, ...] = ()

    def as_data(self) -> dict[str, Any]:
        """Return it for ``diff -o json``."""
        return {
            "connections": self.connections,
            "changed": sum(self.changed.values()),
            "established": sum(self.established.values()),
            "exceptions": list(self.doubts),
            "rows": [
                {
                    "family": change.family.value,
                    "source": change.family.show(change.source),
                    "destination": change.family.show(change.destination),
                    "leavesAs": change.now,
                    "wouldLeaveAs": change.then,
                    "connections": count,
                    "established": self.established.get(change, 0),
                }
                for change, count in self.changed.items()
            ],
        }

    def as_lines(self, whose: str) -> list[str]:
        """Return it for people; ``whose`` connections they are, in words."""
        changed = sum(self.changed.values())
        if not changed:
            return [f"no connection would leave otherwise, of {self.connections} {whose}"]
        table = [("source", "destination", "leaves as", "would leave as", "connections")]
        for (family, source, destination, now, then), count in self.changed.items():
            if len(table) > _SHOWN:
                break
            ends = family.show(source), family.show(destination)
            table.append((*ends, now, then, str(count)))
        lines = [f"  {line}" for line in aligned(table)]
        if len(self.changed) >= len(table):
            lines.append(f"  ... and {len(self.changed) - _SHOWN} more; -o json shows them all")
        open_ = sum(self.established.values())
        return [
            f"{changed} of {self.connections} {whose} would leave otherwise if they began anew; "
            f"{open_} of them are established, and go on unchanged:",
            *lines,
            *(f"  for some of them {doubt}" for doubt in self.doubts),
        ]


def impact(
    flows: Iterable[Flow], sides: Mapping[Family, tuple[Ruling, Ruling]], route_of: RouteOf
) -> Impact:
    """Return which of some connections would be decided otherwise if they began anew.

    Args:
        flows: the connections.
        sides: of each family that is managed what decides now, and what then.
        route_of: where the node sends packets; asked where it matters.
    """
    alike = {family: before.like(after) for family, (before, after) in sides.items()}
    connections = 0
    changed: Counter[Diverted] = Counter()
    established: Counter[Diverted] = Counter()
    doubts: dict[RuleException, None] = {}
    for flow in flows:
        connections += 1
        family, destination = flow.family, flow.reached.address
        if family not in sides:
            continue
        before, after = sides[family]
        if alike[family] and before.wanted(destination) == after.wanted(destination):
            continue
        route = route_of(family, destination, flow.source.address)
        now, then = before.leaves_as(flow, route), after.leaves_as(flow, route)
        if now != then:
            change = Diverted(family, flow.source.address, destination, now, then)
            changed[change] += 1
            established[change] += flow.established
            for side in (before, after):
                doubts |= dict.fromkeys(side.doubts(flow, route))
    return Impact(connections, dict(changed.most_common()), established, tuple(map(str, doubts)))
