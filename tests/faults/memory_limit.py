"""A limit of memory, as a container has it: a control group of its own (version 1)."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from tests.waiting import wait_until

_ROOT = Path("/sys/fs/cgroup/memory")
AVAILABLE = os.access(_ROOT / "memory.limit_in_bytes", os.W_OK)
_numbers = itertools.count()


class MemoryLimit:
    """A group without a limit, until it gets one.

    Attributes:
        under: what starts a program in it.
    """

    def __init__(self) -> None:
        self._place = _ROOT / f"ipmq-test-{os.getpid()}-{next(_numbers)}"
        self._place.mkdir()
        join = f'echo $$ > {self._place}/cgroup.procs && exec "$@"'
        self.under = ("sh", "-c", join, "sh")

    def leave(self, room: int) -> None:
        """Let it be so many bytes more than are in use now."""
        used = int((self._place / "memory.usage_in_bytes").read_text())
        (self._place / "memory.limit_in_bytes").write_text(str(used + room))

    def lift(self) -> None:
        """Let there be none."""
        (self._place / "memory.limit_in_bytes").write_text("-1")

    def kills(self) -> int:
        """Return how many processes were killed for it."""
        words = (self._place / "memory.oom_control").read_text().split()
        return int(words[words.index("oom_kill") + 1])

    def close(self) -> None:
        """Remove it, once nobody is in it any more."""

        def gone() -> bool:
            with contextlib.suppress(OSError):
                self._place.rmdir()
            return not self._place.exists()

        wait_until(gone, "the group is empty")


@contextlib.contextmanager
def memory_limit() -> Iterator[MemoryLimit]:
    """Yield a group, which has to be empty in the end."""
    made = MemoryLimit()
    try:
        yield made
    finally:
        made.close()
