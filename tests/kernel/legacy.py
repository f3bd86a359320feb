"""A legacy backend as tests see into it: its workers, and the lock that it holds."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ipmasq_agent.agent.reconcile import reconcile_family
from ipmasq_agent.planes.iptables.legacy import IptablesLegacyPlane
from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.planes.plane import Change
from ipmasq_agent.planes.rules.table import Table
from ipmasq_agent.policy.addresses import Family
from tests.contract.policies import policy

WORKER = b"ipmasq_agent.planes.iptables.legacy_worker"


@contextmanager
def legacy_backend() -> Iterator[IptablesLegacyPlane]:
    """Make a backend, and end its workers whatever happens."""
    backend = IptablesLegacyPlane(Placement())
    try:
        yield backend
    finally:
        backend.close()


def write(
    backend: IptablesLegacyPlane, *numbers: int, family: Family = Family.IPV4
) -> Change[Table]:
    """Make one pass for the policy that leaves these prefixes alone."""
    change: Change[Table] = reconcile_family(backend, family, policy(family, numbers))
    return change


def workers_of(agent: int) -> list[int]:
    """Return the pids of an agent's legacy workers, oldest first."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            # The name in parentheses may hold spaces; the parent is the second field after it.
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended while we looked
        if WORKER in words and parent == agent:
            found.append(int(entry.name))
    return sorted(found)


def only_worker() -> int:
    """Return the pid of this process's one worker."""
    (pid,) = workers_of(os.getpid())
    return pid


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def is_locked(path: str) -> bool:
    """Whether somebody holds an exclusive flock on a file."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
