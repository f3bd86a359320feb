"""The guide's commands by the real helm: install, upgrade, rollback, test and uninstall."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.deploy.chart import CHART, Refused, Values, agent, template, told_apart
from tests.deploy.command_line import parameters
from tests.deploy.helm_cluster import HelmCluster

CONFIGMAP = "api/v1/namespaces/kube-system/configmaps/ip-masq-agent"
DAEMONSET = "apis/apps/v1/namespaces/kube-system/daemonsets/ipmasq-agent"
MINE = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "ip-masq-agent", "namespace": "kube-system"},
    "data": {"config": "nonMasqueradeCIDRs: [192.0.2.0/24]\n"},
}
"""A document that somebody wrote before."""


@pytest.fixture
def cluster() -> Iterator[HelmCluster]:
    with HelmCluster() as server:
        yield server


def saying(values: Values) -> str:
    """Return the word of a command line that gives values."""
    return "--set-json=" + ",".join(f"{key}={json.dumps(value)}" for key, value in values.items())


def held(cluster: HelmCluster, values: Values) -> None:
    """Assert that the cluster holds what the chart makes of values, and nothing else."""
    (wanted,) = template(values)
    assert told_apart(cluster.objects()) == told_apart(wanted)


def test_a_release_is_installed_upgraded_rolled_back_and_leaves_its_document_behind(
    cluster: HelmCluster,
) -> None:
    first: Values = {
        "config": {"cidrLimit": 1_000_000},
        "flags": {"bpf-flows": 1_000_000},  # which helm would write as 1e+06
        "rbac": {"nodes": True},
    }
    cluster.helm("install", CHART, saying(first))
    held(cluster, first)

    more: Values = {"mode": "file", "record": {"enabled": True}, "rbac": {"nodes": False}}
    cluster.helm("upgrade", CHART, "--reuse-values", saying(more))
    held(cluster, first | more)
    assert {item["kind"] for item in cluster.objects()} == {
        *("ConfigMap", "DaemonSet", "ServiceAccount")
    }

    cluster.helm("rollback", "1")
    held(cluster, first)

    said = cluster.helm("uninstall")
    assert "[ConfigMap] ip-masq-agent" in said
    (document,) = cluster.kept.values()
    assert document["data"] == {"config": "cidrLimit: 1000000\n"}

    cluster.helm("install", CHART, saying(first))
    held(cluster, first)


def test_a_document_of_somebodys_own_is_never_overwritten_unasked(cluster: HelmCluster) -> None:
    cluster.kept[CONFIGMAP] = MINE
    with pytest.raises(
        Refused, match=r"ConfigMap \"ip-masq-agent\".* exists and cannot be imported"
    ):
        cluster.helm("install", CHART, saying({"config": {"masqLinkLocal": True}}))
    assert cluster.kept[CONFIGMAP] == MINE

    cluster.helm("upgrade", CHART, "--install")
    assert cluster.kept[CONFIGMAP] == MINE
    cluster.helm("uninstall")
    assert cluster.kept == {CONFIGMAP: MINE}

    given = saying({"config": {"masqLinkLocal": True}})
    cluster.helm("install", CHART, "--take-ownership", given)
    assert cluster.kept[CONFIGMAP]["data"] == {"config": "masqLinkLocal: true\n"}


def test_helm_test_fails_where_status_does(cluster: HelmCluster) -> None:
    cluster.helm("install", CHART)
    assert "Phase:          Succeeded" in cluster.helm("test")
    cluster.end = "Failed"
    with pytest.raises(Refused, match="pod ipmasq-agent-status failed"):
        cluster.helm("test")


def test_agents_are_told_to_take_their_rules_along_before_an_uninstall(
    cluster: HelmCluster,
) -> None:
    cluster.helm("install", CHART)
    assert parameters(agent(cluster.objects()), "run")["cleanup_on_exit"] is False
    cluster.helm("upgrade", CHART, "--reuse-values", "--set", "flags.cleanup-on-exit=true")
    assert parameters(agent(cluster.objects()), "run")["cleanup_on_exit"] is True
    cluster.helm("uninstall")
    assert cluster.kept == {}
