"""Every system call of a pass fails once; the agent tells it, goes on, and the next is right."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.faults.injector import PLANES, Daemon, Fault, every_fault, some_faults, with_egress
from tests.netns import Namespace
from tests.waiting import wait_until

pytestmark = pytest.mark.kernel
# Of calls that are made a hundred times in a pass, the first ones.
MOST = 12
# Descriptors that may come and go, of threads at work when they are counted.
_PASSING = 3


def outlives(daemon: Daemon, faults: Iterable[Fault]) -> str:
    """Inject them one after the other; return how many calls failed."""
    before, injected, tried = daemon.descriptors(), 0, 0
    for fault in faults:
        told = daemon.inject(fault)
        tried, injected = tried + 1, injected + told.injected
        assert daemon.alive(), f"{fault} ended it: {told.log}"
        assert "Traceback" not in told.log, f"{fault}: {told.log}"
        assert told.known, f"{fault} is not told: {told.log}"
        try:
            daemon.recover()
        except AssertionError as lasting:
            raise AssertionError(f"{fault} lasts: {lasting}") from lasting
    # A pass that goes on has pipes to a program: what leaked stays.
    wait_until(lambda: daemon.descriptors() <= before + _PASSING, "no descriptor leaked")
    assert daemon.end() == 0
    return f"{tried} faults, {injected} calls failed"


@pytest.mark.parametrize("plane", PLANES)
def test_a_pass_outlives_a_failure_of_each_kind_of_call(
    in_ns: Namespace, plane: str, tmp_path: Path
) -> None:
    with_egress()
    # Programs are loaded only where they are missing, which takes seconds in a trace.
    daemon = Daemon(plane, tmp_path, wipe=plane != "bpf")
    try:
        outlives(daemon, some_faults(daemon.calls()))
    finally:
        daemon.kill()


@pytest.mark.long
@pytest.mark.parametrize("plane", PLANES)
def test_a_pass_outlives_every_failure_of_every_call(
    in_ns: Namespace, plane: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_egress()
    daemon = Daemon(plane, tmp_path)
    try:
        counted = outlives(daemon, every_fault(daemon.calls(), MOST))
    finally:
        daemon.kill()
    with capsys.disabled():
        print(f"\n{plane}: {counted}, 0 tracebacks, 0 ends")
