"""Names of pods, of an API over HTTP or of a file."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from ipmasq_agent.errors import AccessDenied, SourceError
from ipmasq_agent.policy.addresses import Family, parse_address
from ipmasq_agent.sources.pods import pods_of_file, pods_of_node
from tests.kube.cluster import write_kubeconfig


def pod(name: str, *addresses: str, phase: str = "Running", host: bool = False) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": "shop", "labels": {"name": "another"}},
        "spec": {"hostNetwork": True} if host else {"containers": [{"name": "app"}]},
        "status": {"phase": phase, "podIPs": [{"ip": address} for address in addresses]},
    }


PODS = [
    pod("web", "172.20.0.5", "fd00::5"),
    pod("proxy", "192.0.2.1", host=True),
    pod("job", "172.20.0.6", phase="Succeeded"),
    pod("next", "172.20.0.6"),
    pod("late", phase="Pending"),
]
NAMES = {
    (Family.IPV4, parse_address("172.20.0.5")[1]): "shop/web",
    (Family.IPV6, parse_address("fd00::5")[1]): "shop/web",
    (Family.IPV4, parse_address("172.20.0.6")[1]): "shop/next",
}


class Api(ThreadingHTTPServer):
    """Lists pods, two to a page, for those who ask for one node's; or refuses."""

    refuses = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)


class Answer(BaseHTTPRequestHandler):
    server: Api

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        mine = query.get("fieldSelector") == ["spec.nodeName=node-a"]
        begin = int(query.get("continue", ["0"])[0])
        more = {"continue": str(begin + 2)} if begin + 2 < len(PODS) else {}
        answer: dict[str, Any] = {
            "metadata": {"resourceVersion": "7", **more},
            "items": PODS[begin : begin + 2],
        }
        status = 200 if url.path == "/api/v1/pods" and mine else 404
        if self.server.refuses:
            status, answer = 403, {"message": "pods is forbidden: User cannot list pods"}
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: Any) -> None:
        """Say nothing."""


@pytest.fixture
def api() -> Iterator[Api]:
    server = Api()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_pods_of_a_node_are_listed_page_by_page(api: Api, tmp_path: Path) -> None:
    kubeconfig = str(write_kubeconfig(tmp_path / "kubeconfig", api.server_port))
    assert pods_of_node("node-a", kubeconfig) == NAMES


def test_who_may_not_list_them_is_told_what_to_grant(api: Api, tmp_path: Path) -> None:
    api.refuses = True
    kubeconfig = str(write_kubeconfig(tmp_path / "kubeconfig", api.server_port))
    with pytest.raises(AccessDenied) as refused:
        pods_of_node("node-a", kubeconfig)
    assert "--resource=pods" in str(refused.value.remedy)


def test_a_file_has_what_kubectl_prints_or_lines(tmp_path: Path) -> None:
    path = tmp_path / "pods"
    path.write_text(json.dumps({"kind": "List", "items": PODS}))
    assert pods_of_file(str(path)) == NAMES
    lines = "172.20.0.5 shop/web # the first", "", "fd00::5\tshop/web", "172.20.0.6 shop/next"
    path.write_text("\n".join(("# ours", *lines)))
    assert pods_of_file(str(path)) == NAMES


@pytest.mark.parametrize("text", ["web", "172.20.0.5", "{", "{}", '{"items": [1]}'])
def test_a_file_of_anything_else_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "pods"
    path.write_text(text)
    with pytest.raises(SourceError, match="cannot be read"):
        pods_of_file(str(path))
    with pytest.raises(SourceError, match="cannot be read"):
        pods_of_file(str(tmp_path / "none"))
