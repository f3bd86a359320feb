"""What is being done and for how long still, on standard error."""

from __future__ import annotations

import sys
import time


class Progress:
    """Shows each step when it begins; a context manager."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._on_terminal = sys.stderr.isatty()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._on_terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def show(self, what: str, done: float) -> None:
        """Tell what comes next; in place on a terminal, else a line each."""
        # The first steps say little about those to come.
        left = (time.monotonic() - self._began) / done * (1 - done) if done > 0.02 else None
        text = what if left is None else f"{what} ({_duration(left)} left)"
        before, after = ("\r\x1b[K", "") if self._on_terminal else ("", "\n")
        print(before, text, sep="", end=after, file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
