"""How long to wait before the next attempt."""

from __future__ import annotations

import random


class Backoff:
    """Exponential backoff with full jitter: uniform between 0 and a bound that doubles.

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
