"""Whose addresses are whose: the names of pods, of this node's from the API, or of a file's."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ipmasq_agent.errors import MALFORMED, SourceError
from ipmasq_agent.policy.addresses import Family, parse_address
from ipmasq_agent.sources.kube_access import Permission, explained
from ipmasq_agent.sources.kube_api import ApiRefusal, KubeApi
from ipmasq_agent.sources.kube_list import JsonObject, list_all

Names = dict[tuple[Family, int], str]
"""Address → NAMESPACE/NAME. Pods of the host's network have none of their own."""


class _PodsOfNode:
    """A view of the pods of one node."""

    name = "pods"
    page = 500
    keeps = frozenset(
        {"name", "namespace", "spec", "hostNetwork", "status", "podIPs", "ip", "phase"}
    )

    def __init__(self, node: str) -> None:
        self.query = {"fieldSelector": f"spec.nodeName={node}"}

    def listed(self, objects: Iterator[JsonObject]) -> Names:
        return _names(objects)


def pods_of_node(node: str, kubeconfig: str | None = None) -> Names:
    """Return the names of the pods of a node, as the API has them now.

    Raises:
        SourceError: they cannot be had.
    """
    api = KubeApi(kubeconfig)
    try:
        return list_all(api, "/api/v1/pods", _PodsOfNode(node)).value
    except ApiRefusal as refusal:
        permission = Permission("pods", verbs=("list",))
        raise explained(refusal, api, "the pods of this node", permission) from refusal
    finally:
        api.close()


def pods_of_file(path: str) -> Names:
    """Return the names of a file: what `kubectl get pods -A -o json` prints, or lines.

    A line has an address and NAMESPACE/NAME; what follows a ``#`` is a comment.

    Raises:
        SourceError: it cannot be read.
    """
    try:
        text = Path(path).read_text()
        if text.lstrip().startswith("{"):
            return _names(json.loads(text)["items"])
        lines = (line.partition("#")[0].split() for line in text.splitlines())
        return {parse_address(words[0]): words[1] for words in lines if words}
    except (OSError, IndexError, *MALFORMED) as cause:
        raise SourceError(
            f"the pods of {path} cannot be read: {cause}",
            remedy="give it what `kubectl get pods -A -o json` prints, or lines like "
            "`172.20.0.5 default/client`",
        ) from cause


def _names(pods: Iterable[dict[str, Any]]) -> Names:
    names: Names = {}
    for pod in pods:
        status = pod.get("status") or {}
        # The addresses of one that has ended may be another's by now.
        if (pod.get("spec") or {}).get("hostNetwork") or status.get("phase") in _ENDED:
            continue
        name = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
        for entry in status.get("podIPs") or ():
            names[parse_address(entry["ip"])] = name
    return names


_ENDED = frozenset({"Succeeded", "Failed"})
