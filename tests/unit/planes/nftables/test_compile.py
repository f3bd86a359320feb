"""Policies as tables of nftables, and these read back as policies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipmasq_agent.errors import KernelReadError
from ipmasq_agent.netlink.expressions import Opaque
from ipmasq_agent.planes.nftables import compile as dialect
from ipmasq_agent.planes.nftables.compile import (
    ACCEPT,
    KEEP,
    PARTS,
    POSTROUTING,
    RETURN,
    SOURCES,
    Field,
    compile_policy,
    in_set,
    of_protocol,
)
from ipmasq_agent.planes.nftables.interpret import interpret
from ipmasq_agent.planes.nftables.plan import plan
from ipmasq_agent.planes.nftables.state import (
    ChainHook,
    NftChain,
    NftRule,
    NftSet,
    NftTable,
    SetKind,
    addresses,
)
from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.decisions import DecisionMap, Entry, Stated, Verdict
from ipmasq_agent.policy.model import FamilyPolicy
from tests.contract.policies import policy, prefix
from tests.reasons import decider
from tests.unit.strategies import ANY_POLICY, FAMILIES, policies

PLACEMENT = Placement()


def compiled(wanted: FamilyPolicy) -> NftTable:
    return compile_policy(wanted, PLACEMENT)


@contextmanager
def many_parts() -> Iterator[None]:
    """Make parts of the smallest sets, as of very large ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dialect, "PARTED_PAST", 1)
        patch.setattr(dialect, "_EVERY", 2)
        yield


def with_rules(table: NftTable, *rules: NftRule) -> NftTable:
    chain = replace(table.chains[POSTROUTING], rules=rules)
    return replace(table, chains={**table.chains, POSTROUTING: chain})


@given(ANY_POLICY)
def test_a_table_is_understood_as_the_policy_it_was_made_from(wanted: FamilyPolicy) -> None:
    understood = interpret(compiled(wanted))
    assert understood.policy == wanted
    assert understood.exceptions == ()


@given(ANY_POLICY)
@settings(max_examples=200, deadline=None)
def test_so_is_a_table_whose_destinations_are_kept_in_parts(wanted: FamilyPolicy) -> None:
    with many_parts():
        table = compiled(wanted)
    understood = interpret(table)
    assert understood.policy == wanted
    assert understood.exceptions == ()


@given(FAMILIES.flatmap(lambda f: st.tuples(policies(f), policies(f))), st.booleans())
@settings(max_examples=200, deadline=None)
def test_a_plan_is_empty_where_nothing_differs_and_says_all_that_does(
    pair: tuple[FamilyPolicy, FamilyPolicy], parted: bool
) -> None:
    before = compiled(pair[0])
    if parted:
        with many_parts():
            desired = compiled(pair[1])
    else:
        desired = compiled(pair[1])
    change = plan(before, desired)
    assert bool(change) == (before != desired) == bool(change.added or change.removed)
    assert change.counts == (len(change.added), len(change.removed))
    assert not plan(desired, desired)
    lines = set(before.lines()) - set(change.removed) | set(change.added)
    assert lines == set(desired.lines())


def test_one_range_more_is_the_only_element_that_comes() -> None:
    numbers = range(1, 3000, 2)
    before = compiled(policy(Family.IPV4, numbers))
    desired = compiled(policy(Family.IPV4, [*numbers, 1000]))
    change = plan(before, desired)
    # Two neighbours of 10.3.232.0/24 and itself become one range.
    assert change.removed == [
        "add element ip ip-masq keep { 10.3.231.0/24 }",
        "add element ip ip-masq keep { 10.3.233.0/24 }",
    ]
    assert change.added == ["add element ip ip-masq keep { 10.3.231.0-10.3.233.255 }"]


@pytest.mark.parametrize("family", list(Family))
def test_a_very_large_policy_comes_in_parts_and_a_change_stays_in_one(family: Family) -> None:
    step = 1 << (family.bits - 24 if family is Family.IPV4 else 64)
    base = 1 << 24 if family is Family.IPV4 else 0xFD << 120

    def large(numbers: range) -> FamilyPolicy:
        made = [
            Entry(base + n * 2 * step, base + n * 2 * step, Verdict.NON_MASQUERADE, Stated("e"))
            for n in numbers
        ]
        return FamilyPolicy(DecisionMap(family, made))

    wanted = large(range(20_000))
    before = compiled(wanted)
    parts = before.sets[PARTS]
    assert 5 <= len(parts) <= 20
    assert sum(len(held) for name, held in before.sets.items() if name != PARTS) == 20_000
    assert (parts.firsts[0], parts.lasts[-1]) == (0, family.last_address)
    for shorter in (range(1, 20_000), range(19_999)):
        change = plan(before, compiled(large(shorter)))
        assert len(change.added) + len(change.removed) == 1
    understood = interpret(before).policy
    assert understood == wanted
    decided = understood.decisions.decide(base)
    assert decider(decided.reason).text.startswith(
        f"{'ip' if family is Family.IPV4 else 'ip6'} daddr @keep"
    )
    assert decider(decided.reason).text.endswith(f"with {family.show(base)} in it")


def test_ports_are_drawn_in_proportion_and_fixed_sources_come_first() -> None:
    wanted = policy(Family.IPV4, [1], ports="1024-29999,32768-65535", fixed=[4])
    rules = [
        line.removeprefix("add rule ip ip-masq postrouting ")
        for line in compiled(wanted).lines()
        if line.startswith("add rule")
    ]
    assert rules[:4] == [
        "fib daddr type local return",
        "ip daddr @keep return",
        "meta l4proto tcp numgen random mod 61744 < 28976 "
        "snat to ip daddr map @fixed:1024-29999 fully-random",
        "meta l4proto tcp snat to ip daddr map @fixed:32768-65535 fully-random",
    ]
    assert rules[-2:] == [
        "meta l4proto sctp masquerade to :32768-65535 fully-random",
        "masquerade fully-random",
    ]


def test_what_is_unknown_cannot_be_written() -> None:
    unknown = DecisionMap(Family.IPV4, (), Verdict.UNKNOWN)
    with pytest.raises(ValueError, match="unknown"):
        compiled(FamilyPolicy(unknown))


def test_before_or_after_the_chains_of_iptables() -> None:
    for first, priority in ((False, 101), (True, 99)):
        table = compile_policy(policy(Family.IPV4), Placement(jump_first=first))
        assert table.chains[POSTROUTING].hook == ChainHook("postrouting", priority)


@pytest.mark.parametrize(
    ("broken", "what"),
    [
        pytest.param(lambda t: replace(t, foreign=("1 object",)), "an object", id="object"),
        pytest.param(
            lambda t: replace(t, chains={**t.chains, "x": NftChain(ChainHook("input", 0), ())}),
            "another hook",
            id="hook",
        ),
        pytest.param(
            lambda t: replace(
                t,
                chains={
                    POSTROUTING: NftChain(ChainHook(POSTROUTING, 5), t.chains[POSTROUTING].rules)
                },
            ),
            "another priority",
            id="priority",
        ),
        pytest.param(
            lambda t: replace(t, sets={**t.sets, KEEP: NftSet(SetKind.UNKNOWN)}),
            "a type",
            id="type",
        ),
    ],
)
def test_what_no_edit_can_heal_is_made_anew(broken: object, what: str) -> None:
    assert callable(broken)
    desired = compiled(policy(Family.IPV4, [1]))
    change = plan(broken(desired), desired)
    assert change.anew, what
    assert change.added == desired.lines()


def test_a_table_of_somebody_else_is_refused_and_never_touched() -> None:
    theirs = NftTable(Family.IPV6, "ip-masq", {"nat_out": NftChain(None, ())}, {}, marked=False)
    for desired in (
        compiled(policy(Family.IPV6)),
        dialect.absent(Family.IPV6, PLACEMENT),
    ):
        with pytest.raises(KernelReadError, match=r"nat_out.*--masq-chain"):
            plan(theirs, desired)
    # Ours from before a kernel that kept comments, or with the comment gone.
    ours = replace(compiled(policy(Family.IPV6)), marked=False)
    assert not plan(ours, compiled(policy(Family.IPV6)))


def test_a_rule_that_cannot_be_read_makes_what_it_may_decide_unknown() -> None:
    table = compiled(policy(Family.IPV4, [1]))
    local, keep, last = table.chains[POSTROUTING].rules
    strange = Opaque("inner"), ACCEPT
    understood = interpret(with_rules(table, local, keep, strange, last)).policy
    kept = prefix(Family.IPV4, 1)
    assert understood.decisions.decide(kept.first).verdict is Verdict.NON_MASQUERADE
    decided = understood.decisions.decide(kept.last + 1)
    assert decided.verdict is Verdict.UNKNOWN
    assert decider(decided.reason).text == "(inner) accept"
    assert decider(decided.reason)[:2] == (POSTROUTING, 3)


def test_a_rule_for_some_packets_only_is_an_exception_where_it_decides_otherwise() -> None:
    table = compiled(policy(Family.IPV4, [1]))
    local, keep, last = table.chains[POSTROUTING].rules
    odd = *of_protocol("udp"), RETURN
    understood = interpret(with_rules(table, local, keep, odd, last))
    assert understood.policy == policy(Family.IPV4, [1])
    (exception,) = understood.exceptions
    assert str(exception) == "rule 3 of postrouting: meta l4proto udp return"
    assert not exception.concerns(prefix(Family.IPV4, 1).first)
    assert exception.concerns(prefix(Family.IPV4, 2).first)
    assert interpret(with_rules(table, local, keep, last, odd)).exceptions == ()


def test_a_set_of_sources_is_a_guard_and_is_answered_for_one_source() -> None:
    wanted = policy(Family.IPV4, [1], sources=[3])
    table = compiled(wanted)
    inside, outside = prefix(Family.IPV4, 3).first, prefix(Family.IPV4, 4).first
    assert interpret(table, source=inside).policy == wanted
    decided = interpret(table, source=outside).policy.decisions.decide(0)
    assert decided.verdict is Verdict.NON_MASQUERADE
    assert decider(decided.reason).text == "ip saddr != @sources return"


def test_guards_out_of_place_or_of_nobody_are_told_as_exceptions() -> None:
    table = compiled(policy(Family.IPV4, [1], sources=[3]))
    local, sources, keep, last = table.chains[POSTROUTING].rules
    understood = interpret(with_rules(table, local, keep, sources, last))
    assert understood.policy.guards.sources is None
    assert [str(e) for e in understood.exceptions] == [
        "rule 3 of postrouting: ip saddr != @sources return"
    ]
    empty = replace(table, sets={**table.sets, SOURCES: addresses(Family.IPV4, (), ())})
    assert [e.rule.text for e in interpret(empty).exceptions] == ["ip saddr != @sources return"]
    nobody = interpret(empty, source=1).policy.decisions
    assert nobody.verdicts == {Verdict.NON_MASQUERADE}


def test_without_its_hook_a_chain_decides_nothing() -> None:
    table = compiled(policy(Family.IPV4, [1]))
    rules = table.chains[POSTROUTING].rules
    for hook in (None, ChainHook("output", 100), ChainHook(POSTROUTING, 100, type="filter")):
        idle = replace(table, chains={POSTROUTING: NftChain(hook, rules)})
        assert interpret(idle).policy.decisions.verdicts == {Verdict.NON_MASQUERADE}


def test_matches_that_stand_together_must_all_hold() -> None:
    table = compiled(policy(Family.IPV4, [1, 3]))
    local, _, last = table.chains[POSTROUTING].rules
    other = addresses(Family.IPV4, [prefix(Family.IPV4, 3).first], [Family.IPV4.last_address])
    table = replace(table, sets={**table.sets, "other": other})
    kept = in_set(Field.DESTINATION, KEEP, Family.IPV4)
    both = *kept, *in_set(Field.DESTINATION, "other", Family.IPV4), ACCEPT
    assert interpret(with_rules(table, local, both, last)).policy == policy(Family.IPV4, [3])
    never = *kept, *in_set(Field.SOURCE, "other", Family.IPV4), ACCEPT
    inside = interpret(with_rules(table, local, never, last), source=Family.IPV4.last_address)
    assert inside.policy == policy(Family.IPV4)
