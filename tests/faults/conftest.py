"""Faults are injected into an agent in a network namespace of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.conftest import _own_pins, _swept, in_ns, ns
from tests.kernel.crossing import Crossing, crossing
from tests.kernel.flows import count_in

__all__ = ["_own_pins", "_swept", "in_ns", "ns"]


@pytest.fixture(autouse=True)
def _own_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No other test holds the xtables lock of this one."""
    monkeypatch.setenv("XTABLES_LOCKFILE", os.fspath(tmp_path / "xtables.lock"))


@pytest.fixture(scope="module")
def node() -> Iterator[Crossing]:
    """A node between pods and the world, which counts."""
    with crossing() as made:
        # The table of connections must not fill up: each packet is a new one.
        made.node.run(["sysctl", "-q", "-w", "net.netfilter.nf_conntrack_udp_timeout=1"])
        count_in(made.world)
        yield made
