"""Faults are injected into an agent in a network namespace of its own."""

from __future__ import annotations

from tests.kernel.conftest import _own_pins, _swept, in_ns, ns

__all__ = ["_own_pins", "_swept", "in_ns", "ns"]
