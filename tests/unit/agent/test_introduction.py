"""What an agent tells of itself arrives as it was told."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ipmasq_agent.agent.introduction import Introducer, network_namespace, read
from ipmasq_agent.cli import asking, wiring
from ipmasq_agent.cli.options import Settings
from ipmasq_agent.config.document import parse_documents
from ipmasq_agent.config.model import Flags
from ipmasq_agent.errors import HostError
from ipmasq_agent.policy.addresses import Family, Prefix
from ipmasq_agent.policy.facts import HOOKS, NODE_ADDRESSES, OWN_POD_CIDRS, Facts
from ipmasq_agent.sources import Document, Part
from tests.unit.agent.support import Bench

FACTS: dict[Any, Any] = {
    NODE_ADDRESSES: frozenset({(Family.IPV4, 0x0A000001), (Family.IPV6, 1)}),
    OWN_POD_CIDRS: (Prefix(Family.IPV4, 0x0AF40000, 24),),
}
DOCUMENT = Document("ConfigMap a/b", (Part("x", b"\xff\x00"), Part("y", b"")), "17", 0, ("z",))


def told(document: Document | None, facts: Facts | None) -> bytes:
    status = Bench().agent.status
    agent = SimpleNamespace(in_force=(document, facts), status_now=lambda: status)
    settings = {"backend": "nftables", "configmap": ("a/b", "a/c"), "config": None}
    return json.dumps(Introducer(cast(Any, agent), settings).as_data()).encode()


def test_all_of_it_comes_back() -> None:
    found = read(told(DOCUMENT, Facts({**FACTS, HOOKS: object()})))
    assert found.document is not None
    assert found.document._replace(noticed=0) == DOCUMENT
    assert found.facts == FACTS
    assert found.settings["configmap"] == ["a/b", "a/c"]
    assert found.namespace == network_namespace()
    assert found.status.in_sync is False


def test_before_the_first_document_there_is_none() -> None:
    found = read(told(None, None))
    assert (found.document, found.facts) == (None, {})


def test_facts_that_the_agent_knows_are_not_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = parse_documents([("d", b"exemptNodeIPs: true\n")], "d", Flags()).config
    agent = read(told(DOCUMENT, Facts(FACTS)))
    asked: list[frozenset[Any]] = []

    def gather(needs: frozenset[Any]) -> Facts:
        asked.append(needs)
        return Facts()

    monkeypatch.setattr(wiring, "fact_source", lambda _: SimpleNamespace(gather=gather))
    facts = wiring.gather(Settings(agent=agent), config)
    assert facts.get(NODE_ADDRESSES) == FACTS[NODE_ADDRESSES]
    assert asked == [frozenset()]


def test_an_agent_of_another_version_is_not_guessed_at(monkeypatch: pytest.MonkeyPatch) -> None:
    other = {**json.loads(told(DOCUMENT, None)), "version": "0.0.9"}
    monkeypatch.setattr(asking, "get", lambda *_: json.dumps(other).encode())
    with pytest.raises(HostError, match="of another version") as refused:
        asking.ask("/run/x")
    assert "kubectl exec" in str(refused.value.remedy)
