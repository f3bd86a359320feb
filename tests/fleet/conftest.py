"""A cluster for each test, and the plugin with the credentials for it."""

from __future__ import annotations

import io
import ssl
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from ipmasq_agent.cli.fleet import main
from tests.fleet.agents import Agent
from tests.fleet.cluster import FleetCluster
from tests.fleet.plugin import Done
from tests.kube.cluster import write_kubeconfig

DOCUMENT = "nonMasqueradeCIDRs: [10.0.0.0/8]\n"

Made = Callable[..., FleetCluster]
Plugin = Callable[..., Done]


@pytest.fixture
def clusters() -> Iterator[Made]:
    """Return a function that makes a cluster of agents, with a document."""
    made: list[FleetCluster] = []

    def make(
        agents: Iterable[Agent],
        document: str | None = DOCUMENT,
        tls: ssl.SSLContext | None = None,
    ) -> FleetCluster:
        made.append(FleetCluster(agents, document, tls))
        return made[-1]

    yield make
    for cluster in made:
        cluster.close()


@pytest.fixture
def plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Plugin:
    """Return a function that runs the plugin, in this process, with a cluster and words."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)

    def ask(cluster: FleetCluster, *words: str, stdin: str | io.TextIOWrapper = "") -> Done:
        kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", cluster.port)
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        if isinstance(stdin, str):
            stdin = io.TextIOWrapper(io.BytesIO(stdin.encode()))
        monkeypatch.setattr("sys.stdin", stdin)
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main(list(words))
        assert isinstance(left.value.code, int)
        return Done(left.value.code, *capsys.readouterr())

    return ask


def few(count: int = 5, **options: object) -> list[Agent]:
    """Return agents of nodes that are called n1, n2..."""
    return [Agent(f"n{number}", **options) for number in range(1, count + 1)]  # type: ignore[arg-type]
