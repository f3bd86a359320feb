"""Work that may take a small part of a CPU's time for ever: the dearer it is, the rarer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

_SHARE = 500


class Sparing:
    """Lets something be done at once, and then after so many times as long as it took of a CPU.

    What takes 2 ms is so done once a second where somebody asks as often.
    """

    def __init__(self, share: int = _SHARE) -> None:
        self._share = share
        self._rested = 0.0

    @contextmanager
    def turn(self) -> Iterator[bool]:
        """Tell whether it is time; what the body then takes is counted."""
        if time.monotonic() < self._rested:
            yield False
            return
        began = time.thread_time()
        try:
            yield True
        finally:
            self._rested = time.monotonic() + self._share * (time.thread_time() - began)
