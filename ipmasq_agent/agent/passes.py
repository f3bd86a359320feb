"""A pass: the data plane chosen, brought to what is meant, and those that were left cleaned."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from ipmasq_agent.agent.choice import PlaneChoice
from ipmasq_agent.agent.intent import Intent
from ipmasq_agent.agent.metrics import Metrics
from ipmasq_agent.agent.moves import Moves
from ipmasq_agent.agent.reconcile import Outcome, Outcomes, reconcile
from ipmasq_agent.agent.rivals import Rivals
from ipmasq_agent.agent.shadows import Shadows
from ipmasq_agent.agent.snat import Replies, replies, tell
from ipmasq_agent.agent.status import Look
from ipmasq_agent.config.assemble import follows
from ipmasq_agent.errors import foreseen
from ipmasq_agent.logs import event, failure
from ipmasq_agent.planes.plane import AnyPlane
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.facts import Fact


class Passes:
    """Makes one pass after the other, and remembers what the next one has to know.

    Args:
        choice: of the data plane.
        drain_timeout: seconds for which flows of one that was left may go on.
        devices: lists those that lead out.
        kept_by_others: asks for the places of ours that another agent of this kind keeps.
        shadows: looks for rules of others that decide; None for nobody.
        follow: told what the data plane in use depends on beside the document.
        metrics: where passes are counted.
    """

    def __init__(
        self,
        choice: PlaneChoice,
        drain_timeout: float,
        devices: Callable[[], tuple[str, ...]],
        kept_by_others: Callable[[], Sequence[str]],
        shadows: Shadows | None,
        follow: Callable[[frozenset[Fact[Any]]], None],
        metrics: Metrics,
    ) -> None:
        self._choice = choice
        self._moves = Moves(drain_timeout)
        self._list_devices = devices
        self._rivals = Rivals(kept_by_others, metrics)
        self._shadows = shadows
        self._follow = follow
        self._metrics = metrics
        self._devices: tuple[str, ...] = ()
        self._replies = Replies()
        self._since: float | None = None

    def bring(
        self, intent: Intent, since: float | None, *, thorough: bool, at_once: bool
    ) -> Look | dict[Family, str]:
        """Bring the kernel to what is meant.

        Args:
            intent: what is meant.
            since: when it was learnt that it is to be so; None where it is healed only.
            thorough: take nothing for granted of what the kernel held before.
            at_once: write also where somebody undoes it.

        Returns:
            What the kernel holds now, or why it was not even looked at.
        """
        started, self._since = time.monotonic(), since
        result: Look | dict[Family, str]
        try:
            outcomes, result = self._bring(intent, started, thorough=thorough, at_once=at_once)
        except Exception as error:
            told = foreseen(error, "the pass")
            failure("pass failed", told)
            outcomes = dict.fromkeys(intent.config.families, Outcome(error=told))
            result = dict.fromkeys(outcomes, str(told))
        seconds = time.monotonic() - started
        event(logging.DEBUG, "pass done", ms=_ms(seconds))
        self._metrics.passed(outcomes, seconds)
        return result

    def _bring(
        self, intent: Intent, started: float, *, thorough: bool, at_once: bool
    ) -> tuple[Outcomes, Look]:
        plane, left_behind = self._choice.current(large=intent.is_large, look=thorough)
        self._follow(plane.needs | follows(intent.config))
        self._moves.announce(left_behind)
        alone = {} if at_once else self._rivals.left_alone(plane, intent, started)
        # A backend that we come to for the first time has nothing to remember.
        outcomes = reconcile(plane, intent, thorough=thorough, rivals=alone)
        written = {family: o for family, o in outcomes.items() if family not in alone}
        self._rivals.watch(plane, intent, written, time.monotonic())
        failed = {f: str(outcome.error) for f, outcome in outcomes.items() if outcome.error}
        left = self._choice.unseen
        if not failed:
            # The backend in use decides now; only then may the one before it go.
            left += self._moves.complete(left_behind, self._left)
        self.report(outcomes, plane.name, "applied")
        said, self._replies = self._replies, replies(intent.config)
        tell(said, self._replies)
        return outcomes, Look(
            plane.name,
            self._choice.reason,
            self._egress(),
            intent.config.families,
            errors=failed,
            changed=any(outcome.changed for outcome in outcomes.values()),
            left_behind=left,
            unanswered=self._replies.unanswered,
            doubtful=self._replies.doubtful,
            advice={
                f: plane.dialect.advice(intent.desired(plane, f)) for f in outcomes.keys() - failed
            },
            further=(*self._moves.advice, *self._rivals.advice),
            contested=self._rivals.name,
        )

    def shadows(self, intent: Intent, look: Look) -> Shadows | None:
        """Return what others make of rules that are in the kernel; None where nobody looks."""
        plane = self._choice.in_use
        if self._shadows is None or plane is None or look.errors:
            return None
        self._shadows.look(plane, intent, look.devices)
        return self._shadows

    def report(self, outcomes: Outcomes, plane: str, verb: str) -> None:
        """Log what became of each family."""
        for family, outcome in outcomes.items():
            if outcome.error is not None:
                failure("pass failed", outcome.error, backend=plane, family=family.value)
            elif outcome.change:
                event(
                    logging.INFO,
                    f"rules {verb}",
                    backend=plane,
                    family=family.value,
                    added=outcome.change.counts[0],
                    removed=outcome.change.counts[1],
                    ms=None if self._since is None else _ms(time.monotonic() - self._since),
                )

    def _left(self, other: AnyPlane, outcomes: Outcomes) -> None:
        self.report(outcomes, other.name, "left")
        if not any(outcome.error for outcome in outcomes.values()):
            self._choice.cleaned(other)

    def _egress(self) -> tuple[str, ...]:
        """Return the egress devices for the status line; those of before if they are not told."""
        try:
            self._devices = self._list_devices()
        except Exception as error:
            told = foreseen(error, "the list of devices")
            event(logging.WARNING, "devices cannot be listed", error=str(told))
        return self._devices


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)
