"""The lab's Kubernetes API answers as the protocol has it."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from ipmasq_agent.lab.api import Nodes, kubeconfig, serve


@pytest.fixture
def nodes() -> Nodes:
    nodes = Nodes()
    for number in (2, 1, 3):
        nodes.put(f"n{number}", [f"192.0.2.{number}"], [f"10.{number}.0.0/24"])
    return nodes


@pytest.fixture
def client(nodes: Nodes) -> Iterator[http.client.HTTPConnection]:
    server = serve(nodes, "::1", 0, bookmark=0.05)
    client = http.client.HTTPConnection("::1", server.server_address[1], timeout=10)
    yield client
    client.close()
    server.shutdown()
    server.server_close()


def get(client: http.client.HTTPConnection, path: str) -> tuple[int, dict[str, Any]]:
    client.request("GET", path)
    with client.getresponse() as response:
        answer: dict[str, Any] = json.loads(response.read())
        return response.status, answer


def names(answer: dict[str, Any]) -> list[str]:
    return [item["metadata"]["name"] for item in answer["items"]]


def test_a_list_comes_in_pages(client: http.client.HTTPConnection) -> None:
    _, first = get(client, "/api/v1/nodes?limit=2")
    assert (first["kind"], names(first)) == ("NodeList", ["n1", "n2"])
    _, second = get(client, f"/api/v1/nodes?limit=2&continue={first['metadata']['continue']}")
    assert names(second) == ["n3"]
    assert "continue" not in second["metadata"]
    assert first["metadata"]["resourceVersion"] == second["metadata"]["resourceVersion"]
    node = second["items"][0]
    assert node["spec"]["podCIDRs"] == ["10.3.0.0/24"]
    assert {"type": "InternalIP", "address": "192.0.2.3"} in node["status"]["addresses"]


def test_one_node_can_be_asked_for(client: http.client.HTTPConnection) -> None:
    assert names(get(client, "/api/v1/nodes?fieldSelector=metadata.name%3Dn2")[1]) == ["n2"]
    assert get(client, "/api/v1/nodes/n2")[1]["metadata"]["name"] == "n2"
    assert get(client, "/api/v1/nodes/n9")[0] == 404
    assert get(client, "/api/v1/services")[1]["code"] == 404
    assert get(client, "/api/v1/nodes?fieldSelector=spec.x%3D1")[0] == 400


def test_a_watch_tells_changes_from_a_version_on_and_how_far_it_has_come(
    client: http.client.HTTPConnection, nodes: Nodes
) -> None:
    version = get(client, "/api/v1/nodes")[1]["metadata"]["resourceVersion"]
    nodes.put("n4", ["192.0.2.4"], ["10.4.0.0/24"])
    query = f"watch=true&allowWatchBookmarks=true&resourceVersion={version}&timeoutSeconds=300"
    client.request("GET", f"/api/v1/nodes?{query}")
    with client.getresponse() as response:
        joined = json.loads(response.readline())
        assert (joined["type"], joined["object"]["metadata"]["name"]) == ("ADDED", "n4")
        mark = json.loads(response.readline())
        assert mark["type"] == "BOOKMARK"
        assert mark["object"]["metadata"]["resourceVersion"] == str(int(version) + 1)
        nodes.put("n4", ["192.0.2.5"], ["10.4.0.0/24"])
        kinds = iter(lambda: json.loads(response.readline())["type"], "MODIFIED")
        assert set(kinds) <= {"BOOKMARK"}


def test_a_watch_ends_when_it_was_asked_to(client: http.client.HTTPConnection) -> None:
    client.request("GET", "/api/v1/nodes?watch=1&resourceVersion=9&timeoutSeconds=0.01")
    with client.getresponse() as response:
        assert response.read() == b""


def test_a_kubeconfig_leads_to_the_api() -> None:
    for address, url in (
        ("192.0.2.1", "http://192.0.2.1:6443"),
        ("2001:db8::1", "http://[2001:db8::1]:6443"),
    ):
        config = yaml.safe_load(kubeconfig(address))
        assert config["clusters"][0]["cluster"]["server"] == url
        assert config["current-context"] == config["contexts"][0]["name"]


def test_pods_are_told_by_their_node(nodes: Nodes, client: http.client.HTTPConnection) -> None:
    nodes.put("n1", ["192.0.2.1"], ["10.1.0.0/24"], {"client": ["10.1.0.5", "fd00::5"]})
    nodes.put("n2", ["192.0.2.2"], ["10.2.0.0/24"], {"server": ["10.2.0.5"]})
    _, found = get(client, "/api/v1/pods?fieldSelector=spec.nodeName%3Dn1")
    assert (found["kind"], names(found)) == ("PodList", ["client"])
    assert found["items"][0]["status"]["podIPs"] == [{"ip": "10.1.0.5"}, {"ip": "fd00::5"}]
    assert names(get(client, "/api/v1/pods")[1]) == ["client", "server"]
