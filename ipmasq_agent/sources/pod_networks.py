"""All nodes with the addresses of their pods, once: from the API, or as kubectl printed them."""

from __future__ import annotations

import json
from collections.abc import Iterable

import yaml

from ipmasq_agent.errors import MALFORMED, SourceError
from ipmasq_agent.policy.facts import ClusterNode
from ipmasq_agent.sources.kube_access import Permission
from ipmasq_agent.sources.kube_api import ApiRefusal
from ipmasq_agent.sources.kube_list import JsonObject, Objects, read_once
from ipmasq_agent.sources.nodes import PAGE, PATH, addresses_of, pod_cidrs_of

CILIUM_PATH = "/apis/cilium.io/v2/ciliumnodes"
_KEYS = frozenset({"kind", "spec", "status", "addresses", "type", "address", "ip"}) | {
    *("podCIDRs", "podCIDR", "ipam", "pools", "allocated", "cidrs")
}


def read_nodes(kubeconfig: str | None, *, cilium: bool) -> tuple[ClusterNode, ...]:
    """Return the nodes that the API has, or its CiliumNodes.

    Those have the pod CIDRs that count where Cilium gives out addresses.

    Raises:
        SourceError: they cannot be had.
    """
    name, path, group = ("ciliumnodes", CILIUM_PATH, "cilium.io") if cilium else ("nodes", PATH, "")
    permission = Permission(name, verbs=("list",), group=group)
    wanted = Objects(
        *(name, path, f"the {name} of the cluster", permission, _node), page=PAGE, keys=_KEYS
    )
    try:
        return tuple(read_once(wanted, kubeconfig).value.values())
    except SourceError as error:
        refusal = error.__cause__
        if cilium and isinstance(refusal, ApiRefusal) and refusal.status == 404:
            said = "the cluster has no CiliumNodes"
            raise SourceError(said, remedy="leave out --cilium") from refusal
        raise


def parse_nodes(text: str, name: str) -> tuple[ClusterNode, ...]:
    """Return the nodes of ``kubectl get nodes -o json`` or ``-o yaml``, or of ciliumnodes.

    Raises:
        SourceError: the text is something else.
    """
    try:
        objects = json.loads(text) if text.lstrip().startswith("{") else yaml.safe_load(text)
        items: Iterable[JsonObject] = objects.get("items", [objects])
        return tuple(_node(item) for item in items)
    except (*MALFORMED, yaml.YAMLError) as cause:
        raise SourceError(
            f"{name} holds no nodes", remedy="write it with `kubectl get nodes -o json`"
        ) from cause


def _node(item: JsonObject) -> ClusterNode:
    """Return a Node, or a CiliumNode, as values."""
    spec = item.get("spec") or {}
    if "ipam" in spec or item.get("kind") == "CiliumNode":
        item = _as_node(item)
    entries = (item.get("status") or {}).get("addresses") or []
    # The address within the cluster is the one that routers of the same network reach.
    entries = sorted(entries, key=lambda entry: entry.get("type") != "InternalIP")
    by_kind = item | {"status": {"addresses": entries}}
    return ClusterNode(item["metadata"]["name"], addresses_of(by_kind), pod_cidrs_of(item))


def _as_node(item: JsonObject) -> JsonObject:
    """Return a CiliumNode in the form of a Node."""
    ipam = item["spec"].get("ipam") or {}
    pools = (ipam.get("pools") or {}).get("allocated") or []
    cidrs = [*(ipam.get("podCIDRs") or []), *(c for pool in pools for c in pool.get("cidrs") or [])]
    addresses = [
        {"type": entry.get("type"), "address": entry.get("ip")}
        for entry in item["spec"].get("addresses") or []
    ]
    return {
        "metadata": item["metadata"],
        "spec": {"podCIDRs": cidrs},
        "status": {"addresses": addresses},
    }
