"""Flows that have ended are swept from a data plane that keeps tables of its own."""

from __future__ import annotations

from ipmasq_agent.agent.side_thread import SideThread
from ipmasq_agent.planes.plane import AnyPlane, Translator

_NOTHING_TO_SWEEP = 60.0


class Sweeper(SideThread):
    """Sweeps the data plane in use, if it is one of those."""

    name = "sweep"

    def _concerns(self, plane: AnyPlane) -> bool:
        return isinstance(plane, Translator)

    def _work(self) -> None:
        pause = 0.0
        while not self._stopping.wait(pause):
            plane = self._choice.in_use
            pause = plane.sweep() if isinstance(plane, Translator) else _NOTHING_TO_SWEEP
