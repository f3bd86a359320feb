"""Why a packet keeps its source or not, when a policy speaks of some packets only."""

from __future__ import annotations

import pytest

from ipmasq_agent.answers.explain import Explanation, Ruling, explain, together
from ipmasq_agent.planes.interpretation import Interpretation
from ipmasq_agent.planes.rules.neighbours import PostroutingHook
from ipmasq_agent.policy.addresses import Family, Prefix, parse_address
from ipmasq_agent.policy.decisions import DecisionMap, Origin, Verdict, entry_of_prefix
from ipmasq_agent.policy.facts import WayOut
from ipmasq_agent.policy.model import Action, FamilyPolicy, FixedSource, Guards

V4 = Family.IPV4
KEEP, MASQ = Verdict.NON_MASQUERADE, Verdict.MASQUERADE
TEN = entry_of_prefix(Prefix(V4, 10 << 24, 8), KEEP, Origin("10.0.0.0/8", "cm", 2, 3))
PODS = (Prefix(V4, 0xAC140000, 24),)
OUT = WayOut("eth0", "192.0.2.1")


def alone(policy: FamilyPolicy) -> Ruling:
    return Ruling(lambda source: Interpretation(policy), PostroutingHook(V4, programs=True))


def asked(
    destination: str = "8.8.8.8",
    source: str | None = None,
    guards: Guards | None = None,
    route: WayOut = OUT,
    fixed: tuple[FixedSource, ...] = (),
) -> Explanation:
    policy = FamilyPolicy(DecisionMap(V4, [TEN]), guards or Guards(), Action(fixed=fixed))
    address = parse_address(destination)[1]
    (answer,) = explain(alone(policy), (address, address), source, route, policy)
    return answer


def test_the_entry_of_the_document_is_the_reason() -> None:
    answer = asked("10.1.2.3", "172.20.0.9")
    assert (answer.verdict, answer.source) == (KEEP, "172.20.0.9")
    assert answer.reason == "10.0.0.0/8 (cm:2)"
    assert asked().source == "192.0.2.1"


@pytest.mark.parametrize(
    ("guards", "source", "route", "reason"),
    [
        (
            Guards(devices=("eth1",)),
            None,
            OUT,
            "it leaves through eth0, and only what leaves through eth1 is masqueraded",
        ),
        (
            Guards(sources=PODS),
            "192.168.0.7",
            OUT,
            "only what comes from 172.20.0.0/24 is masqueraded",
        ),
        (Guards(), None, WayOut("lo", "8.8.8.8", True), "is an address of this node"),
    ],
)
def test_guards_that_leave_a_packet_alone_are_the_reason(
    guards: Guards, source: str | None, route: WayOut, reason: str
) -> None:
    answer = asked(source=source, guards=guards, route=route)
    assert answer.verdict is KEEP
    assert answer.expected is KEEP
    assert reason in answer.reason


def test_where_no_source_is_asked_for_its_guard_is_told_as_an_exception() -> None:
    answer = asked(guards=Guards(sources=PODS))
    assert answer.verdict is MASQ
    assert answer.exceptions == ("it does not come from 172.20.0.0/24",)
    assert asked(source="172.20.0.9", guards=Guards(sources=PODS)).exceptions == ()


def test_a_fixed_source_is_the_address_that_is_seen() -> None:
    address = parse_address("192.0.2.77")[1]
    fixed = (FixedSource(8 << 24, (9 << 24) - 1, address),)
    assert asked(fixed=fixed).source == "192.0.2.77"
    assert asked("9.9.9.9", fixed=fixed).source == "192.0.2.1"


def test_a_range_has_an_answer_for_each_part_that_has_one_of_its_own() -> None:
    fixed = (FixedSource(11 << 24, (11 << 24) + 9, parse_address("192.0.2.77")[1]),)
    policy = FamilyPolicy(DecisionMap(V4, [TEN]), action=Action(fixed=fixed))
    answers = list(explain(alone(policy), (9 << 24, (12 << 24) - 1), None, OUT, policy))
    assert [(answer.destination, answer.verdict, answer.source) for answer in answers] == [
        ("9.0.0.0/8", MASQ, "192.0.2.1"),
        ("10.0.0.0/8", KEEP, None),
        ("11.0.0.0-11.0.0.9", MASQ, "192.0.2.77"),
        ("11.0.0.10-11.255.255.255", MASQ, "192.0.2.1"),
    ]
    data = together("9.0.0.0/6", answers)
    assert (data["destination"], data["verdict"], data["source"]) == ("9.0.0.0/6", "differs", None)
    assert data["answers"] == [answer.as_data() for answer in answers]
    assert together("10.0.0.0/8", answers[1:2])["verdict"] is KEEP


def test_where_the_node_has_a_route_and_no_address_that_is_what_is_told() -> None:
    assert "the node has no route to it" in asked(route=WayOut()).as_text()
    told = asked(route=WayOut("eth0")).as_text()
    assert "unknown: the node has no address that it could get (through eth0)" in told
