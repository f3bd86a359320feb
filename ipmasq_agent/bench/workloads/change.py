"""How long the running agent takes until a new flow is treated by a changed document."""

from __future__ import annotations

import itertools
import select
import socket
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace

from ipmasq_agent.bench.node import PATIENCE, AgentOnNode
from ipmasq_agent.bench.policies import BlockPolicy, in_gap
from ipmasq_agent.bench.results import Measure
from ipmasq_agent.bench.rig import NODE, POD, Rig
from ipmasq_agent.bench.workload import Measured, Stage, Workload

_CHANGED = 500  # the gap which the policy keeps every other time
_CHANGES = 4
_BETWEEN = 0.0005  # seconds between two flows that ask how they are treated
_PORTS = range(30_000, 60_000)


def _run(stage: Stage) -> Iterator[Measured]:
    assert stage.agent is not None
    yield change(stage.rig, stage.agent, stage.policy)


def change(rig: Rig, agent: AgentOnNode, policy: BlockPolicy) -> Measured:
    """Change the policy of the running agent, to and fro; the value is the median."""
    to = in_gap(policy.family, _CHANGED)
    kept = replace(policy, kept=_CHANGED)
    took = []
    with agent.running(policy), Asking(rig, to) as asking:
        for number in range(_CHANGES):
            wanted, source = (policy, NODE) if number % 2 else (kept, POD)
            document = wanted.document
            began = time.monotonic()
            agent.give(document)
            if not asking.until(source[policy.family]):
                return Measured("change", None, f"it did not hold within {PATIENCE:g} s")
            took.append(time.monotonic() - began)
    return Measured("change", statistics.median(took))


class Asking:
    """New flows to one destination, one after the other, and which source the world sees.

    Args:
        rig: whose pod sends.
        to: the address.
    """

    def __init__(self, rig: Rig, to: int) -> None:
        self._to = rig.family.show(to)
        self._out = rig.pod.socket(rig.family, socket.SOCK_DGRAM)
        # A raw socket gets a copy of what arrives for any port.
        self._seen = rig.world.socket(rig.family, socket.SOCK_RAW, socket.IPPROTO_UDP)
        self._ports = itertools.cycle(_PORTS)

    def __enter__(self) -> Asking:
        return self

    def __exit__(self, *_: object) -> None:
        self._out.close()
        self._seen.close()

    def until(self, source: str) -> bool:
        """Send until a flow arrives with that source; false where none does."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            self._out.sendto(b"?", (self._to, next(self._ports)))
            readable, _, _ = select.select([self._seen], [], [], _BETWEEN)
            if readable and self._seen.recvfrom(2048)[1][0] == source:
                return True
        return False


WORKLOAD = Workload(
    (Measure("change", "Time until a change of the policy holds", "s", more_is_better=False),),
    _run,
    fits=lambda mode: mode.backend is not None,
)
