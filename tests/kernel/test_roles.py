"""Agents with exactly the roles that deploy/ binds to them, at an API server that enforces them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kmock
import pytest

from tests.deploy.manifests import API, FILE, NODES, container, objects, with_components
from tests.kernel.pins import PINS
from tests.kernel.running import Running
from tests.kube.cluster import write_kubeconfig
from tests.kube.event_cluster import GROUP
from tests.kube.node_cluster import NodeCluster, node_object
from tests.netns import Namespace
from tests.waiting import DEADLINE, wait_until

PLAIN = "nonMasqueradeCIDRs: [10.0.0.0/8]\n"
OF_NODES = "nonMasqueradeCIDRs: [10.0.0.0/8]\nexemptNodeIPs: true\npodCIDRs: auto\n"


class Guarded(NodeCluster):
    """An API server whose roles are those of a rendered directory."""

    def __init__(self, variant: str) -> None:
        self._roles = [item for item in objects(variant) if item["kind"].endswith("Role")]
        self.allowed: set[tuple[str, str]] = set()
        self.refused: set[tuple[str, str]] = set()
        self.events: dict[str, dict[str, Any]] = {}
        super().__init__()

    async def _prepare(self) -> kmock.KubernetesScaffold:
        handler = await super()._prepare()
        handler["create", kmock.resource(GROUP, "v1", "events")] << self._create
        return handler

    async def _create(self, request: kmock.Request) -> dict[str, Any]:
        await self._admit("create", request)
        event: dict[str, Any] = json.loads(request.body)
        self.events[event["reason"]] = event
        return event

    def _authorise(self, request: kmock.Request) -> None:
        """Decide as RBAC does: of lists and watches the field selector tells the name."""
        verb, resource = request.action, request.resource
        assert verb is not None
        assert resource is not None
        asked = (str(verb.value).lower(), str(resource.plural))
        if any(self._grants(role, request, *asked) for role in self._roles):
            self.allowed.add(asked)
            return
        self.refused.add(asked)
        who = "system:serviceaccount:kube-system:ipmasq-agent"
        raise kmock.KubernetesError(
            status=403, reason="Forbidden", message=f'User "{who}" cannot {" ".join(asked)}'
        )

    def _grants(self, role: dict[str, Any], request: kmock.Request, verb: str, plural: str) -> bool:
        if role["kind"] == "Role" and role["metadata"]["namespace"] != request.namespace:
            return False
        selected = request.params.get("fieldSelector", "")
        name = request.name or selected.removeprefix("metadata.name=")
        return any(
            verb in rule["verbs"]
            and plural in rule["resources"]
            and request.resource is not None
            and (request.resource.group or "") in rule["apiGroups"]
            and name in rule.get("resourceNames", [name])
            for rule in role["rules"]
        )


class Place:
    """Where an agent of a rendered DaemonSet runs."""

    def __init__(self, work: Path, run: Callable[..., Running]) -> None:
        self._work, self._run = work, run
        self.servers: list[Guarded] = []

    def roll_out(self, variant: str, document: str) -> tuple[Running, Guarded]:
        """Start the agent as its container has it, but with credentials that lead to our server."""
        server = Guarded(variant)
        self.servers.append(server)
        server.join(node_object("worker", cidrs=("10.1.0.0/24",), InternalIP="192.168.10.100"))
        server.put({"config": document})
        (self._work / "document").write_text(document)
        spec = container(variant)
        environment = {one["name"]: one.get("value", "worker") for one in spec["env"]}
        # Paths of the container, and of the kubelet's mounts.
        environment |= {
            "IPMASQ_KUBECONFIG": str(write_kubeconfig(self._work / "kubeconfig", server.port)),
            "IPMASQ_STATE_DIR": str(self._work / "state"),
        }
        del environment[PINS]
        if variant == FILE:
            environment["IPMASQ_CONFIG"] = str(self._work / "document")
        under = ["env", *(f"{name}={value}" for name, value in environment.items())]
        return self._run(*spec["args"], under=under), server


@pytest.fixture
def place(in_ns: Namespace, tmp_path: Path, run: Callable[..., Running]) -> Iterator[Place]:
    in_ns.lead_out()
    made = Place(tmp_path, run)
    yield made
    for server in made.servers:
        server.close()


READ = {("list", "configmaps"), ("watch", "configmaps")}
READ_NODES = {("list", "nodes"), ("watch", "nodes")}


@pytest.mark.parametrize(
    ("variant", "document", "asked"),
    [(API, PLAIN, READ), (NODES, OF_NODES, READ | READ_NODES), (FILE, PLAIN, set())],
    ids=["api", "nodes", "file"],
)
def test_the_roles_of_an_overlay_are_enough_and_nothing_else_is_asked_for(
    place: Place, variant: str, document: str, asked: set[tuple[str, str]]
) -> None:
    agent, server = place.roll_out(variant, document)
    agent.wait_ready()
    wait_until(lambda: server.allowed == asked, "all is asked for")
    if asked:
        server.put({"config": document.replace("10.0.0.0/8", "198.18.0.0/15")})
        wait_until(lambda: agent.log.read_text().count('"rules applied"') >= 2, "followed")
    assert server.refused == set()


def test_without_the_role_for_nodes_a_document_that_needs_it_says_how_to_grant_it(
    place: Place,
) -> None:
    agent, server = place.roll_out(API, OF_NODES)
    wait_until(lambda: "clusterrole ipmasq-agent-nodes" in agent.get("/readyz")[1], "told")
    assert agent.get("/readyz")[0] == 503
    assert server.refused <= READ_NODES
    assert server.allowed == READ


@pytest.mark.long
def test_with_the_roles_for_events_an_agent_tells_of_its_document_and_its_node(
    place: Place, tmp_path: Path
) -> None:
    """Long for its wait: agents spread what they write over half a minute."""
    agent, server = place.roll_out(with_components(tmp_path, "", "events"), PLAIN)
    agent.wait_ready()
    server.put({"config": PLAIN.replace("10.0.0.0/8", "10.0.0.1/8")})
    wait_until(lambda: agent.status()["config"]["accepted"] is False, "the refusal")
    subprocess.run(["iptables-nft", "-t", "nat", "-F", "IP-MASQ"], check=True)
    both = {"DocumentRefused", "RulesHealed"}
    wait_until(lambda: server.events.keys() >= both, "told", 3 * DEADLINE)
    refused, healed = server.events["DocumentRefused"], server.events["RulesHealed"]
    assert "did you mean 10.0.0.0/8?" in refused["note"]
    assert (refused["regarding"]["kind"], healed["regarding"]["kind"]) == ("ConfigMap", "Node")
    assert {event["reportingInstance"] for event in server.events.values()} == {"worker"}
    assert server.allowed == READ | {("create", "events")}
    assert server.refused == set()
    assert agent.stop() == 0
