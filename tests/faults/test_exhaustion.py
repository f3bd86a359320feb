"""What runs out for a while costs passes while it does, and nothing after."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.injector import PLANES, Daemon, with_egress
from tests.netns import Namespace

pytestmark = pytest.mark.kernel


@pytest.fixture(params=PLANES)
def daemon(
    request: pytest.FixtureRequest,
    in_ns: Namespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Daemon]:
    monkeypatch.setenv("XTABLES_LOCKFILE", os.fspath(tmp_path / "xtables.lock"))
    with_egress()
    made = Daemon(request.param, tmp_path)
    yield made
    made.kill()


@pytest.mark.parametrize("what", [resource.RLIMIT_NOFILE, resource.RLIMIT_AS])
def test_descriptors_or_memory_run_out_for_a_while(daemon: Daemon, what: int) -> None:
    before = daemon.descriptors()
    limits = resource.prlimit(daemon.pid, what)
    resource.prlimit(
        daemon.pid, what, (3 if what == resource.RLIMIT_NOFILE else 1 << 20, limits[1])
    )
    for _ in range(3):
        daemon.disturb()
    assert daemon.alive(), daemon.log
    if what == resource.RLIMIT_NOFILE:
        assert "Too many open files" in daemon.log
    resource.prlimit(daemon.pid, what, limits)
    daemon.recover()
    assert "Traceback" not in daemon.log
    assert daemon.descriptors() <= before + 3
    assert daemon.end() == 0
