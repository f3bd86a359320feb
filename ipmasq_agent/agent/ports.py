"""Looks now and then at the source ports in use, to warn before new connections fail.

A look reads all that connection tracking knows, so the
longer it takes the later the next one comes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from ipmasq_agent.agent.choice import PlaneChoice
from ipmasq_agent.agent.side_thread import SideThread
from ipmasq_agent.answers.ports import PortLook, looked
from ipmasq_agent.logs import event
from ipmasq_agent.planes.plane import AnyPlane
from ipmasq_agent.policy.ports import PortUse
from ipmasq_agent.policy.tally import Tally

_SOONEST = 30.0  # seconds between looks
_SHARE = 200  # of the time of one CPU, one part for looking


class PortWatch(SideThread):
    """Looks at the ports in use.

    Args:
        count: counts the ports in use, as ``ports_taken`` does.

    Attributes:
        look: the latest; empty before the first.
    """

    def __init__(self, choice: PlaneChoice, count: Callable[[AnyPlane], Tally[PortUse]]) -> None:
        super().__init__(choice, "ports", self._work)
        self.look = PortLook()
        self._count = count
        self._told: set[tuple[str, ...]] = set()

    def _work(self, stopping: threading.Event) -> None:
        pause = 0.0
        while not stopping.wait(pause):
            began = time.thread_time()
            plane = self._choice.in_use
            if plane is not None:
                self.look = looked(self._count(plane))
                self._tell()
            pause = max(_SOONEST, (time.thread_time() - began) * _SHARE)

    def _tell(self) -> None:
        """Log what has come to be nearly used up."""
        nearly = [row for row in self.look.rows if row.warning]
        for row in nearly:
            if row.labels not in self._told:
                event(logging.WARNING, "source ports run out", **row.as_data())
        self._told = {row.labels for row in nearly}
