"""When to tell of changes that come in storms: soon, but not one by one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ipmasq_agent.errors import AgentError
from ipmasq_agent.host.threads import Guarded


class Pace:
    """Gathers changes until ``quiet`` seconds passed without one, at most ``late`` seconds.

    An urgent change is due at once where nothing was told lately; while urgent ones go on,
    the gaps between two tellings double from ``quiet`` up to ``late``. Holds no clock and
    no thread: whoever owns it says what time it is, in ``time.monotonic()``'s seconds.
    """

    def __init__(self, quiet: float, late: float) -> None:
        self._quiet = quiet
        self._late = late
        self._gap = 0.0
        self._told: float | None = None
        self._first: float | None = None
        self._last = 0.0
        self._rest = 0.0
        self._urgent = False

    def noted(self, now: float, *, urgent: bool = False) -> None:
        """Take note of a change."""
        if self._first is None:
            self._first = now
        self._last = now
        self._urgent = self._urgent or urgent

    @property
    def due(self) -> float | None:
        """When to tell of what was noted; None while there is nothing to tell."""
        if self._first is None:
            return None
        settled = min(self._last + self._quiet, self._first + self._late)
        if self._urgent:
            spared = self._first if self._told is None else self._told + self._gap
            settled = min(settled, max(self._first, spared))
        return max(settled, self._rest)

    def told(self, now: float, *, took: float = 0.0) -> None:
        """Start anew: all that was noted has been told.

        Ten times as many seconds as it ``took`` are left to others before the next telling.
        """
        storm = self._told is not None and now - self._told <= 2 * self._gap
        self._gap = min(2 * self._gap, self._late) if storm else self._quiet
        self._rest = now + 10 * took
        self._told, self._first, self._urgent = now, None, False


class Paced:
    """Runs ``work`` in a thread of its own whenever something was noted and a pace says so.

    Every note counts as urgent: the first after a silence is worked on at once.

    Args:
        work: what is done; where it raises, it is done again after a pause.
    """

    def __init__(
        self,
        work: Callable[[], None],
        name: str,
        pace: Pace,
        failed: Callable[[AgentError], None],
    ) -> None:
        self._work = work
        self._pace = pace
        self._changed = threading.Condition()
        self._stopping = False
        self._guarded = Guarded(self._run, name, self._failed)
        self._tell_failure = failed

    def start(self) -> None:
        """Start the thread."""
        self._guarded.start()

    def note(self) -> None:
        """Have the work done soon."""
        with self._changed:
            self._pace.noted(time.monotonic(), urgent=True)
            self._changed.notify_all()

    def stop(self) -> None:
        """End the thread once it has done what it is at; not to be called by the work."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._guarded.stop()

    def _failed(self, error: AgentError) -> None:
        self._tell_failure(error)
        self.note()

    def _run(self) -> None:
        while self._wait():
            self._work()

    def _wait(self) -> bool:
        """Wait until there is work to do; false when it is time to stop."""
        with self._changed:
            while not self._stopping:
                due, now = self._pace.due, time.monotonic()
                if due is not None and due <= now:
                    # Before the work, which sees all that was noted until it begins.
                    self._pace.told(now)
                    return True
                self._changed.wait(None if due is None else due - now)
            return False
