"""Faults of all kinds while traffic flows: no packet has a source that no policy gives it.

Where somebody takes rules away, packets go wrong until they are back; the time that takes is
in the table. Nobody else's rule is lost in any of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import table
from tests.faults.injector import PLANES
from tests.faults.scenes import SCENES, Scene
from tests.faults.site import Site
from tests.kernel.crossing import Crossing, crossing
from tests.kernel.flows import count_in, flowing

pytestmark = pytest.mark.kernel
_PAUSE = 0.002  # seconds between two flows of each kind
SEED = 1


@pytest.fixture(scope="module")
def node() -> Iterator[Crossing]:
    with crossing() as made:
        made.node.run(["sysctl", "-q", "-w", "net.netfilter.nf_conntrack_udp_timeout=1"])
        count_in(made.world)
        yield made


@pytest.fixture
def site(
    request: pytest.FixtureRequest, node: Crossing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Site]:
    monkeypatch.setenv("XTABLES_LOCKFILE", os.fspath(tmp_path / "xtables.lock"))
    with node.node.entered():
        made = Site(node, request.param, tmp_path, SEED)
        try:
            yield made
        finally:
            made.clear()


def play(site: Site, scene: Scene, times: int) -> None:
    site.tries, site.repairs = 0, []
    with flowing(site.node, pause=_PAUSE) as counts:
        scene.play(site, times)
    row = table.Row.of(scene.title, site, counts)
    table.note(row)
    assert site.tries > 0, scene.title
    assert row.packets > 20, scene.title
    assert scene.theirs or row.wrong == 0, (scene.title, counts)


def scenes_of(plane: str) -> list[Scene]:
    return [scene for scene in SCENES if plane in scene.planes]


@pytest.mark.parametrize("site", PLANES, indirect=True)
def test_each_fault_once(site: Site) -> None:
    for scene in scenes_of(site.plane):
        play(site, scene, 1)


@pytest.mark.long
@pytest.mark.parametrize("site", PLANES, indirect=True)
def test_each_fault_many_times(site: Site) -> None:
    site.pause = 1.5
    for scene in scenes_of(site.plane):
        play(site, scene, 10)
