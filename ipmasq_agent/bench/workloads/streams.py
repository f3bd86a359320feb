"""As much as goes through one TCP stream and through eight: iperf3."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from ipmasq_agent.bench.machine import Ends, busy_seconds, pinned
from ipmasq_agent.bench.policies import served
from ipmasq_agent.bench.results import Measure
from ipmasq_agent.bench.rig import SLACK, Rig
from ipmasq_agent.bench.workload import Measured, Stage, Workload

_SEVERAL = 8


def _run(stage: Stage) -> Iterator[Measured]:
    yield from streams(stage.rig, stage.ends, stage.effort.seconds)


def streams(rig: Rig, ends: Ends, seconds: float) -> Iterator[Measured]:
    """Send for so many seconds over one stream, and then over several."""
    for measure, parallel in (("stream", 1), ("streams", _SEVERAL)):
        argv = ["iperf3", "-J", "-t", f"{seconds:g}", "-P", str(parallel)]
        client = pinned(ends.sender, [*argv, "-c", served(rig.family)])
        with rig.world.serving(pinned(ends.receiver, ["iperf3", "-s", "-1"]), "tcp", 5201):
            busy = busy_seconds()
            (said,) = rig.pod.together([client], seconds + SLACK)
            busy = busy_seconds() - busy
        received, took, problem = outcome(said)
        yield Measured(measure, None if problem else received * 8 / took, problem)
        if parallel == 1:
            yield Measured("stream-cpu", None if problem else busy / received * 1e9, problem)


def outcome(said: str) -> tuple[float, float, str | None]:
    """Return how many bytes arrived, in how many seconds, and what went wrong."""
    try:
        told: dict[str, Any] = json.loads(said)
    except json.JSONDecodeError:
        return 0.0, 0.0, f"iperf3 did not end ({said[-200:] or 'it said nothing'})"
    if "error" in told:
        return 0.0, 0.0, f"iperf3: {told['error']}"
    received = told["end"]["sum_received"]
    problem = None if received["bytes"] else "nothing arrived"
    return float(received["bytes"]), float(received["seconds"]), problem


WORKLOAD = Workload(
    (
        Measure("stream", "Throughput of one TCP stream", "bit/s", more_is_better=True),
        Measure("streams", "Throughput of eight TCP streams", "bit/s", more_is_better=True),
        Measure("stream-cpu", "CPU time of the machine per GB", "s", more_is_better=False),
    ),
    _run,
    tools={"iperf3": "iperf3"},
)
