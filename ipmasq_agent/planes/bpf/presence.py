"""Cheap signs that programs of ours are here."""

from __future__ import annotations

import os
from pathlib import Path

from ipmasq_agent.errors import NotPermitted
from ipmasq_agent.planes.bpf.programs import NodePrograms
from ipmasq_agent.planes.placement import Placement


def has_programs(placement: Placement) -> bool:
    """Whether pins are here, or programs on devices that have lost theirs."""
    try:
        # Those who may not look at the pins look at the devices.
        return os.path.exists(placement.pins) or NodePrograms(Path(placement.pins)).strays()
    except NotPermitted:
        return True  # so that somebody tries to read them, and says why that fails
