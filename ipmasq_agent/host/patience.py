"""How long to wait: up to some seconds, and not past the end of the process.

Whoever is told to stop while it waits for a program or a lock has to be out of there
soon, and what it does on its way out has to end in time too. So all waiting here is
done in slices, and each asks whether it may go on.
"""

from __future__ import annotations

import math
import random
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


class Backoff:
    """How long to wait before the next attempt: between 0 and a bound that doubles each time.

    Full jitter spreads the nodes of a cluster best when all of them lost the same server
    (Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
    """

    def __init__(self, base: float = 0.5, cap: float = 30.0) -> None:
        self._base = base
        self._cap = cap
        self._bound = base

    def next(self) -> float:
        """Return the seconds to wait, and double the bound of the following ones."""
        bound, self._bound = self._bound, min(self._bound * 2, self._cap)
        return random.uniform(0, bound)

    def reset(self) -> None:
        """Start over: an attempt has succeeded."""
        self._bound = self._base
