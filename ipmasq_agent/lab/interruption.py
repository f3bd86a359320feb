"""Signals to stop, for who must clean up before they leave."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interruption(contextlib.AbstractContextManager["Interruption"]):
    """While the block runs, the first signal to stop is a Ctrl-C, and those after it are ignored.

    So nothing cuts short what is done about the first. A signal that was ignored from the
    start, as nohup(1) has it, stays so.
    """

    def __init__(self) -> None:
        self._came = self._waits = False

    def __enter__(self) -> Interruption:
        heard = [number for number in _NUMBERS if signal.getsignal(number) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._stop) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def ignore(self) -> None:
        """Ignore all from now on."""
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Have an interruption wait for the end of a block.

        Blocking the signals would not do: a thread that does not would take them.
        """
        self._waits = True
        try:
            yield
        finally:
            self._waits = False
        if self._came:
            raise KeyboardInterrupt

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.ignore()
        self._came = True
        if not self._waits:
            raise KeyboardInterrupt
