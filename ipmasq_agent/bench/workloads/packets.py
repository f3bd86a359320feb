"""Packets of 64 bytes on the wire, all of one flow that is there already."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from ipmasq_agent.bench.policies import in_gap
from ipmasq_agent.bench.results import Measure
from ipmasq_agent.bench.udp import Udp, parts_of
from ipmasq_agent.bench.workload import Measured, Stage, Workload
from ipmasq_agent.policy.addresses import Family

_ONE_FLOW = 1000  # the gap that it goes to
_HEADERS = {Family.IPV4: 14 + 20 + 8 + 4, Family.IPV6: 14 + 40 + 8 + 4}


def _run(stage: Stage) -> Iterator[Measured]:
    yield packets(stage.udp, stage.effort.packets)


def packets(udp: Udp, count: int) -> Measured:
    """Send so many packets; the median of their parts counts."""
    destination = in_gap(udp.family, _ONE_FLOW)
    with udp.sending([destination], count, max(64 - _HEADERS[udp.family], 1)) as sending:
        rates = [sending.send(part).rate for part in parts_of(count)]
    value = None if sending.problem else statistics.median(rates)
    return Measured("packets", value, sending.problem)


WORKLOAD = Workload(
    (Measure("packets", "64-byte packets of one flow", "packets/s", more_is_better=True),), _run
)
