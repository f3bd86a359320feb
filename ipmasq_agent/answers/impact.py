"""Which connections a change decides otherwise: what the next one like each would leave as."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from ipmasq_agent.answers.explain import EgressPath, Fate, fate
from ipmasq_agent.answers.table import aligned
from ipmasq_agent.planes.interpretation import Decider, Interpretation, RuleException
from ipmasq_agent.planes.rules.matching import question
from ipmasq_agent.planes.rules.neighbours import PostroutingHook, counting, neighbours
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.decisions import Verdict
from ipmasq_agent.policy.flows import Flow

UNKNOWN = "unknown"
_KEPT = Verdict.NON_MASQUERADE
_SHOWN = 20  # rows, a screen's worth
_SOURCES = 4096  # whose answers are remembered

RouteOf = Callable[[Family, int, int], EgressPath]
"""Tells where the node sends what goes to a destination, and comes from a source."""


class Ruling:
    """All that decides about the connections of a family, before the change or after it.

    It remembers what decides about some sources, so that very many connections can be asked about.

    Args:
        interpret: what is ours decides, for any source or for one.
        hook: what stands beside it.
    """

    def __init__(
        self, interpret: Callable[[int | None], Interpretation], hook: PostroutingHook
    ) -> None:
        self._hook = hook
        self._whole = interpret(None).located
        self._of_source = lru_cache(_SOURCES)(lambda source: interpret(source).located)
        self._others = lru_cache(_SOURCES)(lambda *way: neighbours(hook, question(*way)))

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

    def fate(self, source: int, destination: int, route: EgressPath) -> Fate:
        """Return what becomes of a new connection that is routed so, and what decides it."""
        others = self._others(source, route.device)
        return fate(self._ours(source).policy, others, destination, source, route)

    def leaves_as(self, flow: Flow, route: EgressPath) -> str:
        """Return the source address with which a new connection like ``flow`` would leave."""
        source = flow.source.address
        own = flow.family.show(source)
        if route.local:
            return own
        found = self.fate(source, flow.reached.address, route)
        if found.verdict is _KEPT:
            return own
        translated = found.translated_to if found.verdict is Verdict.MASQUERADE else None
        return translated or UNKNOWN

    def doubts(self, source: int, destination: int, route: EgressPath) -> Iterator[RuleException]:
        """Yield the rules that decide about such a connection if more of it fits."""
        if route.local:
            return
        yield from (e for e in self._ours(source).exceptions if e.concerns(destination))
        for exception, first, last in counting(self._others(source, route.device)):
            if first <= destination <= last:
                yield exception

    @cached_property
    def by_mark(self) -> tuple[Decider, ...]:
        """The rules of others that look at a packet's mark, which is taken to have none."""
        return tuple(
            Decider(chain.name + base.suffix, position, rule.text)
            for base in self._hook.nat
            for chain in base.table.chains.values()
            if chain.name != base.own
            for position, rule in enumerate(chain.rules, start=1)
            if rule.option("mark") is not None
        )

    def _ours(self, source: int) -> Interpretation:
        return self._of_source(source) if self._whole.exceptions else self._whole


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
                doubts |= dict.fromkeys(side.doubts(flow.source.address, destination, route))
    return Impact(connections, dict(changed.most_common()), established, tuple(map(str, doubts)))
