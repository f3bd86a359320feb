"""Two writers of one chain: seeing that what we write is undone again and again.

Rules that were flushed are put back at once, always. Where instead we find other rules in
the place of ours, again and again, somebody means what he writes, as the agent does that
was here before. Each of us then undoes the other for ever, and every time packets change
sides. So we write ever less often, and say who it is; a new document is written at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from ipmasq_agent.agent.intent import Intent
from ipmasq_agent.agent.metrics import Metrics
from ipmasq_agent.agent.reconcile import Outcomes
from ipmasq_agent.logs import event
from ipmasq_agent.planes.iptables.ownership import SIGNATURE, UPSTREAM
from ipmasq_agent.planes.plane import AnyPlane, Change
from ipmasq_agent.policy.addresses import Family

# As often as this may be chance: a restore from a file, a hand at work.
_CHANCE = 2
# Seconds between writes: doubled each time, up to the second figure. That is also how long
# we may be late when the other one has gone.
_FIRST, _LAST = 30.0, 300.0
# Seconds that our rules have to stand until the other one counts as gone; upstream's agent
# writes its rules once a minute.
_PEACE = 120.0


class War:
    """Counts how often what we wrote in one family was replaced, and by whom.

    Attributes:
        rival: who does it, and how that can be told; None while nobody does.
    """

    def __init__(self, family: Family) -> None:
        self.rival: str | None = None
        self._family = family
        self._count = 0
        self._what: object = None
        self._written = 0.0

    @property
    def _patience(self) -> float:
        return min(_FIRST * 2.0 ** (self._count - _CHANCE - 1), _LAST)

    def holds(self, what: object, now: float) -> bool:
        """Whether to leave the kernel as it is for now, also where it is not as it should be.

        ``what`` is to be in force, and where: something new is not held up.
        """
        if self.rival is None or what != self._what:
            return False
        return now < self._written + self._patience

    def watch(self, what: object, change: Change[Any] | None, now: float, *, another: bool) -> bool:
        """Take in what a pass has led to, and return whether somebody had undone what we wrote.

        Args:
            what: is in force now, and where.
            change: what had to be written, and was.
            now: a clock's seconds.
            another: an agent of ours is known to keep the same place.
        """
        # What was changed for something new was never undone.
        removed, added = replaced(change) if change and what == self._what else ((), ())
        before, self._what = self.rival, what
        if removed:
            self._count += 1
            if self._count > _CHANCE:
                self.rival = _who(removed, added, another=another)
        elif now - self._written > max(_PEACE, 2 * self._patience):
            self._count, self.rival = 0, None
        if change:
            self._written = now
        if self.rival and not before:
            message = "our rules are undone again and again"
            event(logging.ERROR, message, family=self._family.value, by=self.rival)
        elif before and not self.rival:
            event(logging.INFO, "nobody undoes our rules any more", family=self._family.value)
        return bool(removed)


class Rivals:
    """Other writers of our rules, family by family.

    Args:
        kept_by_others: asks for the places of ours that another agent of this kind keeps.
        metrics: where it is counted how often our rules were undone.
    """

    def __init__(self, kept_by_others: Callable[[], Sequence[str]], metrics: Metrics) -> None:
        self._kept_by_others = kept_by_others
        self._metrics = metrics
        self._wars = {family: War(family) for family in Family}

    @property
    def name(self) -> str | None:
        """Who undoes what we write, again and again; None while nobody does."""
        return next((war.rival for war in self._wars.values() if war.rival), None)

    @property
    def advice(self) -> tuple[str, ...]:
        """For the status: that there is somebody."""
        if self.name:
            return (f"{self.name} undoes what we write here; we write less often for it",)
        return tuple(
            f"another agent keeps {place} on this node as well: stop one of the two"
            for place in self._kept_by_others()
        )

    def left_alone(self, plane: AnyPlane, intent: Intent, now: float) -> dict[Family, str]:
        """Return in which families nothing is written for now, and whose rules are there."""
        what, wars = (plane, intent), self._wars.items()
        return {family: war.rival for family, war in wars if war.rival and war.holds(what, now)}

    def watch(self, plane: AnyPlane, intent: Intent, outcomes: Outcomes, now: float) -> None:
        """Take in what became of the families in which all was written that had to be."""
        another = bool(self._kept_by_others())
        if plane.needs and not another:
            return  # it writes when devices come and go, too
        for family, outcome in outcomes.items():
            if not outcome.error:
                change, war = outcome.change, self._wars[family]
                undone = war.watch((plane, intent), change, now, another=another)
                self._metrics.undone.inc(undone)


Lines = Sequence[str]


def replaced(change: Change[Any]) -> tuple[Lines, Lines]:
    """Return what was there that we never write, and what was missing for it.

    A line that comes and goes was moved: others inserted rules before it.
    """
    removed, added = change.removed, change.added
    moved = set(removed) & set(added)
    return [x for x in removed if x not in moved], [x for x in added if x not in moved]


def _who(removed: Lines, added: Lines, *, another: bool) -> str:
    """Return who wrote what had to go, by the comments that agents leave on their rules."""
    for line in removed:
        if UPSTREAM in line:
            return f"ip-masq-agent, whose comments stand on its rules (`{line}`)"
    # Who leaves our comments in their place writes them himself.
    if another or not any(SIGNATURE in line for line in added):
        return f"another agent of this kind, with another document or other flags (`{removed[0]}`)"
    return f"another program (`{removed[0]}`)"
