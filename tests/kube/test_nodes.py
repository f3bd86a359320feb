"""Node addresses and pod CIDRs from a Kubernetes API over HTTP."""

from __future__ import annotations

import ipaddress
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from ipmasq_agent.errors import AccessDenied, SourceError, SourceUnavailable
from ipmasq_agent.policy.addresses import parse_address
from ipmasq_agent.policy.facts import (
    ADDRESSES,
    HOOKS,
    LINKS,
    NODE_ADDRESSES,
    OWN_POD_CIDRS,
    ROUTES,
    Fact,
)
from ipmasq_agent.sources import Learnt, nodes
from ipmasq_agent.sources.facts import HostAndCluster
from tests.kube.cluster import DEADLINE, write_kubeconfig
from tests.kube.node_cluster import NodeCluster, node_object
from tests.unit.agent.support import Bench
from tests.unit.sources.told import Told

NODES, OWN = NODE_ADDRESSES, OWN_POD_CIDRS
FORBIDDEN = (
    'nodes is forbidden: User "system:serviceaccount:kube-system:masq" cannot list '
    'resource "nodes" in API group "" at the cluster scope'
)


@pytest.fixture
def cluster() -> Iterator[NodeCluster]:
    cluster = NodeCluster()
    yield cluster
    cluster.close()


@pytest.fixture
def source(cluster: NodeCluster, tmp_path: Path) -> Iterator[HostAndCluster]:
    path = write_kubeconfig(tmp_path / "kubeconfig", cluster.port)
    source = HostAndCluster(kubeconfig=str(path), node="node-a")
    yield source
    source.stop()


class Watching(Protocol):
    def __call__(self, *needs: Fact[Any]) -> Told: ...


@pytest.fixture
def watching(source: HostAndCluster) -> Watching:
    def watch(*needs: Fact[Any]) -> Told:
        told = Told()
        source.start(told)
        source.require(frozenset(needs))
        return told

    return watch


def set_of(*texts: str) -> frozenset[object]:
    return frozenset(map(parse_address, texts))


def many(first: int, last: int, *, bulk: int = 0) -> list[dict[str, object]]:
    """Return nodes with one address each."""
    base = int(ipaddress.IPv4Address("192.168.0.0"))
    return [
        node_object(f"node{n}", bulk=bulk, InternalIP=str(ipaddress.IPv4Address(base + n)))
        for n in range(first, last)
    ]


# Addresses


def followed(cluster: NodeCluster, watching: Watching, count: int) -> Told:
    """Return what hears of nodes, once it knows so many of them and their watch is open."""
    cluster.join(*many(0, count))
    told = watching(NODES)
    told.value(NODES, lambda value: len(value) == count)
    cluster.wait_for_watch()
    return told


def test_internal_and_external_addresses_of_both_families_are_told(
    cluster: NodeCluster, watching: Watching
) -> None:
    node = node_object(
        "node-a", InternalIP="192.0.2.1", ExternalIP="203.0.113.1", Hostname="192.0.2.99"
    )
    node["status"]["addresses"].append({"type": "InternalIP", "address": "2001:db8::1"})
    cluster.join(node, node_object("node-b", InternalIP="192.0.2.2", InternalDNS="b.example"))
    told = watching(NODES)
    expected = set_of("192.0.2.1", "203.0.113.1", "2001:db8::1", "192.0.2.2")
    told.value(NODES, lambda value: value == expected)


def test_nodes_that_come_change_and_go_are_told(cluster: NodeCluster, watching: Watching) -> None:
    told = watching(NODES)
    told.value(NODES, lambda value: value == frozenset())
    cluster.wait_for_watch()
    cluster.join(node_object("node-a", InternalIP="192.0.2.1"))
    told.value(NODES, lambda value: value == set_of("192.0.2.1"))
    cluster.join(node_object("node-a", InternalIP="192.0.2.7", ExternalIP="203.0.113.7"))
    told.value(NODES, lambda value: value == set_of("192.0.2.7", "203.0.113.7"))
    cluster.leave("node-a")
    told.value(NODES, lambda value: value == frozenset())


def test_a_report_that_changes_no_address_wakes_nobody(
    cluster: NodeCluster, watching: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tell each change by itself.
    monkeypatch.setattr(nodes, "QUIET", 0)
    monkeypatch.setattr(nodes, "LATE", 0)
    told = followed(cluster, watching, 3)
    for _ in range(50):
        cluster.join(*many(0, 3))
    cluster.join(*many(3, 4))
    told.value(NODES, lambda value: len(value) == 4)
    assert len(told.events) == 2


def test_an_address_that_is_none_is_left_out(
    cluster: NodeCluster, watching: Watching, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.join(node_object("node-a", InternalIP="not-an-address", ExternalIP="203.0.113.1"))
    told = watching(NODES)
    told.value(NODES, lambda value: value == set_of("203.0.113.1"))
    assert "'not-an-address'" in caplog.text


def test_an_address_without_a_type_or_a_text_is_left_out(
    cluster: NodeCluster, watching: Watching
) -> None:
    told = watching(NODES)
    told.value(NODES, lambda value: value == frozenset())
    cluster.wait_for_watch()
    node = node_object("node-a", ExternalIP="203.0.113.1")
    node["status"]["addresses"] += [{"address": "192.0.2.9"}, {"type": "InternalIP"}]
    cluster.join(node)
    told.value(NODES, lambda value: value == set_of("203.0.113.1"))


@pytest.mark.parametrize("bad", ["192.0.2.1", 7, [{"type": "InternalIP"}, "x"]])
def test_a_node_in_another_form_is_told_and_the_watch_lives_on(
    cluster: NodeCluster, watching: Watching, bad: object
) -> None:
    told = watching(NODES)
    told.value(NODES, lambda value: value == frozenset())
    cluster.wait_for_watch()
    node = node_object("node-a")
    node["status"]["addresses"] = bad
    cluster.join(node)
    told.failure(NODES, "last heard of at")
    cluster.join(node_object("node-a", InternalIP="192.0.2.1"))
    told.value(NODES, lambda value: value == set_of("192.0.2.1"))


# In force


def test_losing_the_watch_of_the_nodes_is_told_at_once_and_no_longer_than_it_is_lost(
    cluster: NodeCluster, source: HostAndCluster
) -> None:
    cluster.join(node_object("node-a", InternalIP="192.0.2.1"))
    bench = Bench(fact_source=source)
    source.start(bench.agent.events.put)
    bench.document("exemptNodeIPs: true\nnonMasqueradeCIDRs: [10.0.0.0/8]")
    bench.turn_until(lambda: bench.agent.status.ready)
    cluster.wait_for_watch()
    cluster.refusals.update({"list": (403, FORBIDDEN), "watch": (403, FORBIDDEN)})
    cluster.break_watches()
    bench.turn_until(lambda: not bench.agent.status.ready)
    why = bench.agent.status.why_not_ready()
    assert why.startswith("the addresses of the cluster's nodes cannot be followed, those of befo")
    assert "kubectl create clusterrole ipmasq-agent-nodes" in why
    assert "192.0.2.1/32" in bench.chain()
    bench.flush()
    bench.resync()
    assert "192.0.2.1/32" in bench.chain(), "what was learnt is kept healed"
    cluster.refusals.clear()
    cluster.join(node_object("node-b", InternalIP="192.0.2.2"))
    bench.turn_until(lambda: bench.agent.status.ready)
    bench.turn_until(lambda: "192.0.2.2/32" in bench.chain())


# Lists


def test_lists_are_asked_for_page_by_page(cluster: NodeCluster, watching: Watching) -> None:
    cluster.join(*many(0, 2 * nodes.PAGE + 1))
    told = watching(NODES)
    told.value(NODES, lambda value: len(value) == 2 * nodes.PAGE + 1)
    calls = cluster.asked("list")
    assert [call.params["limit"] for call in calls] == [str(nodes.PAGE)] * 3
    assert [("continue" in call.params) for call in calls] == [False, True, True]


def test_a_list_whose_rest_was_forgotten_is_begun_anew(
    cluster: NodeCluster, watching: Watching
) -> None:
    cluster.forgets_after_pages, cluster.forgets = 2, 1
    cluster.join(*many(0, 3 * nodes.PAGE))
    told = watching(NODES)
    told.value(NODES, lambda value: len(value) == 3 * nodes.PAGE)
    assert len(cluster.asked("list")) == 3 + 3
    assert len(told.events) == 1


def test_a_list_that_is_asked_for_once_is_begun_anew_too(
    cluster: NodeCluster, source: HostAndCluster
) -> None:
    cluster.forgets_after_pages, cluster.forgets = 2, 2
    cluster.join(*many(0, 3 * nodes.PAGE))
    found = source.gather(frozenset({NODES})).get(NODES)
    assert len(found or ()) == 3 * nodes.PAGE


def test_a_list_that_is_always_forgotten_is_tried_until_it_is_not(
    cluster: NodeCluster, watching: Watching
) -> None:
    cluster.forgets_after_pages, cluster.forgets = 1, 10
    cluster.join(*many(0, 2 * nodes.PAGE))
    told = watching(NODES)
    told.value(NODES, lambda value: len(value) == 2 * nodes.PAGE)


def test_what_joins_while_pages_are_asked_for_is_not_missed(
    cluster: NodeCluster, watching: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.join(*many(0, 3 * nodes.PAGE))
    joining = iter([many(1000, 1001)])
    original = nodes.addresses_of

    def join_meanwhile(node: dict[str, object]) -> object:
        for more in joining:
            cluster.join(*more)
        return original(node)

    monkeypatch.setattr(nodes, "addresses_of", join_meanwhile)
    told = watching(NODES)
    told.value(NODES, lambda value: len(value) == 3 * nodes.PAGE + 1)


# Watches


def test_a_watch_that_breaks_off_is_resumed_where_it_ended(
    cluster: NodeCluster, watching: Watching
) -> None:
    cluster.join(*many(0, 2))
    told = watching(NODES)
    cluster.wait_for_watch()
    version = cluster.bookmark()
    cluster.join(*many(2, 3))
    told.value(NODES, lambda value: len(value) == 3)
    cluster.break_watches()
    resumed = cluster.wait_for_watch(2)
    assert int(resumed.params["resourceVersion"]) == int(version) + 1
    cluster.leave("node0")
    told.value(NODES, lambda value: len(value) == 2)
    # Nothing was listed but one node, to see how far the server is.
    assert [call.params["limit"] for call in cluster.asked("list")] == [str(nodes.PAGE), "1"]


def test_after_a_restore_of_etcd_the_nodes_are_listed_anew(
    cluster: NodeCluster, watching: Watching
) -> None:
    told = followed(cluster, watching, 3)
    cluster.nodes.pop("node2")
    cluster.restore({})
    cluster.break_watches()
    told.value(NODES, lambda value: len(value) == 2)
    cluster.wait_for_watch(2)
    cluster.join(*many(7, 8))
    told.value(NODES, lambda value: len(value) == 3)


def test_history_that_was_forgotten_is_made_good_by_a_list(
    cluster: NodeCluster, watching: Watching
) -> None:
    told = followed(cluster, watching, 5)
    cluster.down()
    cluster.leave("node0", "node1")
    cluster.join(*many(5, 6))
    cluster.compact()
    cluster.up()
    told.value(NODES, lambda value: len(value) == 4)


def test_addresses_stay_known_while_the_api_is_away(
    cluster: NodeCluster, watching: Watching
) -> None:
    told = followed(cluster, watching, 5)
    cluster.down()
    told.failure(NODES, "cannot be reached")
    cluster.up()
    told.value(NODES, lambda value: len(value) == 5)
    assert all(len(event.value) == 5 for event in told.events if isinstance(event, Learnt))


def test_five_thousand_nodes_that_come_and_go_are_told_of_a_few_times(
    cluster: NodeCluster, watching: Watching
) -> None:
    told = watching(NODES)
    told.value(NODES, lambda value: value == frozenset())
    cluster.wait_for_watch()
    for start in range(0, 5000, 100):
        cluster.join(*many(start, start + 100))
    told.value(NODES, lambda value: len(value) == 5000)
    cluster.leave(*(f"node{n}" for n in range(4990)))
    told.value(NODES, lambda value: len(value) == 10)
    assert len(told.events) <= 20


GROWTH = """
import re, sys, threading
from ipmasq_agent.errors import SourceError
from ipmasq_agent.policy.facts import NODE_ADDRESSES, OWN_POD_CIDRS
from ipmasq_agent.sources.facts import HostAndCluster

def megabytes():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024

source = HostAndCluster(kubeconfig=sys.argv[1], node="node0")
try:
    source.gather(frozenset({OWN_POD_CIDRS}))  # loads the library
except SourceError:
    before = megabytes()
told = threading.Event()
source.start(lambda event: told.set())
source.require(frozenset({NODE_ADDRESSES}))
told.wait(60)
source.stop()
print(megabytes() - before)
"""


@pytest.mark.long
def test_five_thousand_nodes_of_20_kb_cost_less_than_10_mb(
    cluster: NodeCluster, source: HostAndCluster, tmp_path: Path
) -> None:
    cluster.join(*many(0, 5000, bulk=150))
    argv = [sys.executable, "-c", GROWTH, str(tmp_path / "kubeconfig")]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=120)
    assert float(done.stdout) < 10


# Refusals


def test_forbidden_names_the_clusterrole_and_ends_when_it_is_granted(
    cluster: NodeCluster, watching: Watching
) -> None:
    cluster.join(*many(0, 1))
    cluster.refusals["list"] = (403, FORBIDDEN)
    told = watching(NODES)
    error = told.failure(NODES, "403")
    assert isinstance(error, AccessDenied)
    assert error.remedy is not None
    for words in (
        "ServiceAccount kube-system/masq",
        '{apiGroups: [""], resources: [nodes], verbs: [get, list, watch]}',
        "kubectl create clusterrole ipmasq-agent-nodes --verb=get,list,watch --resource=nodes",
        "kubectl create clusterrolebinding ipmasq-agent-nodes --clusterrole=ipmasq-agent-nodes "
        "--serviceaccount=kube-system:masq",
    ):
        assert words in error.remedy
    cluster.refusals.clear()
    told.value(NODES, lambda value: len(value) == 1)


def test_nobody_is_asked_before_a_document_needs_it_nor_after(
    cluster: NodeCluster, source: HostAndCluster, watching: Watching
) -> None:
    told = watching()
    assert cluster.calls == []
    source.require(frozenset({NODES}))
    told.value(NODES, lambda value: True)
    cluster.wait_for_watch()
    source.require(frozenset())
    deadline = time.monotonic() + DEADLINE
    while cluster.open_watches and time.monotonic() < deadline:
        continue  # each look is a round trip to the server
    cluster.join(*many(0, 1))
    assert len(told.events) == 1


# The own node's pod CIDRs


def test_pod_cidrs_of_the_own_node_are_told_once_it_has_them(
    cluster: NodeCluster, watching: Watching
) -> None:
    cluster.join(node_object("node-b", cidrs=("10.244.9.0/24",)))
    told = watching(OWN)
    assert "NODE_NAME" in str(told.failure(OWN, "no node node-a"))
    cluster.wait_for_watch()
    cluster.join(node_object("node-a"))
    assert isinstance(told.failure(OWN, "no podCIDRs"), SourceUnavailable)
    cluster.join(node_object("node-a", cidrs=("10.244.1.0/24", "fd00:10:244:1::/64")))
    cidrs = told.value(OWN, lambda value: True)
    assert [str(cidr) for cidr in cidrs] == ["10.244.1.0/24", "fd00:10:244:1::/64"]
    assert {call.params["fieldSelector"] for call in cluster.calls} == {"metadata.name=node-a"}


def test_a_node_of_an_old_cluster_has_one_pod_cidr(
    cluster: NodeCluster, source: HostAndCluster
) -> None:
    node = node_object("node-a")
    node["spec"] = {"podCIDR": "10.244.1.0/24"}
    cluster.join(node)
    [cidr] = source.gather(frozenset({OWN})).get(OWN) or ()
    assert str(cidr) == "10.244.1.0/24"


@pytest.mark.parametrize("cidr", ["10.244.1.0/33", "10.244.1.1/24", "10.244.1.0", "pods"])
def test_pod_cidrs_that_are_none_are_an_error(
    cluster: NodeCluster, source: HostAndCluster, cidr: str
) -> None:
    cluster.join(node_object("node-a", cidrs=(cidr,)))
    with pytest.raises(SourceError, match="node-a has podCIDRs"):
        source.gather(frozenset({OWN}))


def test_the_name_of_the_node_comes_from_the_environment(
    cluster: NodeCluster, source: HostAndCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.join(node_object("node-b", cidrs=("10.244.2.0/24",)))
    monkeypatch.setenv("NODE_NAME", "node-b")
    facts = HostAndCluster(kubeconfig=str(tmp_path / "kubeconfig")).gather(frozenset({OWN}))
    assert [str(cidr) for cidr in facts.get(OWN_POD_CIDRS) or ()] == ["10.244.2.0/24"]


def test_outside_a_cluster_pod_cidrs_can_be_written_down(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SourceError, match="write the CIDRs into the document"):
        HostAndCluster().gather(frozenset({OWN}))


def test_gathering_asks_for_all_that_is_needed(
    cluster: NodeCluster, source: HostAndCluster
) -> None:
    cluster.join(node_object("node-a", cidrs=("10.244.1.0/24",), InternalIP="192.0.2.1"))
    needs: frozenset[Fact[Any]] = frozenset({NODES, OWN, ADDRESSES, HOOKS, LINKS, ROUTES})
    facts = source.gather(needs)
    assert facts.missing(needs) == []
    assert facts.get(NODE_ADDRESSES) == set_of("192.0.2.1")
    links = facts.get(LINKS)
    assert links is not None
    assert "lo" in links.names
