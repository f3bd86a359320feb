"""``compare`` asking a Kubernetes API for Cilium's settings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kmock
import pytest

from ipmasq_agent import cli
from tests.kube.cluster import NAMESPACE, Cluster, write_kubeconfig

LISTING = "10.0.0.0/8\n169.254.0.0/16\n"


class WithCilium(Cluster):
    """A cluster that answers a GET of cilium-config too."""

    def __init__(self) -> None:
        self.settings: dict[str, str] | None = {}
        self.refusal: tuple[int, str] | None = None
        self.asked_for: list[str] = []
        super().__init__()

    async def _prepare(self) -> kmock.KubernetesScaffold:
        handler = await super()._prepare()
        handler["fetch", kmock.resource("", "v1", "configmaps")] << self._fetch
        return handler

    async def _fetch(self, request: kmock.Request) -> dict[str, Any]:
        self.asked_for.append(f"{request.namespace}/{request.name}")
        if self.refusal is not None:
            status, message = self.refusal
            raise kmock.KubernetesError(status=status, reason="Refused", message=message)
        if self.settings is None:
            message = f'configmaps "{request.name}" not found'
            raise kmock.KubernetesError(status=404, reason="NotFound", message=message)
        return {"kind": "ConfigMap", "metadata": {}, "data": self.settings}


@pytest.fixture
def cluster() -> Iterator[WithCilium]:
    cluster = WithCilium()
    yield cluster
    cluster.close()


class Compare:
    """Runs the verb on a document that keeps 10.0.0.0/8 and 172.16.0.0/12, and a listing."""

    def __init__(self, kubeconfig: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._kubeconfig = kubeconfig
        self._capsys = capsys
        self.status = -1
        self.out = self.err = ""

    def __call__(self, *words: str, left: str = "doc") -> Compare:
        operands = (left, "cilium:list.txt", "--kubeconfig", str(self._kubeconfig))
        with pytest.raises(SystemExit) as left_with:
            cli.main(["compare", *operands, *words])
        assert isinstance(left_with.value.code, int)
        self.status = left_with.value.code
        self.out, self.err = self._capsys.readouterr()
        return self


@pytest.fixture
def compare(
    cluster: WithCilium,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Compare:
    monkeypatch.chdir(tmp_path)
    Path("doc").write_text("nonMasqueradeCIDRs: [10.0.0.0/8, 172.16.0.0/12]\n")
    Path("list.txt").write_text(LISTING)
    kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", cluster.port)
    return Compare(kubeconfig, capsys)


def test_the_native_routing_cidr_comes_from_cilium_config(
    cluster: WithCilium, compare: Compare
) -> None:
    cluster.settings = {"ipv4-native-routing-cidr": "172.16.0.0/12"}
    assert compare().status == 0
    assert cluster.asked_for == [f"{NAMESPACE}/cilium-config"]
    assert "native-routing CIDRs in kube-system/cilium-config: 172.16.0.0/12" in compare.err
    cluster.settings = {"unrelated": "x"}
    assert compare("-o", "json").status == 1
    (difference,) = json.loads(compare.out)["differences"]
    assert difference["cidr"] == "172.16.0.0/12"


def test_how_it_routes_comes_from_cilium_config(cluster: WithCilium, compare: Compare) -> None:
    pool = {"cluster-pool-ipv4-cidr": "172.16.0.0/13 172.24.0.0/13"}
    cluster.settings = {"routing-mode": "tunnel", **pool}
    assert compare().status == 0
    assert "routing-mode in kube-system/cilium-config: tunnel" in compare.err
    cluster.settings = {"routing-mode": "native", **pool}
    assert compare("-o", "json").status == 1
    (difference,) = json.loads(compare.out)["differences"]
    assert difference["cidr"] == "172.16.0.0/12"


def test_it_is_asked_for_once_however_many_operands_need_it(
    cluster: WithCilium, compare: Compare
) -> None:
    assert compare(left="cilium:list.txt").status == 0
    assert len(cluster.asked_for) == 1


def test_the_users_own_cidr_asks_nobody(cluster: WithCilium, compare: Compare) -> None:
    cluster.settings = {"ipv4-native-routing-cidr": "192.168.0.0/16"}
    assert compare("--native-routing-cidr", "172.16.0.0/12").status == 0
    assert cluster.asked_for == []


def test_the_users_own_cidr_goes_before_that_of_a_configmap_that_is_named(
    cluster: WithCilium, compare: Compare
) -> None:
    cluster.settings = {"ipv4-native-routing-cidr": "nonsense", "enable-ip-masq-agent": "false"}
    named = ("--cilium-config", "cilium/cilium-config")
    assert compare(*named, "--native-routing-cidr", "172.16.0.0/12").status == 0
    assert "enable-ip-masq-agent: false" in compare.err


def test_settings_that_leave_the_map_unused_are_said(cluster: WithCilium, compare: Compare) -> None:
    cluster.settings = {"enable-bpf-masquerade": "true", "enable-ip-masq-agent": "false"}
    assert compare().status == 1
    assert "cilium-config says enable-ip-masq-agent: false" in compare.err
    assert "enable-bpf-masquerade" not in compare.err


def test_without_an_answer_the_comparison_goes_on_and_says_what_is_missing(
    cluster: WithCilium, compare: Compare
) -> None:
    cluster.refusal = (403, "configmaps is forbidden")
    assert compare().status == 1
    assert "configmaps is forbidden (403)); give them with --native-routing-cidr" in compare.err
    cluster.refusal, cluster.settings = None, None
    assert compare().status == 1
    assert "there is no ConfigMap kube-system/cilium-config" in compare.err
    cluster.down()
    assert compare().status == 1
    assert "cannot be reached" in compare.err


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_a_configmap_that_is_named_must_be_there(
    cluster: WithCilium, compare: Compare, status: int
) -> None:
    cluster.refusal = (status, "no")
    assert compare("--cilium-config", "cilium/cilium-config").status == 2
    assert (compare.out, f"no ({status})" in compare.err) == ("", True)
    assert set(cluster.asked_for) == {"cilium/cilium-config"}


def test_a_native_routing_cidr_that_cannot_be_read_is_an_error(
    cluster: WithCilium, compare: Compare
) -> None:
    cluster.settings = {"ipv4-native-routing-cidr": "nonsense"}
    assert compare().status == 2
    assert "ipv4-native-routing-cidr: 'nonsense' is not a prefix" in compare.err
