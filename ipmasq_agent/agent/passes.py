"""A pass: the data plane chosen, brought to what is meant, and those that were left cleaned."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ipmasq_agent.agent.choice import PlaneChoice
from ipmasq_agent.agent.intent import Intent
from ipmasq_agent.agent.metrics import Metrics
from ipmasq_agent.agent.moves import Moves
from ipmasq_agent.agent.reconcile import Outcome, Outcomes, reconcile
from ipmasq_agent.agent.shadows import Shadows
from ipmasq_agent.agent.snat import Replies, replies, tell
from ipmasq_agent.agent.status import Healed, Look
from ipmasq_agent.agent.war import Rivals, replaced
from ipmasq_agent.config.assemble import follows
from ipmasq_agent.errors import foreseen
from ipmasq_agent.host.sparing import Sparing
from ipmasq_agent.logs import event, failure, rfc3339
from ipmasq_agent.planes.plane import AnyPlane
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.facts import Fact

_SHOWN = 4  # rules in a line of the log
_WRITTEN = 256  # rules of a change that are remembered


class Passes:
    """Makes one pass after the other, and remembers what the next one has to know.

    Args:
        drain_timeout: seconds for which flows of one that was left may go on.
        kept_by_others: asks for the places of ours that another agent of this kind keeps.
        shadows: looks for rules of others that decide; None for nobody.
        follow: told what the data plane in use depends on beside the document.
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
        self._last: AnyPlane | None = None  # where a pass went well
        self._asked: tuple[Intent, Look] | None = None  # of what others make of it
        self._sparing = Sparing()

    def bring(
        self,
        intent: Intent,
        since: float | None,
        *,
        thorough: bool,
        at_once: bool,
        healing: bool = False,
    ) -> Look | dict[Family, str]:
        """Bring the kernel to what is meant.

        Args:
            intent: what is meant.
            since: when it was learnt that it is to be so; None where it is healed only.
            thorough: take nothing for granted of what the kernel held before.
            at_once: write also where somebody undoes it.
            healing: nothing else is asked for than when a pass went well.

        Returns:
            What the kernel holds now, or why it was not even looked at.
        """
        started, self._since = time.monotonic(), since
        result: Look | dict[Family, str]
        try:
            outcomes, result = self._bring(
                intent, started, thorough=thorough, at_once=at_once, healing=healing
            )
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
        self, intent: Intent, started: float, *, thorough: bool, at_once: bool, healing: bool
    ) -> tuple[Outcomes, Look]:
        before = self._choice.in_use
        plane, left_behind = self._choice.current(large=intent.is_large, look=thorough)
        if before is not None and plane is not before:
            places = {"from": before.name, "to": plane.name}
            event(logging.INFO, "data plane changes", **places, why=self._choice.reason)
        self._follow(plane.needs | follows(intent.config))
        self._moves.announce(left_behind)
        alone = {} if at_once else self._rivals.left_alone(plane, intent, started)
        # A backend that we come to for the first time has nothing to remember.
        outcomes = reconcile(plane, intent, thorough=thorough, rivals=alone)
        if healing and plane is self._last:
            outcomes = {f: _healing(plane, f, outcome) for f, outcome in outcomes.items()}
        written = {family: o for family, o in outcomes.items() if family not in alone}
        self._rivals.watch(plane, intent, written, time.monotonic())
        failed = {f: str(outcome.error) for f, outcome in outcomes.items() if outcome.error}
        left = self._choice.unseen
        self._last = plane if not failed else self._last
        if not failed:
            # The backend in use decides now; only then may the one before it go.
            left += self._moves.complete(left_behind, self._left)
        self.report(outcomes, plane.name, "applied")
        said, self._replies = self._replies, replies(intent.config)
        tell(said, self._replies)
        advised = (
            (f, plane.dialect.advice(intent.desired(plane, f))) for f in outcomes if f not in failed
        )
        sizes = [f"{family.value}: {line}" for family, line in advised if line]
        return outcomes, Look(
            plane.name,
            self._choice.reason,
            self._egress(),
            intent.config.families,
            errors=failed,
            changed=any(outcome.change for outcome in outcomes.values()),
            healed=tuple(outcome.healed for outcome in outcomes.values() if outcome.healed),
            left_behind=left,
            unanswered=self._replies.unanswered,
            advice=(
                *sizes,
                *(*self._moves.advice, *self._rivals.advice, *self._replies.doubtful),
            ),
            contested=self._rivals.name,
        )

    def shadows(self, intent: Intent, look: Look) -> Shadows | None:
        """Return what others make of rules that are in the kernel; None where nobody looks."""
        plane = self._choice.in_use
        if self._shadows is None or plane is None or look.errors:
            return None
        self._shadows.look(plane, intent, look.devices)
        self._asked = intent, look
        return self._shadows

    def shadows_again(self) -> Shadows | None:
        """Return the same after a commit to nf_tables; None where it cost too much just now."""
        if self._asked is None:
            return None
        with self._sparing.turn() as has_time:
            return self.shadows(*self._asked) if has_time else None

    def report(self, outcomes: Outcomes, plane: str, verb: str) -> None:
        """Log what became of each family."""
        for family, outcome in outcomes.items():
            if outcome.error is not None:
                failure("pass failed", outcome.error, backend=plane, family=family.value)
            elif outcome.change:
                healed = outcome.healed
                event(
                    logging.WARNING if healed else logging.INFO,
                    "rules healed" if healed else f"rules {verb}",
                    backend=plane,
                    family=family.value,
                    added=outcome.change.counts[0],
                    removed=outcome.change.counts[1],
                    ms=None if self._since is None else _ms(time.monotonic() - self._since),
                    missing=_shown(healed.missing) if healed else None,
                    unexpected=_shown(healed.unexpected) if healed else None,
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


def _healing(plane: AnyPlane, family: Family, outcome: Outcome) -> Outcome:
    """Return it with what a change has undone; of very many lines none is written down."""
    change = outcome.change
    if not change:
        return outcome
    few = sum(change.counts) <= _WRITTEN
    lines = (tuple(each) for each in (replaced(change) if few else ((), ())))
    return replace(outcome, healed=Healed(rfc3339(time.time()), plane.name, family, *lines))


def _shown(lines: Sequence[str]) -> str | None:
    return "; ".join(lines[:_SHOWN]) or None


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)
