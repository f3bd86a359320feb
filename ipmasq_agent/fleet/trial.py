"""A document that a few nodes hold: does anything get worse there, and is it for all nodes?

Compared are numbers of each of these nodes with what they were before, and their rise with that
on the other nodes: what all of them suffer is not the document's doing. A value that is made anew
from what agents say, so that it can be tried with recorded numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import ceil
from typing import NamedTuple

from ipmasq_agent.fleet.nodes import NodeState, named
from ipmasq_agent.fleet.rollout import NextStep, Rollout

_MOST = 0.95  # part of the other nodes whose rise is taken for usual
_ROOM = 0.1  # part of ports, or of a table, by which its use may rise: traffic comes and goes


class Watched(NamedTuple):
    """A number that should not rise because of a document.

    Attributes:
        what: it counts, in words, after how many more.
        of: returns it; None where it is not known.
        room: by how much it may rise beyond what it does elsewhere.
        counts: it only ever rises, until its agent begins anew.
    """

    what: str
    of: Callable[[NodeState], float | None]
    room: float = 0.0
    counts: bool = False


WATCHED = (
    Watched("passes failed", lambda each: each.failed, counts=True),
    Watched("packets dropped", lambda each: each.dropped, counts=True),
    Watched("ranges decided by rules of others", lambda each: each.overridden),
    Watched("of the source ports in use", lambda each: each.ports, _ROOM),
    Watched("of the table of connections in use", lambda each: each.filled, _ROOM),
)


@dataclass(frozen=True, slots=True)
class Series:
    """What one number of one node has become.

    Attributes:
        last: at the latest look.
        rise: since the first one; of what counts, also past an agent that began anew.
    """

    last: float
    rise: float = 0.0

    def after(self, value: float, *, counts: bool) -> Series:
        """Return it with one look more."""
        anew = counts and value < self.last
        return Series(value, self.rise + value - (0 if anew else self.last))


@dataclass(frozen=True, slots=True)
class Trial:
    """A document on its canaries.

    Attributes:
        rollout: the canaries, which are to stay ready with it.
        until: seconds after the first look when all has been seen.
        series: number and node → what has become of it.
        worse: number and node → what was wrong with it at the latest look.
        reason: why the document is to be withdrawn; None while nothing speaks against it.
        over: all has been seen.
    """

    rollout: Rollout
    until: float
    series: Mapping[tuple[str, str], Series] = field(default_factory=dict)
    worse: Mapping[tuple[str, str], str] = field(default_factory=dict)
    reason: str | None = None
    over: bool = False

    @property
    def step(self) -> NextStep:
        """What is to be done next; ``DONE`` where the document is for all nodes."""
        if self.reason is not None:
            return NextStep.WITHDRAW
        return NextStep.DONE if self.over else NextStep.WAIT

    def after(
        self,
        states: Iterable[NodeState],
        moment: float,
        present: Collection[str],
        findings: Iterable[str] = (),
    ) -> Trial:
        """Return what has become of it.

        Args:
            states: what all canaries say, and some of the other nodes.
            moment: seconds since the first look.
            present: nodes that still have an agent.
            findings: what ``doctor`` has found on canaries, and had not before.
        """
        states = list(states)
        canaries = self.rollout.nodes
        of_canaries = [each for each in states if each.node in canaries]
        rollout = self.rollout.after(of_canaries, moment, present)
        series = self._with(states)
        worse = dict(_worse(series, rollout.nodes))
        # What is seen once may be gone at the next look, as rules of others while they change.
        lasting = [why for which, why in worse.items() if which in self.worse]
        reasons = [*findings, *lasting]
        if rollout.step is NextStep.WITHDRAW:
            reasons[:0] = [f"{node}: {why}" for node, why in sorted(rollout.failed.items())]
        if not rollout.nodes:
            reasons.append("no node that tries it is left")
        return replace(
            self,
            rollout=rollout,
            series=series,
            worse=worse,
            reason="; ".join(reasons) or None,
            # Nor is it over while something looks bad that the next look may confirm.
            over=moment >= self.until
            and rollout.confirmed
            and rollout.ailing.keys() <= rollout.failed.keys()
            and not worse,
        )

    def begun(self, states: Iterable[NodeState]) -> Trial:
        """Return it with what nodes said before they held the document."""
        return replace(self, series=self._with(states))

    def _with(self, states: Iterable[NodeState]) -> dict[tuple[str, str], Series]:
        series = dict(self.series)
        for each in states:
            for measure in WATCHED if each.silent is None else ():
                value, which = measure.of(each), (measure.what, each.node)
                if value is not None:
                    before = series.get(which) or Series(value)
                    series[which] = before.after(value, counts=measure.counts)
        return series


def _worse(
    series: Mapping[tuple[str, str], Series], canaries: Collection[str]
) -> Iterable[tuple[tuple[str, str], str]]:
    """Yield number and node, and what is wrong with it."""
    for measure in WATCHED:
        rises = {node: one.rise for (what, node), one in series.items() if what == measure.what}
        others = sorted(rise for node, rise in rises.items() if node not in canaries)
        usual = max(0.0, others[ceil(_MOST * (len(others) - 1))] if others else 0.0)
        for node in sorted(rises.keys() & set(canaries)):
            if rises[node] > usual + measure.room:
                shown = "{:.0%}" if measure.room else "{:,.0f}"
                more, elsewhere = shown.format(rises[node]), shown.format(usual)
                beside = f", at most {elsewhere} on most other nodes" if others else ""
                yield (measure.what, node), f"{node}: {more} more {measure.what}{beside}"


def few_of(nodes: Collection[str], most: int = 50) -> list[str]:
    """Return some nodes to compare with: of many, evenly chosen."""
    step = -(-len(nodes) // most)
    return sorted(nodes)[:: step or 1]


def tried_on(nodes: Collection[str]) -> str:
    """Return in words which nodes try a document."""
    return f"{len(nodes)} node{'s' * (len(nodes) != 1)} ({named(sorted(nodes))})"
