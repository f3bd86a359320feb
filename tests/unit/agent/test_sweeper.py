"""Flows that have ended are swept beside the agent's passes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from ipmasq_agent.agent.events import Signal
from ipmasq_agent.agent.exposition import exposed
from ipmasq_agent.errors import HostError
from ipmasq_agent.host.threads import failures
from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.planes.plane import Beginnings, Translator
from ipmasq_agent.planes.usage import Usage
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.flows import Flow
from ipmasq_agent.policy.ports import PortUse
from ipmasq_agent.policy.tally import Tally
from tests.unit.agent.support import Bench, FailingPlane
from tests.waiting import wait_until

DOCUMENT = "nonMasqueradeCIDRs: [172.20.0.0/16]\n"


class SweptPlane(FailingPlane, Translator):
    """A backend whose sweeps are in the test's hands."""

    def __init__(self) -> None:
        super().__init__(Placement())
        self.begun = 0
        self.may_end = threading.Event()
        self.fails = 0
        self.pause = 0.0

    def sweep(self) -> float:
        self.begun += 1
        assert self.may_end.wait(20)
        if self.fails:
            self.fails -= 1
            raise HostError("the map is away")
        return self.pause

    def announce(self) -> None:
        raise AssertionError("nobody moves here")

    def drain(self) -> int:
        raise AssertionError("nobody moves here")

    def remove_unread(self, family: Family) -> Any:
        raise AssertionError("nobody moves here")

    def beginnings(self) -> Beginnings:
        raise AssertionError("nobody asks")

    def flows(self, port: int | None = None) -> Iterator[Flow]:
        raise AssertionError("nobody asks")

    def ports_taken(self, most: int) -> Tally[PortUse]:
        raise AssertionError("nobody asks")

    def counters(self) -> dict[tuple[Family, str], int]:
        return {(Family.IPV4, "flows_collected"): self.begun}

    def usage(self) -> Usage:
        raise HostError("the map is away")


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    bench.backends["memory"] = bench.backend = SweptPlane()
    yield bench
    bench.agent.send(Signal.STOP)
    plane(bench).may_end.set()
    bench.agent.run()


def plane(bench: Bench) -> SweptPlane:
    assert isinstance(bench.backend, SweptPlane)
    return bench.backend


def test_passes_go_on_while_a_sweep_takes_its_time(bench: Bench) -> None:
    bench.document(DOCUMENT)
    wait_until(lambda: plane(bench).begun == 1, "the first sweep begins")
    bench.flush()
    bench.resync()
    assert "172.20.0.0/16" in bench.chain()
    assert plane(bench).begun == 1


def test_the_next_sweep_comes_when_the_plane_says(bench: Bench) -> None:
    plane(bench).may_end.set()
    bench.document(DOCUMENT)
    wait_until(lambda: plane(bench).begun > 2, "it says: at once")
    plane(bench).pause = 3600


def test_a_sweep_that_fails_is_counted_and_tried_again(bench: Bench) -> None:
    before = failures().get("sweep", 0)
    plane(bench).fails, plane(bench).pause = 1, 3600
    plane(bench).may_end.set()
    bench.document(DOCUMENT)
    wait_until(lambda: plane(bench).begun == 2, "it is tried again")
    assert failures()["sweep"] == before + 1
    assert bench.agent.status.ready


def test_nobody_sweeps_what_keeps_no_flows() -> None:
    bench = Bench()
    bench.document(DOCUMENT)
    assert "sweep" not in {thread.name for thread in threading.enumerate()}


def test_a_status_is_told_though_the_tables_cannot_be_read(bench: Bench) -> None:
    bench.document(DOCUMENT)
    status = bench.agent.status_now()
    assert (status.ready, status.usage) == (True, Usage())
    assert b"ipmasq_agent_ready 1.0\n" in exposed(bench.agent.metrics.all(status))[1]
