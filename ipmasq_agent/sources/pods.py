"""Whose addresses are whose: the names of pods, of this node's from the API, or of a file's."""

from __future__ import annotations

import json
from pathlib import Path

from ipmasq_agent.errors import MALFORMED, SourceError
from ipmasq_agent.policy.addresses import Family, parse_address
from ipmasq_agent.sources.kube_access import Permission
from ipmasq_agent.sources.kube_list import JsonObject, Objects, read_once

Names = dict[tuple[Family, int], str]
"""Address → NAMESPACE/NAME. Pods of the host's network have none of their own."""


def pods_of_node(node: str, kubeconfig: str | None = None) -> Names:
    """Return the names of the pods of a node, as the API has them now.

    Raises:
        SourceError: they cannot be had.
    """
    found = read_once(wanted_of(node), kubeconfig).value
    return {address: name for names in found.values() for address, name in names.items()}


def wanted_of(node: str) -> Objects[Names]:
    """Return the pods of a node."""
    return Objects(
        *("pods", "/api/v1/pods", "the pods of this node", Permission("pods", verbs=("list",))),
        _names,
        {"fieldSelector": f"spec.nodeName={node}"},
        page=500,
        keys=frozenset({"spec", "hostNetwork", "status", "podIPs", "ip", "phase"}),
    )


def pods_of_file(path: str) -> Names:
    """Return the names of a file: what `kubectl get pods -A -o json` prints, or lines.

    A line has an address and NAMESPACE/NAME; what follows a ``#`` is a comment.

    Raises:
        SourceError: it cannot be read.
    """
    try:
        text = Path(path).read_text()
        if text.lstrip().startswith("{"):
            pods = map(_names, json.loads(text)["items"])
            return {address: name for names in pods for address, name in names.items()}
        lines = (line.partition("#")[0].split() for line in text.splitlines())
        return {parse_address(words[0]): words[1] for words in lines if words}
    except (OSError, IndexError, *MALFORMED) as cause:
        raise SourceError(
            f"the pods of {path} cannot be read: {cause}",
            remedy="give it what `kubectl get pods -A -o json` prints, or lines like "
            "`172.20.0.5 default/client`",
        ) from cause


def _names(pod: JsonObject) -> Names:
    status = pod.get("status") or {}
    # The addresses of one that has ended may be another's by now.
    if (pod.get("spec") or {}).get("hostNetwork") or status.get("phase") in ("Succeeded", "Failed"):
        return {}
    name = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
    return {parse_address(entry["ip"]): name for entry in status.get("podIPs") or ()}
