"""The row of the registry: all that the rest of the house knows about the plane."""

from __future__ import annotations

from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.planes.plane import AnyPlane
from ipmasq_agent.planes.registry import PlaneRow


def _make(placement: Placement) -> AnyPlane:
    from tests.fakeplane.plane import FakePlane

    return FakePlane()


def _has_file(placement: Placement) -> bool:
    from tests.fakeplane.plane import has_file

    return has_file(placement)


ROW = PlaneRow(
    name="fake",
    backend="fake",
    title="files that decide nothing",
    programs=(),
    capabilities=frozenset(),
    any_size=True,
    make=_make,
    may_hold=_has_file,
    holds=_has_file,
)
