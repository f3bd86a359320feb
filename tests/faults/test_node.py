"""What may be wrong with a node: nothing of it makes a wrong packet, or ends an agent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.injector import PLANES
from tests.faults.node_scenes import SCENES
from tests.faults.scenes import play
from tests.faults.site import Site
from tests.kernel.crossing import Crossing

pytestmark = pytest.mark.kernel


@pytest.fixture
def site(
    request: pytest.FixtureRequest, node: Crossing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Site]:
    monkeypatch.setenv("XTABLES_LOCKFILE", os.fspath(tmp_path / "xtables.lock"))
    with node.node.entered():
        made = Site(node, request.param, tmp_path, 1)
        try:
            yield made
        finally:
            made.clear()


@pytest.mark.parametrize("site", PLANES, indirect=True)
def test_each_fault_of_the_node_once(site: Site) -> None:
    for scene in SCENES:
        if site.plane in scene.planes:
            play(site, scene, 1)


@pytest.mark.long
@pytest.mark.parametrize("site", PLANES, indirect=True)
def test_each_fault_of_the_node_many_times(site: Site) -> None:
    for scene in SCENES:
        if site.plane in scene.planes:
            play(site, scene, 10)
