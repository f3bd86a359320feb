"""How long our eBPF program at egress takes for a new flow, as the kernel itself tells.

Only while it is asked for: to take the time slows the program down, so these flows are
extra ones, and the rate of flows is not measured with them.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ipmasq_agent.bench.results import Measure
from ipmasq_agent.bench.workload import Measured, Stage, Workload
from ipmasq_agent.bpf.objects import get_pinned, object_info
from ipmasq_agent.bpf.syscall import BpfCommand, bpf
from ipmasq_agent.errors import BenchError
from ipmasq_agent.planes.bpf.layout import TcHook
from ipmasq_agent.planes.bpf.pins import PinDirectory

_RUN_TIME = 0  # BPF_STATS_RUN_TIME
# Where struct bpf_prog_info of include/uapi/linux/bpf.h has run_time_ns and run_cnt.
_RUN_AT, _RUN = 192, struct.Struct("=QQ")
_TIMED = 4  # of so many flows one


def _run(stage: Stage) -> Iterator[Measured]:
    flows = stage.effort.flows // _TIMED
    # As the node sees it: the file system of the pins is mounted there alone.
    pins = PinDirectory(Path(f"/proc/{stage.rig.node.pid}/root{stage.rig.pins}"))
    path = pins.objects / TcHook.EGRESS.value
    before = _so_far(path)
    with stage.udp.new_flows(flows) as sending, _timed():
        sending.send(flows)
    took, runs = (after - b for after, b in zip(_so_far(path), before, strict=True))
    if sending.problem or not runs:
        yield Measured("program", None, sending.problem or "the program did not run")
    else:
        yield Measured("program", took / runs / 1e9)


@contextmanager
def _timed() -> Iterator[None]:
    """Have the kernel note how long programs run.

    It does so while the descriptor is open, and the sysctl for all is left alone.
    """
    descriptor = bpf(BpfCommand.ENABLE_STATS, struct.pack("=I", _RUN_TIME))
    try:
        yield
    finally:
        os.close(descriptor)


def _so_far(path: Path) -> tuple[int, int]:
    """Return for how many ns the program has run while it was timed, and how often."""
    descriptor = get_pinned(path)
    if descriptor is None:
        raise BenchError(f"{path} is gone", remedy="did somebody else remove the agent's programs?")
    try:
        took, runs = _RUN.unpack_from(object_info(descriptor, _RUN_AT + _RUN.size), _RUN_AT)
    finally:
        os.close(descriptor)
    return took, runs


WORKLOAD = Workload(
    (Measure("program", "Time of our eBPF program per new flow", "s", more_is_better=False),),
    _run,
    fits=lambda mode: mode.backend == "bpf",
)
