"""Looks now and then at the source ports in use, to warn before new connections fail.

Beside the agent's loop, as the sweeper. A look reads all that connection tracking knows, so the
longer it takes the later the next one comes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from ipmasq_agent.agent.choice import PlaneChoice
from ipmasq_agent.answers.ports import PortLook, looked
from ipmasq_agent.host.threads import Guarded
from ipmasq_agent.logs import event
from ipmasq_agent.planes.plane import AnyPlane
from ipmasq_agent.policy.ports import PortUse
from ipmasq_agent.policy.tally import Tally

_SOONEST = 30.0  # seconds between looks
_SHARE = 200  # of the time of one CPU, one part for looking


class PortWatch:
    """A thread that begins with the first data plane.

    Args:
        choice: of the data plane.
        count: counts the ports in use, as ``ports_taken`` does.

    Attributes:
        look: the latest; empty before the first.
    """

    def __init__(self, choice: PlaneChoice, count: Callable[[AnyPlane], Tally[PortUse]]) -> None:
        self.look = PortLook()
        self._choice = choice
        self._count = count
        self._stopping = threading.Event()
        self._thread: Guarded | None = None
        self._told: set[tuple[str, ...]] = set()

    def provide(self) -> None:
        """Have ports looked at from now on."""
        if self._thread is None and self._choice.in_use is not None:
            self._thread = Guarded(self._watch, "ports")
            self._thread.start()

    def stop(self, timeout: float) -> None:
        """Look no more; wait so many seconds for a look that goes on."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.stop(timeout)

    # In the thread

    def _watch(self) -> None:
        pause = 0.0
        while not self._stopping.wait(pause):
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
