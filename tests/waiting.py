"""Waiting for what comes in its own time: for the condition, never for a span."""

from __future__ import annotations

import time
from collections.abc import Callable

DEADLINE = 60.0


def wait_until(condition: Callable[[], object], what: str, seconds: float = DEADLINE) -> None:
    """Look until something is so; that it is not in ``seconds`` is a failure."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.01)
