"""Faults are injected into an agent in a network namespace of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kernel.conftest import _own_pins, _swept, in_ns, ns
from tests.kernel.crossing import Crossing, crossing
from tests.kernel.flows import count_in

__all__ = ["_own_pins", "_swept", "in_ns", "ns"]


@pytest.fixture(scope="module")
def node() -> Iterator[Crossing]:
    """A node between pods and the world, which counts."""
    with crossing() as made:
        # The table of connections must not fill up: each packet is a new one.
        made.node.run(["sysctl", "-q", "-w", "net.netfilter.nf_conntrack_udp_timeout=1"])
        count_in(made.world)
        yield made
