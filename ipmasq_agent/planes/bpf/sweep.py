"""Flows that have expired are found by reading the tables piece by piece, and removed.

The kernel could walk through a table by itself, but holds up all else on one CPU, packets
too, until it is through: 0.2 s with half a million flows. So the agent reads who has expired,
and a program that is told removes those of them of which it is still true.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import compress

from ipmasq_agent.bpf.maps import BpfMap
from ipmasq_agent.planes.bpf import layout
from ipmasq_agent.planes.usage import FlowTable

IDLE, BUSY = 30.0, 5.0
"""Seconds from one sweep to the next: of empty tables, and of those that fill up."""

Remove = Callable[[str, Sequence[bytes]], None]
"""Removes flows of a table, which is named, by their keys."""


def sweep(name: str, table: BpfMap, remove: Remove | None) -> FlowTable:
    """Remove what has expired for good from a table, and count the others; or count alone."""
    held = dict.fromkeys(layout.FAMILIES, 0)
    for keys, values in table.columns():
        families = layout.families(keys)
        ended = int(time.clock_gettime(time.CLOCK_MONOTONIC)) - layout.GRACE
        gone = [expires <= ended for expires in layout.expiries(name, values)]
        for number, family in enumerate(layout.FAMILIES):
            held[family] += families.count(number)
        if not any(gone):
            continue
        for number in compress(families, gone):
            held[layout.FAMILIES[number]] -= 1
        if remove is not None:
            size = table.key_size
            remove(name, [keys[n * size : (n + 1) * size] for n, due in enumerate(gone) if due])
    return FlowTable(name, table.capacity, held)


def pause(tables: Sequence[FlowTable]) -> float:
    """Return the seconds until the next sweep: the fuller, the sooner."""
    return max(BUSY, IDLE * (1 - 2 * max((table.fill for table in tables), default=0)))
