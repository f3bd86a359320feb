"""Documents that depend on facts: they wait, they follow, and nothing is lost meanwhile."""

from __future__ import annotations

import errno
from unittest.mock import Mock

import pytest

from ipmasq_agent.agent.intent import Intent
from ipmasq_agent.agent.knowledge import Knowledge
from ipmasq_agent.config.model import Config, Flags
from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.facts import HOOKS, LINKS, NODE_ADDRESSES, Links
from tests.memory import MemoryPlane
from tests.unit.agent.support import Bench, ScriptedFacts

V4 = Family.IPV4
NODES = "exemptNodeIPs: true\nnonMasqueradeCIDRs: [10.0.0.0/8]\n"
NODE_1, NODE_2 = (V4, 0x01010101), (V4, 0x02020202)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_nothing_is_asked_of_anybody_for_a_document_of_upstreams(bench: Bench) -> None:
    bench.document("nonMasqueradeCIDRs: [10.0.0.0/8]")
    assert bench.facts.required == frozenset()
    assert bench.agent.status.ready


def test_a_document_waits_for_its_facts_while_the_one_before_is_kept_healed(bench: Bench) -> None:
    bench.document("nonMasqueradeCIDRs: [10.9.0.0/16]")
    before = bench.chain()
    bench.document(NODES, "2")
    assert bench.facts.required == {NODE_ADDRESSES}
    assert bench.chain() == before
    status = bench.agent.status
    assert (status.config.accepted, status.ready, status.in_sync) == (True, False, False)
    assert status.why_not_ready() == "waiting for the addresses of the cluster's nodes"
    bench.flush()
    bench.resync()
    assert bench.chain() == before
    assert not bench.agent.status.ready
    bench.fact_fails(NODE_ADDRESSES, "no rights")
    bench.resync()
    assert bench.agent.status.why_not_ready().endswith("nodes: no rights")
    bench.learn(NODE_ADDRESSES, frozenset({NODE_1}))
    assert bench.chain() == ["1.1.1.1/32", "169.254.0.0/16", "10.0.0.0/8"]
    assert bench.agent.status.ready
    assert bench.agent.status.waiting == ()


def test_a_first_document_that_waits_touches_nothing(bench: Bench) -> None:
    bench.document(NODES)
    bench.resync()
    assert bench.backend.transactions == 0
    bench.learn(NODE_ADDRESSES, frozenset())
    assert bench.chain() == ["169.254.0.0/16", "10.0.0.0/8"]


def test_facts_that_change_are_followed_and_a_source_that_fails_changes_nothing(
    bench: Bench,
) -> None:
    bench.document(NODES)
    bench.learn(NODE_ADDRESSES, frozenset({NODE_1}))
    bench.learn(NODE_ADDRESSES, frozenset({NODE_1, NODE_2}))
    assert bench.chain()[:2] == ["1.1.1.1/32", "2.2.2.2/32"]
    passes = bench.agent.status.passes
    bench.fact_fails(NODE_ADDRESSES, "the API is down")
    assert bench.chain()[:2] == ["1.1.1.1/32", "2.2.2.2/32"]
    status = bench.agent.status
    assert (status.ready, status.in_sync, status.waiting) == (False, True, ())
    assert status.why_not_ready() == (
        "the addresses of the cluster's nodes cannot be followed, those of before stay in force: "
        "the API is down"
    )
    assert status.why_not_ready() in status.as_text()
    assert status.as_data()["facts"] == [
        {"name": "the addresses of the cluster's nodes", "error": "the API is down"}
    ]
    bench.learn(NODE_ADDRESSES, frozenset({NODE_1, NODE_2}))
    assert bench.agent.status.ready
    assert bench.agent.status.passes == passes, "nothing has changed, so there was nothing to do"


def test_why_a_document_waits_is_told_at_once_and_no_longer_than_it_is_true(bench: Bench) -> None:
    bench.document(NODES)
    bench.fact_fails(NODE_ADDRESSES, "no rights")
    assert bench.agent.status.why_not_ready().endswith("nodes: no rights")
    assert bench.agent.status.as_text().count("no rights") == 1
    bench.fact_fails(NODE_ADDRESSES, "no answer")
    assert bench.agent.status.why_not_ready().endswith("nodes: no answer")
    bench.learn(NODE_ADDRESSES, frozenset())
    assert bench.agent.status.ready


def test_what_a_data_plane_depends_on_is_told_like_what_a_document_does(bench: Bench) -> None:
    bench.backend.needs = frozenset({HOOKS})
    bench.document("nonMasqueradeCIDRs: [10.0.0.0/8]")
    assert bench.agent.status.ready
    bench.fact_fails(HOOKS, "no netlink")
    assert "filters on them cannot be followed" in bench.agent.status.why_not_ready()
    bench.learn(HOOKS, 1)
    assert bench.agent.status.ready


def test_what_could_not_be_followed_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = ScriptedFacts()
    knowledge = Knowledge(facts)
    with monkeypatch.context() as patched:
        patched.setattr(facts, "require", Mock(side_effect=OSError(errno.EMFILE, "too many")))
        with pytest.raises(OSError, match="too many"):
            knowledge.follow(frozenset({HOOKS}))
    knowledge.follow(frozenset({HOOKS}))
    assert facts.required == {HOOKS}


def test_facts_that_no_document_needs_any_more_are_forgotten(bench: Bench) -> None:
    bench.document(NODES)
    bench.learn(NODE_ADDRESSES, frozenset({NODE_1}))
    bench.document("nonMasqueradeCIDRs: [10.0.0.0/8]", "2")
    assert bench.facts.required == frozenset()
    bench.learn(NODE_ADDRESSES, frozenset({NODE_2}))  # on its way when it was called off
    bench.document(NODES, "3")
    assert bench.agent.status.waiting
    assert bench.chain() == ["169.254.0.0/16", "10.0.0.0/8"]


def test_devices_of_pods_come_and_go_without_a_pass(bench: Bench) -> None:
    bench.document("egressInterfaces: [eth*]")
    bench.learn(LINKS, Links(("eth0", "lo"), ("eth0",)))
    passes = bench.agent.status.passes
    for number in range(5):
        bench.learn(LINKS, Links(("eth0", "lo", f"veth{number}"), ("eth0",)))
    assert bench.agent.status.passes == passes
    bench.learn(LINKS, Links(("eth0", "eth1", "lo"), ("eth0",)))
    assert bench.agent.status.passes == passes + 1
    hook = bench.backend.tables[V4].rules("POSTROUTING")
    assert [option.values for rule in hook if (option := rule.option("out-interface"))] == [
        ("eth0",),
        ("eth1",),
    ]


def test_a_large_policy_is_told_to_the_choice_of_backend(bench: Bench) -> None:
    many = ", ".join(f"10.0.{n}.0/24" for n in range(250))
    bench.document(f"nonMasqueradeCIDRs: [{many}]\ncidrLimit: 1000\nexemptNodeIPs: true\n")
    bench.learn(NODE_ADDRESSES, frozenset())
    assert bench.asked_for_large[-1] is False
    bench.learn(NODE_ADDRESSES, frozenset((V4, n) for n in range(7)))
    assert bench.asked_for_large[-1] is True
    (line,) = bench.agent.status.look.advice
    assert line.startswith("ipv4: the chain has 259 rules")


def test_policies_and_what_backends_hold_are_made_once() -> None:
    intent = Intent(Config(Flags()))
    backend = MemoryPlane(Placement())
    first = intent.desired(backend, V4)
    assert intent.desired(backend, V4) is first
    assert intent.policy(backend, V4) is intent.policy(backend, V4)
    assert intent.desired(MemoryPlane(Placement()), V4) is not first
