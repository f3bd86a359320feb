"""Flows that have ended are swept from a data plane that keeps tables of its own.

Beside the agent's loop: no pass waits for it. What fails is told, counted as a failure of the
thread, and tried again.
"""

from __future__ import annotations

import threading

from ipmasq_agent.agent.choice import PlaneChoice
from ipmasq_agent.host.threads import Guarded
from ipmasq_agent.planes.plane import Translator

_NOTHING_TO_SWEEP = 60.0


class Sweeper:
    """A thread that begins with the first data plane that needs it."""

    def __init__(self, choice: PlaneChoice) -> None:
        self._choice = choice
        self._stopping = threading.Event()
        self._thread: Guarded | None = None

    def provide(self) -> None:
        """Have the data plane in use swept from now on, if it is to be."""
        if self._thread is None and isinstance(self._choice.in_use, Translator):
            self._thread = Guarded(self._sweep, "sweep")
            self._thread.start()

    def stop(self, timeout: float) -> None:
        """Sweep no more; wait so many seconds for a sweep that goes on."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.stop(timeout)

    # In the thread

    def _sweep(self) -> None:
        pause = 0.0
        while not self._stopping.wait(pause):
            plane = self._choice.in_use
            pause = plane.sweep() if isinstance(plane, Translator) else _NOTHING_TO_SWEEP
