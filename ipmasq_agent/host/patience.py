"""How long to wait: up to some seconds, and not past the end of the process.

Whoever is told to stop while it waits for a program, a lock or a worker has to be out of
there soon, and what it does on its way out has to end in time too. So all waiting here is
done in slices, and each asks whether it may go on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ipmasq_agent.errors import Stopped

_SLICE = 0.1
_end = math.inf


def end_by(moment: float) -> None:
    """Let no wait go on past ``moment``, of ``time.monotonic()``. Safe in a signal handler."""
    global _end
    _end = moment


@contextmanager
def ending_by(moment: float) -> Iterator[None]:
    """Let no wait in the block go on past ``moment``; after it, none has an end any more."""
    end_by(moment)
    try:
        yield
    finally:
        end_by(math.inf)


class Patience:
    """Patience for one thing, which begins to run out when it is made."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._deadline = time.monotonic() + seconds

    def left(self) -> float:
        """Return for how many seconds to wait before asking again; 0 when it ran out.

        Raises:
            Stopped: the process has no time left.
        """
        now = time.monotonic()
        if now >= _end:
            raise Stopped("given up, as the agent was told to stop")
        return max(0.0, min(_SLICE, self._deadline - now, _end - now))
