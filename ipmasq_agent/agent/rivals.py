"""Who else keeps what this agent keeps, as it is told to people."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from ipmasq_agent.agent.intent import Intent
from ipmasq_agent.agent.metrics import Metrics
from ipmasq_agent.agent.reconcile import Outcomes
from ipmasq_agent.agent.war import War
from ipmasq_agent.logs import event
from ipmasq_agent.planes.plane import AnyPlane
from ipmasq_agent.policy.addresses import Family


class Rivals:
    """Other writers of our rules, family by family.

    Args:
        kept_by_others: asks for the places of ours that another agent of this kind keeps.
        metrics: where it is counted how often our rules were undone.
    """

    def __init__(self, kept_by_others: Callable[[], Sequence[str]], metrics: Metrics) -> None:
        self._kept_by_others = kept_by_others
        self._metrics = metrics
        self._wars = {family: War() for family in Family}

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
        what = plane, intent
        wars = self._wars.items()
        return {family: war.rival for family, war in wars if war.rival and war.holds(what, now)}

    def watch(self, plane: AnyPlane, intent: Intent, outcomes: Outcomes, now: float) -> None:
        """Find out whether what was written is undone again and again, and by whom.

        Args:
            plane: where it was written.
            intent: what.
            outcomes: of the families in which all was written that had to be.
            now: a clock's seconds.
        """
        another = bool(self._kept_by_others())
        if plane.needs and not another:
            return  # it writes when devices come and go, too
        for family, outcome in outcomes.items():
            if outcome.error:
                continue
            war = self._wars[family]
            before, undone = war.rival, war.undone
            war.watch((plane, intent), outcome.change, now, another=another)
            self._metrics.undone.inc(war.undone - undone)
            if war.rival and not before:
                message = "our rules are undone again and again"
                event(logging.ERROR, message, family=family.value, by=war.rival)
            elif before and not war.rival:
                event(logging.INFO, "nobody undoes our rules any more", family=family.value)
