"""A Kubernetes API of Nodes and their Pods: as much of it as an agent and its verbs ask for.

    python -m ipmasq_agent.lab.api

Lists with paging, and watches with bookmarks, over plain HTTP on port 6443 of every
address; the protocol is that of kubernetes.io/docs/reference/using-api/api-concepts.
Orders come as lines of JSON on standard input: a node joins, or is another now. Standard
library only; it must start fast.
"""

from __future__ import annotations

import json
import signal
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

PORT = 6443
PATH = "/api/v1/nodes"
PODS_PATH = "/api/v1/pods"
_BOOKMARK = 10.0
_PAGE = 500


class Nodes:
    """The collection, and each of its changes by resourceVersion."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._nodes: dict[str, dict[str, Any]] = {}
        self._pods: dict[str, dict[str, list[str]]] = {}
        self._history: list[tuple[int, str, dict[str, Any]]] = []
        self._version = 1

    def put(
        self,
        name: str,
        addresses: list[str],
        pod_cidrs: list[str],
        pods: dict[str, list[str]] | None = None,
    ) -> None:
        """Add a node with its pods and their addresses, or replace the one of that name."""
        with self._changed:
            self._pods[name] = pods or {}
            self._version += 1
            kind = "MODIFIED" if name in self._nodes else "ADDED"
            node = node_object(name, addresses, pod_cidrs, self._version)
            self._nodes[name] = node
            self._history.append((self._version, kind, node))
            self._changed.notify_all()

    def page(self, limit: int, after: str, only: str | None) -> dict[str, Any]:
        """Return a page of the nodes, in the order of their names, as a NodeList."""
        with self._changed:
            names = [n for n in sorted(self._nodes) if n > after and only in (None, n)]
            page, rest = names[:limit], names[limit:]
            metadata: dict[str, Any] = {"resourceVersion": str(self._version)}
            if rest:
                metadata |= {"continue": page[-1], "remainingItemCount": len(rest)}
            return {
                "kind": "NodeList",
                "apiVersion": "v1",
                "metadata": metadata,
                "items": [self._nodes[name] for name in page],
            }

    def pods(self, only: str) -> dict[str, Any]:
        """Return the pods of a node, or of all, as a PodList."""
        with self._changed:
            return {
                "kind": "PodList",
                "apiVersion": "v1",
                "metadata": {"resourceVersion": str(self._version)},
                "items": [
                    {
                        "metadata": {"namespace": "default", "name": pod},
                        "spec": {"nodeName": node},
                        "status": {"phase": "Running", "podIPs": [{"ip": ip} for ip in addresses]},
                    }
                    for node, pods in sorted(self._pods.items())
                    for pod, addresses in pods.items()
                    if only in ("", node)
                ],
            }

    def changes(self, after: int, timeout: float) -> tuple[int, list[tuple[str, dict[str, Any]]]]:
        """Return the changes after a version, and the version now; none after ``timeout``."""
        with self._changed:
            self._changed.wait_for(lambda: self._version > after, timeout)
            news = [(kind, node) for version, kind, node in self._history if version > after]
            return self._version, news


def node_object(
    name: str, addresses: list[str], pod_cidrs: list[str], version: int
) -> dict[str, Any]:
    """Return a Node, as far as it bears on the network."""
    internal = [{"type": "InternalIP", "address": address} for address in addresses]
    return {
        "kind": "Node",
        "apiVersion": "v1",
        "metadata": {"name": name, "resourceVersion": str(version)},
        "spec": {"podCIDR": pod_cidrs[0], "podCIDRs": pod_cidrs},
        "status": {"addresses": [*internal, {"type": "Hostname", "address": name}]},
    }


class Handler(BaseHTTPRequestHandler):
    """Answers GET on the collection, and on one node by its name."""

    protocol_version = "HTTP/1.1"
    nodes: Nodes
    bookmark: float

    def do_GET(self) -> None:
        """List, watch, or show one."""
        url = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        field, _, only = query.get("fieldSelector", "").partition("=")
        if url.path == PODS_PATH and field in ("", "spec.nodeName"):
            self._answer(200, self.nodes.pods(only))
        elif field not in ("", "metadata.name"):
            self._answer(400, _status(400, f"field label not supported: {field}"))
        elif url.path.startswith(f"{PATH}/"):
            found = self.nodes.page(1, "", url.path.removeprefix(f"{PATH}/"))["items"]
            missing = _status(404, "the node was not found")
            self._answer(200 if found else 404, found[0] if found else missing)
        elif url.path != PATH:
            self._answer(404, _status(404, f"there are only {PATH} and {PODS_PATH} here"))
        elif query.get("watch") in ("1", "true"):
            self._watch(query, only or None)
        else:
            limit = int(query.get("limit") or _PAGE)
            self._answer(200, self.nodes.page(limit, query.get("continue", ""), only or None))

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _watch(self, query: dict[str, str], only: str | None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        version = int(query.get("resourceVersion") or 0)
        end = time.monotonic() + float(query.get("timeoutSeconds") or 300)
        try:
            while (left := end - time.monotonic()) > 0:
                version, news = self.nodes.changes(version, min(left, self.bookmark))
                for kind, node in news:
                    if only in (None, node["metadata"]["name"]):
                        self._event(kind, node)
                if not news and "allowWatchBookmarks" in query:
                    mark = {"resourceVersion": str(version)}
                    bookmark = {"kind": "Node", "apiVersion": "v1", "metadata": mark}
                    self._event("BOOKMARK", bookmark)
            self._chunk(b"")
        except ConnectionError:
            self.close_connection = True  # who watched has left

    def _event(self, kind: str, node: dict[str, Any]) -> None:
        self._chunk(json.dumps({"type": kind, "object": node}).encode() + b"\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def log_message(self, *_: object) -> None:
        """Stay silent."""


def _status(code: int, message: str) -> dict[str, Any]:
    return {"kind": "Status", "apiVersion": "v1", "code": code, "message": message}


class Server(ThreadingHTTPServer):
    """Serves IPv4 and IPv6, as bindv6only is 0."""

    address_family = socket.AF_INET6
    daemon_threads = True


def serve(
    nodes: Nodes, address: str = "::", port: int = PORT, bookmark: float = _BOOKMARK
) -> Server:
    """Serve the nodes from now on, in threads.

    Args:
        nodes: what there is to serve.
        address: an IPv6 one; ``::`` for all, in IPv4 too.
        port: 0 for any that is free.
        bookmark: seconds of silence after which a watch is told how far it has come.
    """
    handler = type("NodesHandler", (Handler,), {"nodes": nodes, "bookmark": bookmark})
    server = Server((address, port), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def main() -> None:
    """Take orders, and serve on when nobody gives any more."""
    nodes = Nodes()
    serve(nodes)
    print(json.dumps({"ready": "api"}), flush=True)
    for line in sys.stdin:
        nodes.put(**json.loads(line))
        print(json.dumps({"done": True}), flush=True)
    signal.pause()


def kubeconfig(address: str) -> str:
    """Return a kubeconfig for the API at an address, as text: JSON, which is YAML too."""
    host = f"[{address}]" if ":" in address else address
    named = {
        "clusters": [{"name": "lab", "cluster": {"server": f"http://{host}:{PORT}"}}],
        "users": [{"name": "lab", "user": {}}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
    }
    head = {"apiVersion": "v1", "kind": "Config", "current-context": "lab"}
    return json.dumps(head | named, indent=2)


if __name__ == "__main__":
    main()
