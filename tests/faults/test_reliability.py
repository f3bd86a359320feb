"""Faults of all kinds while traffic flows: no packet has a source that no policy gives it.

Where somebody takes rules away, packets go wrong until they are back; the time that takes is
in the table. Nobody else's rule is lost in any of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.injector import PLANES
from tests.faults.scenes import SCENES, UNHEALTHY, Scene, play
from tests.faults.site import Site
from tests.kernel.crossing import Crossing

pytestmark = pytest.mark.kernel
SEED = 1


@pytest.fixture
def site(request: pytest.FixtureRequest, node: Crossing, tmp_path: Path) -> Iterator[Site]:
    with node.node.entered():
        made = Site(node, request.param, tmp_path, SEED)
        try:
            yield made
        finally:
            made.clear()


def scenes_of(plane: str) -> list[Scene]:
    return [scene for scene in SCENES if plane in scene.planes]


@pytest.mark.parametrize("site", PLANES, indirect=True)
def test_each_fault_once(site: Site) -> None:
    for scene in scenes_of(site.plane):
        play(site, scene, 1)


@pytest.mark.parametrize("site", ["nftables"], indirect=True)
def test_health_fails_when_a_call_does_not_come_back(site: Site) -> None:
    play(site, UNHEALTHY, 1)


@pytest.mark.long
@pytest.mark.parametrize("site", PLANES, indirect=True)
def test_each_fault_many_times(site: Site) -> None:
    site.pause = 1.5
    for scene in (*scenes_of(site.plane), UNHEALTHY):
        play(site, scene, 10)
