"""All nodes with their pod CIDRs, from Nodes and from CiliumNodes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kmock
import pytest

from ipmasq_agent.answers.routes import parse_node
from ipmasq_agent.errors import AccessDenied, SourceError
from ipmasq_agent.sources.pod_networks import read_nodes
from tests.kube.cluster import write_kubeconfig
from tests.kube.node_cluster import NodeCluster, node_object


class CiliumCluster(NodeCluster):
    """Has CiliumNodes too, once it is given some, or a refusal to show them."""

    def __init__(self) -> None:
        self.cilium_nodes: list[dict[str, Any]] = []
        super().__init__()

    async def _prepare(self) -> kmock.KubernetesScaffold:
        handler = await super()._prepare()
        handler["list", kmock.resource("cilium.io", "v2", "ciliumnodes")] << self._list_cilium
        return handler

    async def _list_cilium(self, request: kmock.Request) -> dict[str, Any]:
        await self._admit("list", request)
        if not self.cilium_nodes:
            raise kmock.KubernetesError(status=404, reason="NotFound", message="no such resource")
        return {"metadata": {"resourceVersion": "1"}, "items": self.cilium_nodes}


@pytest.fixture
def cluster() -> Iterator[CiliumCluster]:
    cluster = CiliumCluster()
    yield cluster
    cluster.close()


@pytest.fixture
def kubeconfig(cluster: CiliumCluster, tmp_path: Path) -> str:
    return str(write_kubeconfig(tmp_path / "kubeconfig", cluster.port))


def test_nodes_come_with_both_families_the_internal_address_first(
    cluster: CiliumCluster, kubeconfig: str
) -> None:
    cidrs = ("172.20.0.0/24", "fd00:1::/64")
    cluster.join(
        node_object("b", cidrs=cidrs, ExternalIP="203.0.113.1", InternalIP="192.168.10.100"),
        node_object("a", InternalIP="192.168.10.99"),
        *(node_object(f"c{n}", bulk=3, cidrs=(f"10.0.{n}.0/24",)) for n in range(150)),
    )
    a, b, *more = read_nodes(kubeconfig, cilium=False)
    assert (a.name, a.pod_cidrs) == ("a", ())
    assert b == parse_node("b=192.168.10.100,203.0.113.1,172.20.0.0/24,fd00:1::/64")
    assert len(more) == 150


def test_ciliumnodes_have_pod_cidrs_of_their_own(cluster: CiliumCluster, kubeconfig: str) -> None:
    cluster.join(node_object("a", cidrs=("10.244.0.0/24",), InternalIP="192.168.10.99"))
    cluster.cilium_nodes = [
        {
            "metadata": {"name": "a"},
            "spec": {
                "addresses": [
                    {"type": "CiliumInternalIP", "ip": "172.20.0.7"},
                    {"type": "InternalIP", "ip": "192.168.10.99"},
                ],
                "ipam": {
                    "podCIDRs": ["172.20.0.0/24"],
                    "pools": {"allocated": [{"pool": "x", "cidrs": ["172.20.7.0/26"]}]},
                },
            },
        }
    ]
    expected = parse_node("a=192.168.10.99,172.20.0.0/24,172.20.7.0/26")
    assert read_nodes(kubeconfig, cilium=True) == (expected,)


def test_a_cluster_without_cilium_is_told_apart(cluster: CiliumCluster, kubeconfig: str) -> None:
    with pytest.raises(SourceError, match="has no CiliumNodes; leave out --cilium"):
        read_nodes(kubeconfig, cilium=True)


def test_the_permission_that_is_missing_names_the_group(
    cluster: CiliumCluster, kubeconfig: str
) -> None:
    cluster.refusals["list"] = (403, "forbidden")
    with pytest.raises(AccessDenied) as denied:
        read_nodes(kubeconfig, cilium=True)
    assert denied.value.remedy is not None
    assert '{apiGroups: ["cilium.io"], resources: [ciliumnodes], verbs: [list]}' in (
        denied.value.remedy
    )
    assert "--verb=list --resource=ciliumnodes.cilium.io &&" in denied.value.remedy
