"""Leaving a data plane that translates by itself: its flows go on beside the new one's."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable
from math import ceil

from ipmasq_agent.agent.reconcile import Outcomes, clean
from ipmasq_agent.errors import AgentError, NotPermitted
from ipmasq_agent.logs import event
from ipmasq_agent.planes.plane import AnyPlane, Translator
from ipmasq_agent.policy.addresses import Family


class Moves:
    """Remembers which backends are being left, and since when.

    Args:
        patience: seconds until flows that still go on there are given up.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._began: dict[str, float] = {}
        self.advice: tuple[str, ...] = ()
        """For the status: which flows are waited for."""

    def announce(self, left_behind: Collection[AnyPlane]) -> None:
        """Once a move, before it: have flows there go on beside what is coming."""
        names = {other.name for other in left_behind}
        # One that we came back to is left anew the next time.
        self._began = {name: began for name, began in self._began.items() if name in names}
        self.advice = ()
        for other in left_behind:
            if other.name in self._began or not isinstance(other, Translator):
                continue
            try:
                other.announce()
            except AgentError as error:
                event(logging.WARNING, "flows may break", backend=other.name, error=str(error))

    def complete(
        self, left_behind: Iterable[AnyPlane], cleaned: Callable[[AnyPlane, Outcomes], None]
    ) -> tuple[str, ...]:
        """Once what replaces them is in force: clean those backends whose flows have ended.

        Of each ``cleaned`` is told what became of it.

        Returns:
            What is left there and may still decide, a line for each failure.
        """
        failures: list[str] = []
        for other in left_behind:
            try:
                if not self._drained(other):
                    continue
            except AgentError as error:
                event(logging.ERROR, "cannot drain", backend=other.name, error=str(error))
                failures.append(f"{other.name} cannot be left: {error}")
                continue
            outcomes = clean(other, Family)
            errors = {str(one.error) for one in outcomes.values() if one.error}
            failures += (f"{other.name} cannot be left: {error}" for error in sorted(errors))
            if not errors:
                self._began.pop(other.name, None)
            cleaned(other, outcomes)
        return tuple(failures)

    def _drained(self, other: AnyPlane) -> bool:
        """Whether a plane that was left has no flows that would break without it."""
        began = self._began.setdefault(other.name, time.monotonic())
        try:
            left = other.drain() if isinstance(other, Translator) else 0
        except NotPermitted as error:
            # To stay is to decide by an older policy.
            event(logging.WARNING, "flows end", backend=other.name, error=str(error))
            return True
        if not left:
            return True
        patience = self._patience - (time.monotonic() - began)
        if patience <= 0:
            event(logging.WARNING, "flows end", backend=other.name, flows=left, why="drain-timeout")
            return True
        event(logging.INFO, "draining", backend=other.name, flows=left, seconds=ceil(patience))
        self.advice += (f"{other.name}: {left} flows go on there until they end",)
        return False
