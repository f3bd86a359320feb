"""What others at the postrouting hook make of a policy of ours."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipmasq_agent.answers.overrides import shadow
from ipmasq_agent.planes.interpretation import Interpretation
from ipmasq_agent.planes.iptables.text import parse_rule
from ipmasq_agent.planes.rules.matching import ANY, question
from ipmasq_agent.planes.rules.neighbours import BaseChain, PostroutingHook, joined, neighbours
from ipmasq_agent.planes.rules.table import Chain, Table
from ipmasq_agent.policy.addresses import Family, Prefix, parse_address
from ipmasq_agent.policy.decisions import DecisionMap, Stated, Verdict, entry_of_prefix
from ipmasq_agent.policy.model import FamilyPolicy, Guards

V4 = Family.IPV4
KEEP, MASQ, UNKNOWN = Verdict.NON_MASQUERADE, Verdict.MASQUERADE, Verdict.UNKNOWN
TENS = Prefix(V4, 10 << 24, 8)
PODS = Prefix(V4, 0xAC140000, 16)
KEPT, TAKEN = TENS.first, 9 << 24
POLICY = FamilyPolicy(DecisionMap(V4, [entry_of_prefix(TENS, KEEP, Stated("10.0.0.0/8"))]))


def base(*rules: str, own: str | None = None, place: str = "", priority: int = 100) -> BaseChain:
    parsed = tuple(parse_rule(rule, V4) for rule in rules)
    table = Table(V4, {"POSTROUTING": Chain("POSTROUTING", "ACCEPT", parsed)})
    return BaseChain(table, "POSTROUTING", priority, place, own=own)


OURS = base("-j IP-MASQ", own="IP-MASQ")


def in_force(hook: PostroutingHook, source: str | None = None) -> tuple[Verdict, Verdict]:
    asked = question(parse_address(source)[1]) if source else ANY
    found = joined(Interpretation(POLICY), neighbours(hook, asked)).policy.decisions
    return found.decide(KEPT).verdict, found.decide(TAKEN).verdict


def beside(*rules: str, priority: int = 110) -> PostroutingHook:
    other = base(*rules, place=" of table ip x", priority=priority)
    chains = sorted((OURS, other), key=lambda chain: chain.priority)
    return PostroutingHook(V4, tuple(chains))


def test_ours_alone_decides() -> None:
    assert in_force(PostroutingHook(V4, (OURS,))) == (KEEP, MASQ)
    assert in_force(PostroutingHook(V4, programs=True)) == (KEEP, MASQ)
    assert in_force(PostroutingHook(V4)) == (KEEP, MASQ)  # rules that are not there yet
    assert shadow(POLICY, PostroutingHook(V4, (OURS,))).overridden == ()


@pytest.mark.parametrize("priority", [90, 100, 110])
def test_another_chain_that_translates_does_so_wherever_it_stands(priority: int) -> None:
    assert in_force(beside("-d 10.1.0.0/16 -j ACCEPT", "-j MASQUERADE", priority=priority)) == (
        MASQ,
        MASQ,
    )
    # To accept, to return and to drop nothing leaves it to the next chain.
    for rule in ("-j ACCEPT", "-j RETURN", "-d 10.0.0.0/8 -j LOG"):
        assert in_force(beside(rule, priority=priority)) == (KEEP, MASQ)
    assert in_force(beside("-m u32 --u32 0x0 -j ACCEPT", priority=90)) == (UNKNOWN, UNKNOWN)


def test_in_our_own_chain_it_matters_what_comes_before_the_jump() -> None:
    before = base("-d 9.0.0.0/8 -j ACCEPT", "-j IP-MASQ", own="IP-MASQ")
    after = base("-j IP-MASQ", "-d 9.0.0.0/8 -j ACCEPT", own="IP-MASQ")
    assert in_force(PostroutingHook(V4, (before,))) == (KEEP, KEEP)
    assert in_force(PostroutingHook(V4, (after,))) == (KEEP, MASQ)
    (override,) = shadow(POLICY, PostroutingHook(V4, (before,))).overridden
    assert (override.wanted, override.verdict, override.cidrs(9)) == (MASQ, KEEP, ["9.0.0.0/8"])


def test_what_is_not_tracked_meets_no_chain_but_our_programs() -> None:
    raw = base("-s 172.20.0.0/16 -j CT --notrack", place=" of table ip raw", priority=-300)
    for programs, seen in ((False, (KEEP, KEEP)), (True, (KEEP, MASQ))):
        hook = PostroutingHook(V4, () if programs else (OURS,), (raw,), programs)
        assert in_force(hook, "172.20.0.9") == seen
        assert in_force(hook, "172.21.0.9") == (KEEP, MASQ)
    found = joined(Interpretation(POLICY), neighbours(PostroutingHook(V4, (OURS,), (raw,)), ANY))
    assert [e.verdict for e in found.exceptions] == [KEEP]


def test_a_rule_for_one_source_of_the_policy_overrides_it_there() -> None:
    policy = FamilyPolicy(POLICY.decisions, Guards(sources=(PODS, TENS)))
    hook = beside(f"-s {PODS} -j MASQUERADE")
    assert [o.cidrs(9) for o in shadow(policy, hook).overridden] == [["10.0.0.0/8"]]
    assert shadow(POLICY, hook).overridden == ()
    assert shadow(POLICY, hook).partial == (
        "rule 1 of POSTROUTING of table ip x: -s 172.20.0.0/16 -j MASQUERADE (masquerade)",
    )


@pytest.mark.parametrize(
    ("rule", "egress", "counts"),
    [
        ("-o eth0 -j MASQUERADE", ("eth0", "eth1"), True),
        ("! -o docker0 -j MASQUERADE", ("eth0",), True),
        ("-o docker0 -j MASQUERADE", ("eth0",), False),
    ],
)
def test_a_rule_for_an_egress_device_overrides_there_and_one_for_another_does_not(
    rule: str, egress: tuple[str, ...], counts: bool
) -> None:
    hook = replace(beside(rule), egress=egress)
    assert bool(shadow(POLICY, hook).overridden) is counts


def test_asleep_is_nothing_in_force() -> None:
    hook = PostroutingHook(V4, asleep="the table is dormant")
    found = joined(Interpretation(POLICY), neighbours(hook, ANY)).policy.decisions
    assert found.decide(TAKEN).verdict is KEEP
    assert shadow(POLICY, hook).overridden[0].verdict is KEEP


RULES = st.builds(
    " ".join,
    st.tuples(
        st.sampled_from(["", "-d 10.0.0.0/8", "! -d 10.1.0.0/16", "-d 9.0.0.0/8"]),
        st.sampled_from(["-j MASQUERADE", "-j ACCEPT", "-j RETURN", "-j LOG"]),
    ),
)


def walk(rules: list[str], destination: int) -> bool:
    """The reference: whether one packet is translated by one chain."""
    for text in rules:
        rule = parse_rule(text, V4)
        option = rule.option("destination")
        if option:
            base_, _, length = option.values[0].partition("/")
            first = sum(int(p) << 24 - 8 * n for n, p in enumerate(base_.split(".")))
            inside = destination >> 32 - int(length) == first >> 32 - int(length)
            if inside is option.negated:
                continue
        if rule.target != "LOG":
            return rule.target == "MASQUERADE"
    return False


@given(*[st.lists(RULES, max_size=3) for _ in range(2)])
def test_a_packet_that_walks_all_chains_agrees(early: list[str], late: list[str]) -> None:
    chains = (
        base(*early, place=" of table ip a", priority=50),
        OURS,
        base(*late, place=" of table ip b", priority=200),
    )
    found = joined(
        Interpretation(POLICY), neighbours(PostroutingHook(V4, chains), ANY)
    ).policy.decisions
    for destination in (KEPT, TAKEN, KEPT | 1 << 16, 8 << 24):
        translated = walk(early, destination) or walk(late, destination)
        translated |= POLICY.decisions.decide(destination).verdict is MASQ
        assert (found.decide(destination).verdict is MASQ) is translated
