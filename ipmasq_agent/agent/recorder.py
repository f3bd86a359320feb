"""Translations are recorded beside the agent's loop; what fails there harms nothing else."""

from __future__ import annotations

import logging
import time
from contextlib import closing

from ipmasq_agent.agent.choice import PlaneChoice
from ipmasq_agent.agent.record import RecordFile, lines, missed_line
from ipmasq_agent.agent.side_thread import SideThread
from ipmasq_agent.logs import event
from ipmasq_agent.planes.live import beginnings
from ipmasq_agent.planes.plane import Beginnings, Translator

_TURN = 0.5
"""Seconds after which the thread looks whether it is to end, or to listen elsewhere."""


class Recorder(SideThread):
    """Records translations of the data plane in use.

    Args:
        choice: knows it.
        file: where translations are written.
    """

    name = "record"

    def __init__(self, choice: PlaneChoice, file: RecordFile) -> None:
        super().__init__(choice)
        self._file = file
        self._lost = 0  # no line of the record says so yet
        self._failure: str | None = None

    @property
    def trouble(self) -> tuple[str, ...]:
        """For the status: why translations are not recorded at the moment."""
        return (f"translations are not recorded: {self._failure}",) if self._failure else ()

    def _failed(self, why: str) -> None:
        if why != self._failure:
            event(logging.ERROR, "translations are not recorded", error=why)
        self._failure = why

    def _work(self) -> None:
        while not self._stopping.is_set() and (plane := self._choice.in_use) is not None:
            with closing(beginnings(plane)) as news:
                self._listen(news, own=isinstance(plane, Translator))
        self._file.close()

    def _listen(self, news: Beginnings, *, own: bool) -> None:
        """Record until told to stop, or until another kind of plane makes the connections."""
        missed = 0
        while isinstance(self._choice.in_use, Translator) is own:
            begun = news.read(_TURN)
            before, missed = missed, news.missed
            self._lost += missed - before
            text = lines(begun)
            if self._lost:
                text = missed_line(time.time(), self._lost) + text
            if text:
                self._write(text, text.count("\n") - bool(self._lost))
            if self._stopping.is_set():
                return

    def _write(self, text: str, count: int) -> None:
        try:
            self._file.write(text)
        except OSError as cause:
            self._lost += count
            self._failed(f"{cause.strerror or cause}")
            self._stopping.wait(_TURN)  # what comes meanwhile may be missed, and is counted
        else:
            self._lost = 0
            if self._failure is not None:
                event(logging.INFO, "translations are recorded again")
                self._failure = None
