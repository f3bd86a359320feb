"""Leaving a data plane that translates by itself: its flows go on beside the new one's."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection

from ipmasq_agent.agent.choice import AnyBackend
from ipmasq_agent.agent.logs import event
from ipmasq_agent.errors import AgentError


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

    def announce(self, left_behind: Collection[AnyBackend]) -> None:
        """Once a move, before it: have flows there go on beside what is coming."""
        names = {other.name for other in left_behind}
        # One that we came back to is left anew the next time.
        self._began = {name: began for name, began in self._began.items() if name in names}
        self.advice = ()
        for other in left_behind:
            if other.name in self._began:
                continue
            try:
                other.announce()
            except AgentError as error:
                event(logging.WARNING, "flows may break", backend=other.name, error=str(error))

    def drained(self, other: AnyBackend) -> bool:
        """Whether a backend that was left has no flows that would break without it."""
        began = self._began.setdefault(other.name, time.monotonic())
        try:
            left = other.drain()
        except AgentError as error:
            event(logging.ERROR, "cannot drain", backend=other.name, error=str(error))
            return False
        if not left:
            return True
        patience = self._patience - (time.monotonic() - began)
        event(logging.INFO, "draining", backend=other.name, flows=left, seconds=int(patience))
        if patience <= 0:
            return True
        self.advice += (f"{other.name}: {left} flows go on there until they end",)
        return False

    def ended(self, other: AnyBackend) -> None:
        """Take note that a backend holds nothing of ours any more."""
        self._began.pop(other.name, None)
