"""A document that one of two real agents tries, each with the kernel of a namespace of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipmasq_agent.cli import fleet_rolling, fleet_trial
from tests.fleet.conftest import DOCUMENT, Made, Plugin
from tests.fleet.plugin import Done
from tests.fleet.real import WatchingAgent, rules
from tests.netns import Namespace
from tests.waiting import wait_until

NEW = "nonMasqueradeCIDRs: [10.0.0.0/8, 172.16.0.0/12]\n"
CANARY = "ip-masq-agent-canary"
IPTABLES = ("iptables-nft", "-w", "-t", "nat")
THEIRS = ("POSTROUTING", "-d", "172.16.0.0/12", "-j", "MASQUERADE")

pytestmark = pytest.mark.kernel


@pytest.fixture
def agents(tmp_path: Path) -> Iterator[list[WatchingAgent]]:
    with contextlib.ExitStack() as stack:
        made = []
        for name in ("one", "two"):
            namespace = stack.enter_context(Namespace(name))
            namespace.lead_out()
            made.append(WatchingAgent(name, namespace, tmp_path / name, "iptables-nft"))
        yield made


def holding(agents: list[WatchingAgent]) -> list[str]:
    """Return the nodes whose kernel holds the new document."""
    shown = {agent.node: rules(agent, "iptables-nft", "-t", "nat", "-S") for agent in agents}
    return [node for node, text in shown.items() if "172.16.0.0/12" in text]


def test_one_real_agent_tries_it_alone_and_kubectl_or_a_finding_takes_it_back(
    clusters: Made,
    plugin: Plugin,
    agents: list[WatchingAgent],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (fleet_rolling, fleet_trial):
        monkeypatch.setattr(module, "PAUSE", 0.1)
    cluster = clusters(agents)
    for agent in agents:
        cluster.serve(agent.api)
        agent.begin()
    terms = ("--patience", "60", "--grace", "60", "--for", "1s", "--canary", "node=one")
    words = ("apply", "--yes", *terms, "-o", "json", "-f", "-")

    done = plugin(cluster, *words, "--no-promote", stdin=NEW)
    assert done.code == 0, done.err
    assert holding(agents) == ["one"]
    del cluster.configmaps[CANARY]  # as `kubectl delete configmap` does it
    wait_until(lambda: not holding(agents), "the document of all nodes in the kernel again")
    wait_until(agents[0].in_sync, "that its agent knows")

    def come_first(what: str) -> None:
        """Have another program decide before the agent, as soon as it is watched."""
        held = cluster.configmaps.get(CANARY)
        if what == f"PATCH {CANARY}" and held and "ipmasq-agent/until" in held.annotations:
            rules(agents[0], *IPTABLES, "-I", *THEIRS)

    tried: list[Done] = []

    def begun() -> bool:
        """Try it; false where the node was in a pass just then, and is to be asked again."""
        tried.append(plugin(cluster, *words, stdin=NEW))
        return "is ready" not in tried[-1].err

    cluster.after = come_first
    wait_until(begun, "a trial")
    done = tried[-1]
    assert done.code == 1, done.err
    # Whoever sees it first: the agent, or the doctor at the end.
    assert any(who in done.data["reason"] for who in ("rules of others", "doctor finds"))
    assert CANARY not in cluster.configmaps
    assert cluster.document() == DOCUMENT

    cluster.after = lambda what: None
    rules(agents[0], *IPTABLES, "-D", *THEIRS)  # wherever it is by now
    wait_until(agents[0].in_sync, "that its agent holds what it should")
    wait_until(begun, "a trial")
    done = tried[-1]
    assert done.code == 0, done.err
    assert holding(agents) == ["one", "two"]
    assert CANARY not in cluster.configmaps
