"""How long our eBPF programs take for a packet on some paths: without the rig, and its noise.

The programs are those of the mode, but they are loaded anew, in namespaces of their own, and
run by BPF_PROG_TEST_RUN: nothing is sent.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from ipmasq_agent.bench.node import PATIENCE
from ipmasq_agent.bench.results import Measure
from ipmasq_agent.bench.testrun.paths import BACK, NEW_FULL, NEW_KEPT, NEW_UDP, OUT
from ipmasq_agent.bench.workload import Measured, Stage, Workload
from ipmasq_agent.host.commands import run
from ipmasq_agent.lab.children import own, tied

_TOLD = {
    "path-new": NEW_UDP,
    "path-full": NEW_FULL,
    "path-kept": NEW_KEPT,
    "path-out": OUT,
    "path-back": BACK,
}
_ROOM = 1 << 18  # flows


def _run(stage: Stage) -> Iterator[Measured]:
    what = stage.turn.cidrs, stage.effort.flows, _ROOM
    argv = [*own("ipmasq_agent.bench.testrun"), stage.policy.family.value, *map(str, what)]
    found = json.loads(run(tied(argv), timeout=PATIENCE).stdout)
    for measure, path in _TOLD.items():
        yield Measured(measure, found[path][0] / 1e9)


WORKLOAD = Workload(
    tuple(
        Measure(name, f"Our eBPF programs without a lab, a packet: {path}", "s", False)
        for name, path in _TOLD.items()
    ),
    _run,
    fits=lambda mode: mode.backend == "bpf" and not mode.tracking,
)
