"""One packet of each of many new UDP flows, as fast as one CPU can send them."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterator, Sequence

from ipmasq_agent.bench.machine import settle
from ipmasq_agent.bench.results import REFERENCE, Measure
from ipmasq_agent.bench.udp import Sent, Udp, parts_of
from ipmasq_agent.bench.workload import Measured, Stage, Workload

_WARM_UP = 10  # of so many flows one


def _run(stage: Stage) -> Iterator[Measured]:
    settle()
    # Caches fill, neighbours are found.
    list(flows(stage.udp, stage.effort.flows // _WARM_UP, stage.beside))
    for one in flows(stage.udp, stage.effort.flows, stage.beside):
        itself = stage.turn.mode.name == REFERENCE and one.problem is None
        yield one._replace(ratio=1.0) if itself else one


def flows(udp: Udp, count: int, beside: Udp | None = None) -> Iterator[Measured]:
    """Send one packet of each of ``count`` new flows.

    In parts, of which the median counts. Another rig takes turns with this one, part by
    part: the ratio to it is hardly moved by what a machine does for some seconds.
    """
    own, other, problem = _alternately(udp, beside, parts_of(count))
    if problem:
        yield Measured("flows", None, problem)
        yield Measured("flows-cpu", None, problem)
        return
    ratio = cpu_ratio = None
    if other:
        ratio = statistics.median(a.rate / b.rate for a, b in zip(own, other, strict=True))
        if busy_beside := _busy(other):
            cpu_ratio = _busy(own) / busy_beside
    yield Measured("flows", statistics.median(part.rate for part in own), None, ratio)
    yield Measured("flows-cpu", _busy(own) / count, None, cpu_ratio)


def _alternately(
    udp: Udp, beside: Udp | None, parts: Sequence[int]
) -> tuple[list[Sent], list[Sent], str | None]:
    """Send each part through each rig; return what was told, and what went wrong."""
    told: tuple[list[Sent], list[Sent]] = ([], [])
    with contextlib.ExitStack() as stack:
        both = [one for one in (udp, beside) if one]
        sending = [stack.enter_context(one.new_flows(sum(parts))) for one in both]
        for number, part in enumerate(parts):
            # Whoever is first in one part is last in the next.
            turns = list(zip(sending, told, strict=False))[:: -1 if number % 2 else 1]
            for one, of_one in turns:
                of_one.append(one.send(part))
    problem = next((one.problem for one in sending if one.problem), None)
    return *told, problem


def _busy(parts: Sequence[Sent]) -> float:
    return sum(part.busy for part in parts)


WORKLOAD = Workload(
    (
        Measure("flows", "New UDP flows", "flows/s", more_is_better=True),
        Measure("flows-cpu", "CPU time of the machine per new flow", "s", more_is_better=False),
    ),
    _run,
    always=True,
)
