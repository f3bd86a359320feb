"""A policy as a chain, and the smallest plan from what is there to what should be."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipmasq_agent.errors import KernelReadError
from ipmasq_agent.planes.iptables.compile import DesiredChain, absent, compile_policy
from ipmasq_agent.planes.iptables.interpret import interpret
from ipmasq_agent.planes.iptables.plan import EDITED_IN_PLACE, ChainPlan, plan, restore_text
from ipmasq_agent.planes.iptables.save import parse_saved
from ipmasq_agent.planes.iptables.text import parse_rule
from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.planes.rules.rule import Rule
from ipmasq_agent.planes.rules.table import Chain, Table, empty_table
from ipmasq_agent.policy.addresses import Family, Prefix
from ipmasq_agent.policy.decisions import DecisionMap, Entry, Stated, Verdict
from ipmasq_agent.policy.model import Action, FamilyPolicy, FixedSource
from tests.golden.cases import CASES
from tests.memory import MemoryPlane
from tests.unit.strategies import ANY_POLICY, FAMILIES, policies

V4 = Family.IPV4
GOLDEN = Path(__file__).parents[3] / "golden"
# Whatever is in the chain, it is ours: whose it is, is a question of its own.
PLACEMENTS = st.builds(
    Placement, st.sampled_from(["IP-MASQ", "X"]), st.booleans(), adopt=st.just(True)
)
FOREIGN = ("-s 172.17.0.0/16 ! -o docker0 -j MASQUERADE", "-j KUBE-POSTROUTING", "-o lo -j ACCEPT")


@pytest.mark.parametrize("name", CASES)
def test_restore_text_is_exactly_that_of_the_golden_file(name: str) -> None:
    assert restore_text(CASES[name]()) == (GOLDEN / f"{name}.restore").read_text()


@given(ANY_POLICY, PLACEMENTS)
def test_what_is_compiled_is_interpreted_as_the_same_policy(
    policy: FamilyPolicy, placement: Placement
) -> None:
    desired = compile_policy(policy, placement)
    table = plan(empty_table(policy.family), desired).result
    assert interpret(table, placement).policy == policy


@pytest.mark.long
@settings(max_examples=5_000)
@given(ANY_POLICY, PLACEMENTS)
def test_a_great_many_policies_survive_the_round_trip(
    policy: FamilyPolicy, placement: Placement
) -> None:
    desired = compile_policy(policy, placement)
    assert interpret(plan(empty_table(policy.family), desired).result, placement).policy == policy


@given(ANY_POLICY, st.sampled_from([None, "IP-MASQ-4"]))
def test_what_is_written_reads_back_as_the_rules_that_were_meant(
    policy: FamilyPolicy, set_name: str | None
) -> None:
    desired = compile_policy(policy, Placement(), set_name=set_name)
    for rule in (*desired.jumps, *desired.rules):
        read = parse_rule(rule.text, policy.family)
        assert (read, read.comment) == (rule, rule.comment)


def test_what_is_unknown_cannot_be_compiled() -> None:
    unknown = DecisionMap(V4, [Entry(0, 1, Verdict.UNKNOWN, Stated("rule 3"))])
    with pytest.raises(ValueError, match="rule 3"):
        compile_policy(FamilyPolicy(unknown), Placement())


@st.composite
def tables(draw: st.DrawFn, family: Family, placement: Placement) -> Table:
    """A nat table in which others have rules, and ours may be damaged in any way."""
    table = empty_table(family)
    if draw(st.booleans()):
        table = plan(table, compile_policy(draw(policies(family)), placement)).result
    chains = dict(table.chains)
    ours = list(table.rules(placement.chain))
    for name, rules in (("POSTROUTING", list(table.rules("POSTROUTING"))), (placement.chain, ours)):
        if name not in chains:
            continue
        for _ in range(draw(st.integers(0, 3))):
            place = draw(st.integers(0, len(rules)))
            remove = draw(st.booleans())
            if remove and rules:
                del rules[min(place, len(rules) - 1)]
            else:
                text = draw(st.sampled_from([*FOREIGN[1:], "-o lo -j RETURN"]))
                if name == "POSTROUTING" and placement.chain in chains and draw(st.booleans()):
                    text = f"-j {placement.chain}"
                rules.insert(place, parse_rule(text, family))
        chains[name] = Chain(name, chains[name].policy, tuple(rules))
    return Table(family, chains)


CHANGES = st.tuples(FAMILIES, PLACEMENTS).flatmap(
    lambda c: st.tuples(
        tables(*c),
        policies(c[0]).map(lambda p: compile_policy(p, c[1])) | st.just(absent(c[1])),
    )
)


@given(CHANGES)
def test_after_a_plan_nothing_is_left_to_plan(case: tuple[Table, DesiredChain]) -> None:
    actual, desired = case
    then = plan(actual, desired).result
    assert not plan(then, desired)
    assert then.rules(desired.placement.chain) == desired.rules


@given(CHANGES)
def test_the_edits_of_a_plan_lead_to_what_was_foretold(case: tuple[Table, DesiredChain]) -> None:
    actual, desired = case
    change = plan(actual, desired)
    then = plan(actual, desired).result
    memory = MemoryPlane(desired.placement)
    memory.tables[actual.family] = actual
    if change:
        memory.apply(actual.family, change)
        assert carried_out(actual, restore_text(change)) == then
    assert memory.tables[actual.family] == then
    assert bool(change) == bool(change.added or change.removed or change.create or change.delete)
    assert change.counts == (len(change.added), len(change.removed))


@given(CHANGES)
def test_rules_of_others_keep_their_order_and_their_text(case: tuple[Table, DesiredChain]) -> None:
    actual, desired = case
    then = plan(actual, desired).result

    def foreign(table: Table) -> list[str]:
        rules = table.rules("POSTROUTING")
        return [rule.text for rule in rules if rule.target != desired.placement.chain]

    assert foreign(then) == foreign(actual)
    assert set(then.chains) - {desired.placement.chain} == set(actual.chains) - {
        desired.placement.chain
    }


def carried_out(table: Table, text: str) -> Table:
    """Carry out a restore text line by line, as its manual page says: the reference."""
    chains = {name: list(chain.rules) for name, chain in table.chains.items()}
    head, *lines = text.splitlines()
    assert (head, lines.pop()) == ("*nat", "COMMIT")
    for line in lines:
        if line.startswith(":"):
            chains[line[1:].split()[0]] = []
            continue
        verb, chain, rest = [*line.split(" ", 2), ""][:3]
        if verb == "-X":
            assert chains.pop(chain) == []
        elif verb == "-A":
            chains[chain].append(parse_rule(rest, table.family))
        elif verb == "-I":
            number, _, rule = rest.partition(" ")
            assert 1 <= int(number) <= len(chains[chain]) + 1
            chains[chain].insert(int(number) - 1, parse_rule(rule, table.family))
        elif rest.isdigit():
            del chains[chain][int(rest) - 1]
        else:
            chains[chain].remove(parse_rule(rest, table.family))
    policies = {name: chain.policy for name, chain in table.chains.items()}
    return Table(
        table.family, {n: Chain(n, policies.get(n), tuple(rules)) for n, rules in chains.items()}
    )


def _chain(*texts: str) -> Table:
    lines = "".join(f"-A IP-MASQ {text}\n" for text in texts)
    jump = "-A POSTROUTING -m addrtype ! --dst-type LOCAL -j IP-MASQ\n"
    text = f"*nat\n:POSTROUTING ACCEPT [0:0]\n:IP-MASQ - [0:0]\n{jump}{lines}COMMIT\n"
    return parse_saved(text, V4, writer="test")


def _desired(*texts: str) -> DesiredChain:
    jump = parse_rule("-m addrtype ! --dst-type LOCAL -j IP-MASQ", V4)
    return DesiredChain(Placement(), (jump,), tuple(parse_rule(text, V4) for text in texts))


def test_a_rule_in_the_middle_is_edited_in_place() -> None:
    kept = [f"-d 10.{n}.0.0/16 -j RETURN" for n in range(5)]
    change = plan(_chain(*kept), _desired(*kept[:2], "-d 11.0.0.0/8 -j RETURN", *kept[3:]))
    assert (change.keep, change.rewrite) == (2, None)
    assert change.removed == ["-A IP-MASQ -d 10.2.0.0/16 -j RETURN"]
    assert change.added == ["-A IP-MASQ -d 11.0.0.0/8 -j RETURN"]


def test_many_changed_rules_are_written_anew() -> None:
    many = [f"-d 10.0.{n}.0/24 -j RETURN" for n in range(EDITED_IN_PLACE + 1)]
    assert plan(_chain(), _desired(*many)).rewrite is not None
    assert plan(_chain(), _desired(*many[1:])).rewrite is None


def test_a_jump_that_is_in_place_stays_when_others_append_after_it() -> None:
    table = _chain("-j MASQUERADE")
    hook = (*table.rules("POSTROUTING"), parse_rule("-o lo -j ACCEPT", V4))
    table = Table(V4, {**table.chains, "POSTROUTING": Chain("POSTROUTING", "ACCEPT", hook)})
    assert not plan(table, _desired("-j MASQUERADE"))


@pytest.mark.parametrize("chain", ["IP-MASQ", "POSTROUTING"])
def test_a_rule_of_ours_that_cannot_be_read_stops_the_plan(chain: str) -> None:
    table = _chain("-j MASQUERADE")
    hidden = Rule("-j IP-MASQ", parse_rule("-j IP-MASQ", V4).meaning, readable=False)
    damaged = Chain(chain, None, (hidden, *table.rules(chain)))
    with pytest.raises(KernelReadError, match="cannot be read in full") as caught:
        plan(Table(V4, {**table.chains, chain: damaged}), _desired())
    assert "nothing was written" in str(caught.value)


def test_an_empty_plan_is_false() -> None:
    assert not ChainPlan("IP-MASQ", empty_table(V4))
    assert not plan(empty_table(V4), absent(Placement()))


def test_a_default_source_and_a_network_beside_it_take_a_rule_each() -> None:
    network = Prefix(V4, (10 << 24) + (10 << 16), 24)
    fixed = (
        FixedSource(0, network.first - 1, 1),
        FixedSource(network.first, network.last, 2),
        FixedSource(network.last + 1, V4.last_address, 1),
    )
    policy = FamilyPolicy(DecisionMap(V4, ()), action=Action(fixed=fixed, random_fully=False))
    rules = [rule.text for rule in compile_policy(policy, Placement()).rules]
    assert rules[0] == "-d 10.10.0.0/24 -j SNAT --to-source 0.0.0.2"
    assert rules[1].endswith("-j SNAT --to-source 0.0.0.1")
    assert len(rules) == 2
    few = dataclasses.replace(policy, action=Action(fixed=fixed[1:2]))
    assert len(compile_policy(few, Placement()).rules) == 2
