"""The lock that keeps writers of legacy tables apart.

A legacy table is replaced as a whole, so between a read and the write that builds on it
any other writer's change would be lost. iptables-legacy and kube-proxy hold an exclusive
flock on one file for that time; so do we.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ipmasq_agent.errors import HostError, LockTimeout
from ipmasq_agent.host.patience import Patience

DEFAULT_PATH = "/run/xtables.lock"
TIMEOUT = 30.0
_FIRST_WAIT, _LONGEST_WAIT = 0.001, 0.05


@contextmanager
def xtables_lock(timeout: float = TIMEOUT) -> Iterator[int]:
    """Hold the lock, after waiting up to ``timeout`` seconds for it.

    The file is ``$XTABLES_LOCKFILE`` where that is set, and is made where it is missing. A
    flock belongs to the open file and not to a process: a child that inherits the descriptor
    keeps the lock until it ends too.

    Raises:
        LockTimeout: somebody else holds it; says who, where the kernel tells.
        Stopped: the agent is told to stop.
        HostError: the file cannot be opened, or the kernel has no lock to give.
    """
    path = os.environ.get("XTABLES_LOCKFILE") or DEFAULT_PATH
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as cause:
        raise HostError(
            f"cannot open the xtables lock {path}: {cause.strerror}",
            remedy="mount it into the container, as deploy/ does",
        ) from cause
    try:
        patience = Patience(timeout)
        wait = _FIRST_WAIT
        while not _taken(file, path):
            left = patience.left()
            if not left:
                raise LockTimeout(
                    f"{path} is held by {_holder(file)} for more than {timeout:g} s",
                    remedy="wait for that program, or end it",
                )
            time.sleep(min(wait, left))
            wait = min(wait * 2, _LONGEST_WAIT)
        yield file
    finally:
        os.close(file)


def _taken(file: int, path: str) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as cause:
        raise HostError(
            f"cannot lock {path}: {cause.strerror}",
            remedy="put it on a file system that has locks, as /run is",
        ) from cause
    return True


def _holder(file: int) -> str:
    """Return who holds the lock, from /proc/locks (proc_locks(5))."""
    holder = "a process that cannot be seen from here"
    with contextlib.suppress(OSError):
        status = os.fstat(file)
        place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()
            if "FLOCK" in words and place in words and "->" not in words:
                pid = words[words.index(place) - 1]
                holder = f"process {pid}"
                holder = f"{Path(f'/proc/{pid}/comm').read_text().strip()} (process {pid})"
                break
    return holder
