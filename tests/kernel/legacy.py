"""A legacy backend as tests see into it, and the lock that it holds."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ipmasq_agent.agent.reconcile import reconcile_family
from ipmasq_agent.planes.iptables.legacy import IptablesLegacyPlane
from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.planes.plane import Change
from ipmasq_agent.planes.rules.table import Table
from ipmasq_agent.policy.addresses import Family
from tests.contract.policies import policy


@contextmanager
def legacy_backend() -> Iterator[IptablesLegacyPlane]:
    """Make a backend, and close it whatever happens."""
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


def impostor(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    """Have a shell script run in the place of the program that writes the IPv4 table."""
    program = folder / "iptables-legacy-restore"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


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
