"""Which connections a change decides otherwise: what the next one like each would leave as."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ipmasq_agent.answers.explain import Ruling
from ipmasq_agent.answers.table import aligned
from ipmasq_agent.planes.interpretation import RuleException
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.facts import WayOut
from ipmasq_agent.policy.flows import Flow

_SHOWN = 20  # rows, a screen's worth

RouteOf = Callable[[Family, int, int], WayOut]
"""Tells where the node sends what goes to a destination, and comes from a source."""


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
        go_on = f"; {open_} of them are established, and go on unchanged" if open_ else ""
        return [
            f"{changed} of {self.connections} {whose} would leave otherwise if they began "
            f"anew{go_on}:",
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
