"""All workloads: new flows and connections for each size of a policy, the rest for some.

None believes the program that it runs: segments that were sent again and answers that never
came are asked for, and where something is wrong the outcome says what, and has no value.
"""

from __future__ import annotations

from collections.abc import Sequence

from ipmasq_agent.bench.modes import Effort, Turn, turns
from ipmasq_agent.bench.results import Mode
from ipmasq_agent.bench.workload import Workload
from ipmasq_agent.bench.workloads import (
    change,
    connections,
    flows,
    latency,
    load,
    memory,
    packets,
    paths,
    program,
    streams,
)
from ipmasq_agent.lab.tools import PACKAGES
from ipmasq_agent.planes.registry import rows_of

# The policy is loaded first, and changed when all else is done. What connections leave in the
# tables of the kernel ends at any time, so its memory is looked at before there are any.
IN_TURN: tuple[Workload, ...] = tuple(
    module.WORKLOAD
    for module in (
        *(load, flows, memory, program, paths, packets, streams, latency, connections, change),
    )
)
# In the order in which one looks at them.
MEASURES = tuple(
    measure
    for module in (
        *(flows, program, paths, connections, packets, streams, latency, memory, load, change),
    )
    for measure in module.WORKLOAD.measures
)


def due(turn: Turn) -> list[Workload]:
    """Return the workloads that have a part in a turn, in their order."""
    return [workload for workload in IN_TURN if workload.is_due(turn)]


def tools(modes: Sequence[Mode], effort: Effort) -> dict[str, str]:
    """Return the programs that a benchmark needs, each with its Debian package."""
    found = {tool: PACKAGES[tool] for tool in ("ip", "nft", "setpriv", "sysctl", "taskset")}
    for turn in turns(modes, effort):
        for plane in rows_of(turn.mode.backend or "")[:1]:
            found |= {program: PACKAGES[program] for program in plane.programs}
        for workload in due(turn):
            found |= workload.tools
    return found
