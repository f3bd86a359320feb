"""What a Kubernetes API does to those who follow it, while traffic flows."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.scenes import Scene, play
from tests.faults.site import DOCUMENTS, Site
from tests.kernel.crossing import Crossing
from tests.kube.cluster import NAME, NAMESPACE, Cluster, write_kubeconfig

pytestmark = pytest.mark.kernel
_LONG = 1 << 20


class ApiSite(Site):
    """An agent that follows a ConfigMap."""

    def __init__(self, node: Crossing, plane: str, place: Path, seed: int) -> None:
        self.cluster = Cluster()
        self._kubeconfig = write_kubeconfig(place / "kubeconfig", self.cluster.port)
        super().__init__(node, plane, place, seed)

    def source(self) -> tuple[str, ...]:
        """Return the flags that say where the document is."""
        return f"--configmap={NAMESPACE}/{NAME}", f"--kubeconfig={self._kubeconfig}"

    def publish(self, text: str) -> None:
        """Let this be the document."""
        self.cluster.put({"config": text})

    def clear(self) -> None:
        """End all of it."""
        super().clear()
        self.cluster.close()


@pytest.fixture
def site(node: Crossing, tmp_path: Path) -> Iterator[ApiSite]:
    with node.node.entered():
        made = ApiSite(node, "iptables-nft", tmp_path, 1)
        try:
            yield made
        finally:
            made.clear()


def _api(site: Site) -> Cluster:
    assert isinstance(site, ApiSite)
    return site.cluster


def _down_at_start(site: Site, times: int) -> None:
    for _ in range(times):
        _api(site).down()
        site.killed(in_sync=True)  # what was in force is kept, and in force again
        _api(site).up()
        site.tries += 1
        site.settle()


def _away(site: Site, times: int) -> None:
    for _ in range(times):
        _api(site).down()
        time.sleep(site.random.uniform(0, 0.3))
        site.change()
        _api(site).up()
        site.tries += 1
        site.settle()


def _refusing(site: Site, times: int) -> None:
    for _ in range(times):
        for code in (403, 404, 429, 500, 503):
            for verb in ("list", "watch"):
                _api(site).refusals[verb] = code, "the test says so"
            _api(site).break_watches()
            site.change()
            time.sleep(site.random.uniform(0, 0.3))
            _api(site).refusals.clear()
            site.tries += 1
    site.settle()


def _expired(site: Site, times: int) -> None:
    for _ in range(times):
        _api(site).compact()
        _api(site).end_watches()
        site.change()
        site.tries += 1
        site.settle()


def _cut_short(site: Site, times: int) -> None:
    for _ in range(times):
        _api(site).send(b'{"type": "MODIFIED", "object": {"metadata"')
        _api(site).break_watches()
        site.change()
        site.tries += 1
        site.settle()


def _flood(site: Site, times: int) -> None:
    for _ in range(times * 100):
        site.change()
        site.tries += 1
    site.settle()


def _large(site: Site, times: int) -> None:
    for number in range(times):
        text = DOCUMENTS[number % 2]
        site.publish(text + " " * (_LONG - len(text)))
        site.tries += 1
    site.settle()


SCENES = (
    Scene("the API server is away when an agent starts", _down_at_start),
    Scene("the API server goes away, and comes back with another document", _away),
    Scene("the API server refuses: 403, 404, 429, 500, 503", _refusing),
    Scene("the version that is watched has been compacted away (410)", _expired),
    Scene("the watch breaks off in the middle of an event", _cut_short),
    Scene("a hundred documents at once", _flood),
    Scene("a ConfigMap of 1 MiB", _large),
)


def test_each_fault_of_the_api_once(site: ApiSite) -> None:
    for scene in SCENES:
        play(site, scene, 1)


@pytest.mark.long
def test_each_fault_of_the_api_many_times(site: ApiSite) -> None:
    for scene in SCENES:
        play(site, scene, 10)
