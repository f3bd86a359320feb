"""Work that goes on beside the agent's loop, once there is a data plane; no pass waits for it."""

from __future__ import annotations

import abc
import threading

from ipmasq_agent.agent.choice import PlaneChoice
from ipmasq_agent.host.threads import Guarded
from ipmasq_agent.planes.plane import AnyPlane


class SideThread(abc.ABC):
    """A thread that begins with the first data plane that calls for it.

    What fails there is told, counted as a failure of the thread, and tried again.

    Attributes:
        name: of the thread, for people.
    """

    name: str

    def __init__(self, choice: PlaneChoice) -> None:
        self._choice = choice
        self._stopping = threading.Event()
        self._thread: Guarded | None = None

    def provide(self) -> None:
        """Have the work done from now on, if the data plane in use calls for it."""
        plane = self._choice.in_use
        if self._thread is None and plane is not None and self._concerns(plane):
            self._thread = Guarded(self._work, self.name, lambda error: self._failed(str(error)))
            self._thread.start()

    def stop(self, timeout: float) -> None:
        """Work no more; wait so many seconds for what goes on."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.stop(timeout)

    def _concerns(self, plane: AnyPlane) -> bool:
        """Whether a data plane calls for it."""
        return True

    # In the thread

    @abc.abstractmethod
    def _work(self) -> None:
        """Work until ``_stopping`` is set."""

    def _failed(self, why: str) -> None:  # noqa: B027  most leave it at what is told anyhow
        """Take notice of a failure."""
