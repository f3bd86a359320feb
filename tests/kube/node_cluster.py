"""A Kubernetes API that serves Nodes: page by page, and as large as real ones."""

from __future__ import annotations

from typing import Any

import kmock

from tests.kube.cluster import Cluster

ADDRESS_TYPES = ("InternalIP", "ExternalIP", "Hostname", "InternalDNS")


def node_object(name: str, *, bulk: int = 0, cidrs: tuple[str, ...] = (), **types: str) -> Any:
    """Return a Node with an address for each type given, and ``bulk`` images in its status."""
    return {
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {"podCIDR": cidrs[0], "podCIDRs": list(cidrs)} if cidrs else {},
        "status": {
            "addresses": [{"type": kind, "address": text} for kind, text in types.items()],
            "images": [
                {"names": [f"registry.example/image{n}@sha256:{n:064}"], "sizeBytes": n}
                for n in range(bulk)
            ],
        },
    }


class NodeCluster(Cluster):
    """The server. Lists show one state on all their pages, until ``compact``."""

    def __init__(self) -> None:
        self.nodes: dict[str, dict[str, Any]] = {}
        # Version → the nodes then, for the pages that are still to be asked for.
        self._snapshots: dict[int, list[dict[str, Any]]] = {}
        # Set these from a test: pages after which the history is forgotten, how many times.
        self.forgets_after_pages = 0
        self.forgets = 0
        super().__init__()

    def join(self, *nodes: dict[str, Any]) -> None:
        """Create or replace nodes."""

        def join() -> None:
            for node in nodes:
                name = node["metadata"]["name"]
                kind = "MODIFIED" if name in self.nodes else "ADDED"
                self.nodes[name] = node
                self._commit(kind, node)

        self._call(join)

    def leave(self, *names: str) -> None:
        def leave() -> None:
            for name in names:
                self._commit("DELETED", self.nodes.pop(name))

        self._call(leave)

    async def _prepare(self) -> kmock.KubernetesScaffold:
        handler = await super()._prepare()
        handler["list", kmock.resource("", "v1", "nodes")] << self._list_nodes
        handler["watch", kmock.resource("", "v1", "nodes")] << self._watch
        return handler

    def _authorise(self, request: kmock.Request) -> None:
        """Allow all, as a ClusterRole without resourceNames does."""

    async def _list_nodes(self, request: kmock.Request) -> dict[str, Any]:
        await self._admit("list", request)
        selector = request.params.get("fieldSelector", "")
        token = request.params.get("continue")
        if token is None:
            version, start = self._version, 0
            chosen = [
                node
                for name, node in sorted(self.nodes.items())
                if selector in ("", f"metadata.name={name}")
            ]
            self._snapshots[version] = chosen
        else:
            version, start = (int(each) for each in token.split("-"))
        if version not in self._snapshots:
            message = "The provided continue parameter is too old"
            raise kmock.KubernetesError(status=410, reason="Expired", message=message)
        nodes = self._snapshots[version]
        limit = int(request.params.get("limit", len(nodes) or 1))
        metadata = {"resourceVersion": str(version)}
        if start + limit < len(nodes):
            metadata["continue"] = f"{version}-{start + limit}"
        if self.forgets and start // limit + 1 == self.forgets_after_pages:
            self.forgets -= 1
            self._snapshots.clear()
        return {"metadata": metadata, "items": nodes[start : start + limit]}
