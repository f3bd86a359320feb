"""A server for each test, and no long waits between attempts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ipmasq_agent.host.patience import Backoff
from ipmasq_agent.sources import kube_watch
from tests.kube.cluster import Cluster


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    yield cluster
    cluster.close()


@pytest.fixture(autouse=True)
def own_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let agents keep their documents elsewhere than those of the machine do."""
    monkeypatch.setenv("IPMASQ_STATE_DIR", str(tmp_path / "state"))


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube_watch, "Backoff", lambda: Backoff(0.01, 0.05))
    monkeypatch.setattr(kube_watch, "PATIENCE", 0.0)
    monkeypatch.setattr(kube_watch, "REJOINING", 0.05)
