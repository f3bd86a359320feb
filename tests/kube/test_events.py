"""Events as an API server with RBAC takes them."""

from __future__ import annotations

import logging
import random
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from ipmasq_agent.agent import announcements, announcer
from ipmasq_agent.agent.announcer import Announcer
from ipmasq_agent.agent.status import ConfigStatus, Healed, Sighting, Status
from ipmasq_agent.answers.ports import PortLook
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.sources import ConfigMapName
from ipmasq_agent.sources.configmap import ConfigMapSource
from ipmasq_agent.sources.kube_api import KubeApi
from tests.deploy.manifests import DEPLOY
from tests.kube.cluster import NAME, NAMESPACE, Cluster, write_kubeconfig
from tests.kube.event_cluster import GROUP, EventCluster
from tests.unit.agent.support import Bench
from tests.waiting import wait_until

CONFIGMAP = ConfigMapName(NAMESPACE, NAME, "uid-1")
GOOD = Status(ConfigStatus("c", Sighting("1", "good", 0, (CONFIGMAP,)), accepted=True))
BAD = Status(ConfigStatus("c", Sighting("2", "bad", 0, (CONFIGMAP,)), refused="line 2: no CIDR"))
DRIFT = Healed("2026-01-01T00:00:00Z", "iptables-nft", Family.IPV4, (), ("-A IP-MASQ -j X",))


def granted() -> dict[str, frozenset[str]]:
    """Return what the roles of the component grant, by namespace."""
    roles = yaml.safe_load_all((DEPLOY / "components/events/role.yaml").read_text())
    found = {}
    for role in roles:
        (rule,) = role["rules"]
        assert (rule["apiGroups"], rule["resources"]) == ([GROUP], ["events"])
        found[role["metadata"]["namespace"]] = frozenset(rule["verbs"])
    return found


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announcer, "JITTER", 0.0)
    monkeypatch.setattr(announcements, "UPDATES", 0.05)


@pytest.fixture
def cluster() -> Iterator[EventCluster]:
    cluster = EventCluster(granted())
    yield cluster
    cluster.close()


class Nodes:
    """Announcers of some nodes."""

    def __init__(self, cluster: Cluster, place: Path) -> None:
        self.kubeconfig = str(write_kubeconfig(place / "kubeconfig", cluster.port))
        self._announcers: list[Announcer] = []

    def add(self, name: str = "node-1") -> Announcer:
        """Return the one of another node, or of an agent that was restarted."""
        new = Announcer(KubeApi(self.kubeconfig), name)
        self._announcers.append(new)
        return new

    def close(self) -> None:
        for each in self._announcers:
            each.stop(60.0)


@pytest.fixture
def nodes(cluster: EventCluster, tmp_path: Path) -> Iterator[Nodes]:
    nodes = Nodes(cluster, tmp_path)
    yield nodes
    nodes.close()


def drifted(times: int) -> Status:
    return replace(GOOD, heals=times, healed=(DRIFT,))


def test_an_agent_tells_what_becomes_of_its_document_and_its_rules(
    cluster: EventCluster, nodes: Nodes
) -> None:
    bench = Bench(announcer=nodes.add())
    source = ConfigMapSource(NAMESPACE, NAME, kubeconfig=nodes.kubeconfig)
    source.start(bench.agent.events.put)
    try:
        for text in ("nonMasqueradeCIDRs:\n- 10.0.0.0/8\n- nonsense\n", "masqLinkLocal: true\n"):
            version = cluster.put({"config": text})
            bench.turn_until(lambda: bench.agent.status.config.revision == version)  # noqa: B023
        bench.flush()
        bench.resync()
        cluster.wait_for(*[("create", 201)] * 3)
    finally:
        source.stop()
    told = {event["reason"]: event for event in cluster.events.values()}
    assert told.keys() == {"DocumentRefused", "DocumentAccepted", "RulesHealed"}
    assert "key config:3:3: " in told["DocumentRefused"]["note"]
    assert told["DocumentRefused"]["regarding"]["uid"] == "uid-1"
    assert version in told["DocumentAccepted"]["note"]
    assert told["RulesHealed"]["regarding"]["kind"] == "Node"


def test_refused_and_accepted_again(cluster: EventCluster, nodes: Nodes) -> None:
    node = nodes.add()
    for status in (GOOD, BAD, GOOD):
        node.see(status, PortLook())
    cluster.wait_for(("create", 201), ("create", 201))
    refused, accepted = cluster.events.values()
    assert (refused["type"], refused["reason"]) == ("Warning", "DocumentRefused")
    assert refused["note"].endswith("line 2: no CIDR")
    assert refused["regarding"]["uid"] == "uid-1"
    assert refused["reportingInstance"] == "node-1"
    assert (accepted["type"], accepted["reason"]) == ("Normal", "DocumentAccepted")


def test_what_many_nodes_say_of_one_document_is_one_event(
    cluster: EventCluster, nodes: Nodes
) -> None:
    for number in range(5):
        nodes.add(f"node-{number}").see(BAD, PortLook())
    wait_until(lambda: len(cluster.requests) == 5, "all nodes have told it")
    assert sorted(status for _, status in cluster.requests) == [201, 409, 409, 409, 409]
    assert len(cluster.events) == 1


def test_the_same_again_is_counted_in_the_series(cluster: EventCluster, nodes: Nodes) -> None:
    node = nodes.add()
    node.see(drifted(1), PortLook())
    cluster.wait_for(("create", 201))
    node.see(drifted(2), PortLook())
    cluster.wait_for(("create", 201), ("patch", 200))
    (event,) = cluster.events.values()
    assert event["metadata"]["namespace"] == "default"
    assert event["series"]["count"] == 2
    nodes.add().see(drifted(1), PortLook())  # an agent that was restarted
    cluster.wait_for(("create", 201), ("patch", 200), ("create", 409))


def test_an_event_that_has_expired_is_made_anew(cluster: EventCluster, nodes: Nodes) -> None:
    node = nodes.add()
    node.see(drifted(1), PortLook())
    cluster.wait_for(("create", 201))
    cluster.forget()
    node.see(drifted(2), PortLook())
    cluster.wait_for(("create", 201), ("patch", 404))
    node.see(drifted(3), PortLook())
    cluster.wait_for(("create", 201), ("patch", 404), ("create", 201))


def test_what_rbac_forbids_is_said_once_with_the_rule_and_not_tried_again(
    cluster: EventCluster, nodes: Nodes, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.granted = {}
    node = nodes.add()
    with caplog.at_level(logging.WARNING):
        for times in (1, 2, 3):
            node.see(drifted(times), PortLook())
        node.see(BAD, PortLook())
        cluster.wait_for(("create", 403), ("create", 403))
        nodes.close()
    (record,) = caplog.records
    error = record.__dict__["fields"]["error"]
    assert 'apiGroups: ["events.k8s.io"], resources: [events], verbs: [create, patch]' in error
    assert cluster.requests == [("create", 403), ("create", 403)]


@pytest.mark.parametrize("failing", [429, 500, None])
def test_what_cannot_be_written_now_is_written_later_with_its_count(
    cluster: EventCluster,
    nodes: Nodes,
    caplog: pytest.LogCaptureFixture,
    failing: int | None,
) -> None:
    cluster.failing = failing
    if failing is None:
        cluster.down()
    node = nodes.add()
    with caplog.at_level(logging.WARNING):
        for times in (1, 2, 3):
            node.see(drifted(times), PortLook())
        wait_until(lambda: bool(caplog.records), "that it fails is said")
    cluster.failing = None
    if failing is None:
        cluster.up()
    wait_until(lambda: cluster.counts == [3], "one Event, with its count")
    nodes.close()
    assert len(caplog.records) == 1


def test_agents_do_not_write_at_once_and_one_that_stops_does_not_wait(
    cluster: EventCluster, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announcer, "JITTER", 1e6)
    monkeypatch.setattr(random, "uniform", lambda low, high: (low + high) / 2)
    node = nodes.add()
    node.see(BAD, PortLook())
    wait_until(lambda: node._waiting.empty(), "the thread has it")
    node.stop(60.0)
    assert not node._thread.alive
    assert cluster.requests == []


def test_neither_to_see_nor_to_stop_waits_for_a_server_that_hangs(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", silent.getsockname()[1])
        node = Announcer(KubeApi(str(kubeconfig)), "node-1")
        node.see(drifted(1), PortLook())
        connection, _ = silent.accept()  # it waits for an answer from now on
        for times in range(2, 1000):
            node.see(drifted(times), PortLook())
        node.stop(0.0)
        assert node._thread.alive
        assert node._waiting.full()
        connection.close()
    node.stop(60.0)
    assert not node._thread.alive
