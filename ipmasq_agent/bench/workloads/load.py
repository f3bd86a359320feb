"""The policy is loaded by the agent itself, and in force for all that comes after it."""

from __future__ import annotations

from collections.abc import Iterator

from ipmasq_agent.bench.machine import calm_memory
from ipmasq_agent.bench.results import LOADING, Measure
from ipmasq_agent.bench.workload import Measured, Stage, Workload


def _run(stage: Stage) -> Iterator[Measured]:
    assert stage.agent is not None
    empty = calm_memory() if stage.turn.everything else 0
    took = stage.agent.load(stage.policy)
    stage.policy_memory = calm_memory() - empty if stage.turn.everything else 0
    yield Measured(LOADING, took)


WORKLOAD = Workload(
    (Measure(LOADING, "Time to load the CIDRs", "s", more_is_better=False),),
    _run,
    always=True,
    fits=lambda mode: mode.backend is not None,
)
