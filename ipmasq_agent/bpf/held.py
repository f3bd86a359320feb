"""Descriptors of what is pinned: it lives on when somebody removes its pin, and gets it back."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

from ipmasq_agent.bpf.objects import get_pinned, pin
from ipmasq_agent.bpf.syscall import asked_to


class HeldPins:
    """Maps and links by the paths where they were pinned; for any thread.

    Whatever the kernel refuses is a HostError.
    """

    def __init__(self) -> None:
        self._descriptors: dict[Path, int] = {}
        self._lock = threading.Lock()  # a number that was closed may be another one's next
        weakref.finalize(self, _close, self._descriptors)

    def __bool__(self) -> bool:
        return bool(self._descriptors)

    def __iter__(self) -> Iterator[Path]:
        return iter(list(self._descriptors))

    def hold(self, path: Path) -> int | None:
        """Hold what is pinned at a path now, in place of what was; return its descriptor."""
        found = get_pinned(path)
        if found is not None:
            with self._lock:
                self._let_go(path)
                self._descriptors[path] = found
        return found

    def copy(self, path: Path) -> int | None:
        """Return a descriptor of one's own of what is held; None for nothing."""
        with self._lock:
            held = self._descriptors.get(path)
            with asked_to(f"open {path} again"):
                return None if held is None else os.dup(held)

    def pin_again(self, path: Path) -> None:
        """Put back the pin of what is held, where it is missing."""
        with self._lock:
            held = self._descriptors.get(path)
            if held is not None:
                with asked_to(f"look for {path}"):
                    missing = not path.exists()
                if missing:
                    pin(held, path)

    def let_go(self, path: Path) -> None:
        """Hold no longer what was pinned at a path."""
        with self._lock:
            self._let_go(path)

    def _let_go(self, path: Path) -> None:
        held = self._descriptors.pop(path, None)
        if held is not None:
            os.close(held)

    def let_go_of_all(self) -> None:
        """Hold nothing any more."""
        with self._lock:
            _close(self._descriptors)


def _close(descriptors: dict[Path, int]) -> None:
    while descriptors:
        os.close(descriptors.popitem()[1])
