"""Translations are recorded beside the agent's loop; what fails there harms nothing else."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import closing

from ipmasq_agent.agent.choice import PlaneChoice
from ipmasq_agent.agent.record import RecordFile, lines, listening_line, missed_line
from ipmasq_agent.agent.side_thread import SideThread
from ipmasq_agent.errors import AgentError
from ipmasq_agent.logs import event
from ipmasq_agent.planes.live import beginnings
from ipmasq_agent.planes.plane import AnyPlane, Beginnings, Translator
from ipmasq_agent.policy.flows import Flow

_TURN = 0.5
"""Seconds after which the thread looks whether it is to end, or to listen elsewhere."""


class Recorder(SideThread):
    """Records translations of the data plane that decides: of the last pass that went well."""

    def __init__(self, choice: PlaneChoice, file: RecordFile) -> None:
        super().__init__(
            choice, "record", self._work, failed=lambda error: self._failed(str(error))
        )
        self._file = file
        self._plane: AnyPlane | None = None
        self._began: float | None = None  # to listen; like the next one no line says so yet
        self._lost = 0
        self._failure: str | None = None

    def provide(self) -> None:
        """Have what the data plane in use does recorded from now on, as it decides by now."""
        self._plane = self._choice.in_use
        super().provide()

    @property
    def trouble(self) -> tuple[str, ...]:
        """For the status: why translations are not recorded at the moment."""
        return (f"translations are not recorded: {self._failure}",) if self._failure else ()

    def _failed(self, why: str) -> None:
        if why != self._failure:
            event(logging.ERROR, "translations are not recorded", error=why)
        self._failure = why

    def _work(self, stopping: threading.Event) -> None:
        while not stopping.is_set() and (plane := self._plane) is not None:
            with closing(beginnings(plane)) as news:
                self._began = time.time()
                try:
                    self._listen(news, plane)
                except AgentError as error:
                    # Its maps may have gone at the end of the pass that leaves it.
                    event(logging.INFO, "listening anew", why=str(error))
                    self._stopping.wait(_TURN)
        self._file.close()

    def _listen(self, news: Beginnings, plane: AnyPlane) -> None:
        """Record until told to stop, or until somebody else tells of connections."""
        missed = 0

        def take(seconds: float) -> bool:
            nonlocal missed
            begun = news.read(seconds)
            before, missed = missed, news.missed
            self._lost += missed - before
            self._record(begun)
            return bool(begun)

        try:
            self._record([])
            while not self._stopping.is_set() and _teller(self._plane) is _teller(plane):
                take(_TURN)
        finally:
            news.stop()
            while take(0.0):
                continue

    def _record(self, begun: list[tuple[float, Flow]]) -> None:
        text = lines(begun)
        count = text.count("\n")
        if self._lost:
            text = missed_line(time.time(), self._lost) + text
        if self._began is not None:
            text = listening_line(self._began) + text
        if text:
            self._write(text, count)

    def _write(self, text: str, count: int) -> None:
        try:
            self._file.write(text)
        except OSError as cause:
            self._lost += count
            self._failed(f"{cause.strerror or cause}")
            self._stopping.wait(_TURN)  # what comes meanwhile may be missed, and is counted
        else:
            self._lost, self._began = 0, None
            if self._failure is not None:
                event(logging.INFO, "translations are recorded again")
                self._failure = None


def _teller(plane: AnyPlane | None) -> AnyPlane | None:
    """Return who tells of the connections of a data plane: it; None for connection tracking."""
    return plane if isinstance(plane, Translator) else None
