"""What the kernel takes for the policy at rest and for many flows more."""

from __future__ import annotations

from collections.abc import Iterator

from ipmasq_agent.bench.machine import calm_memory
from ipmasq_agent.bench.results import Measure
from ipmasq_agent.bench.workload import Measured, Stage, Workload

_FLOWS = 100_000


def _run(stage: Stage) -> Iterator[Measured]:
    before = calm_memory()
    with stage.udp.new_flows(_FLOWS) as sending:
        sending.send(_FLOWS)
    flows = calm_memory() - before
    value = None if sending.problem else float(stage.policy_memory + flows)
    yield Measured("memory", value, sending.problem)


WORKLOAD = Workload(
    (Measure("memory", "Kernel memory with 100,000 flows", "bytes", more_is_better=False),), _run
)
