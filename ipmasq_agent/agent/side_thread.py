"""Work that goes on beside the agent's loop, once there is a data plane; no pass waits for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing

from ipmasq_agent.agent.choice import PlaneChoice
from ipmasq_agent.errors import AgentError
from ipmasq_agent.host.threads import Guarded
from ipmasq_agent.netlink.nft_events import Commits
from ipmasq_agent.planes.plane import AnyPlane, Translator

_NOTHING_TO_SWEEP = 60.0
_TURN = 5.0
"""Seconds after which who waits for commits looks whether it is to end."""
_BREATH = 0.01
"""Seconds between two words: who restores a table by many commits makes many in a row."""


class SideThread:
    """A thread that begins with the first data plane that calls for it.

    What fails there is told, counted as a failure of the thread, and tried again.

    Args:
        choice: of the data plane.
        name: of the thread, for people.
        work: done until the event is set.
        concerns: whether a data plane calls for it.
        failed: takes notice of a failure.
    """

    def __init__(
        self,
        choice: PlaneChoice,
        name: str,
        work: Callable[[threading.Event], None],
        concerns: Callable[[AnyPlane], bool] = lambda plane: True,
        failed: Callable[[AgentError], None] = lambda error: None,
    ) -> None:
        self._choice = choice
        self._concerns = concerns
        self._stopping = threading.Event()
        self._thread = Guarded(lambda: work(self._stopping), name, failed)
        self._begun = False

    def provide(self) -> None:
        """Have the work done from now on, if the data plane in use calls for it."""
        plane = self._choice.in_use
        if not self._begun and plane is not None and self._concerns(plane):
            self._begun = True
            self._thread.start()

    def stop(self, timeout: float) -> None:
        """Work no more; wait so many seconds for what goes on."""
        self._stopping.set()
        self._thread.stop(timeout)


def sweeper(choice: PlaneChoice) -> SideThread:
    """Return who sweeps flows that have ended from a data plane that keeps tables of its own."""

    def work(stopping: threading.Event) -> None:
        pause = 0.0
        while not stopping.wait(pause):
            plane = choice.in_use
            pause = plane.sweep() if isinstance(plane, Translator) else _NOTHING_TO_SWEEP

    return SideThread(choice, "sweep", work, lambda plane: isinstance(plane, Translator))


def commit_watch(choice: PlaneChoice, tell: Callable[[], None]) -> SideThread:
    """Return who calls ``tell``, from its thread, at each commit to nf_tables, ours included.

    What others took from us is put back at once: whether a commit matters, a look tells.
    """

    def work(stopping: threading.Event) -> None:
        with closing(Commits()) as commits:
            # What came before we listened is nobody's news.
            tell()
            while not stopping.wait(_BREATH):
                if commits.wait(_TURN):
                    tell()

    return SideThread(choice, "commits", work, lambda plane: plane.in_nf_tables)
