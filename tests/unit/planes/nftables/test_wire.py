"""Rules as expressions of the kernel, and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipmasq_agent.netlink.expressions import (
    Counter,
    Opaque,
    expressions_of,
    packed_expressions,
)
from ipmasq_agent.planes.nftables.rules import (
    Dispatch,
    Ending,
    Field,
    InSet,
    NftRule,
    OfProtocol,
    Share,
    ToThisNode,
    Translate,
    Unreadable,
)
from ipmasq_agent.planes.nftables.wire import expressions_for, rule_of
from ipmasq_agent.policy.addresses import Family
from tests.unit.strategies import FAMILIES, port_ranges

NAMES = st.sampled_from(["keep", "sources", "keep-0a000000"])
MATCHES = st.one_of(
    st.just(ToThisNode()),
    st.builds(InSet, st.sampled_from(Field), NAMES),
    st.sampled_from(["tcp", "udp", "sctp"]).map(OfProtocol),
    st.builds(Share, st.integers(1, 60000), st.integers(60001, 200000)),
)
ACTIONS = st.one_of(
    st.sampled_from(list(Ending)),
    NAMES.map(Dispatch),
    st.builds(Translate, st.none() | NAMES, st.none() | port_ranges(), st.booleans()),
)
RULES = st.builds(NftRule, st.lists(MATCHES, max_size=4).map(tuple), ACTIONS)


@given(RULES, FAMILIES)
def test_a_rule_is_told_by_its_expressions(rule: NftRule, family: Family) -> None:
    assert (
        rule_of(expressions_of(packed_expressions(expressions_for(rule, family))), family) == rule
    )


@given(RULES, FAMILIES, st.data())
def test_a_rule_with_one_expression_less_is_another_rule_or_not_readable(
    rule: NftRule, family: Family, data: st.DataObject
) -> None:
    expressions = expressions_for(rule, family)
    del expressions[data.draw(st.integers(0, len(expressions) - 1))]
    told = rule_of(tuple(expressions), family)
    assert told != rule
    assert isinstance(told.action, Unreadable) or len(told.matches) <= len(rule.matches)


def test_a_rule_that_counts_is_the_same_rule() -> None:
    rule = NftRule((InSet(Field.DESTINATION, "keep"),), Ending.RETURN)
    expressions = expressions_for(rule, Family.IPV4)
    expressions.insert(2, Counter())
    assert rule_of(expressions, Family.IPV4) == rule


def test_a_rule_of_the_other_family_is_not_taken_for_ours() -> None:
    rule = NftRule((InSet(Field.DESTINATION, "keep"),), Ending.RETURN)
    told = rule_of(expressions_for(rule, Family.IPV4), Family.IPV6)
    assert isinstance(told.action, Unreadable)


def test_what_cannot_be_read_cannot_be_written_and_equals_itself_alone() -> None:
    told = [rule_of([Opaque("log", bytes([n]))], Family.IPV4) for n in (1, 1, 2)]
    assert told[0] == told[1] != told[2]
    with pytest.raises(ValueError, match="cannot be read"):
        expressions_for(told[0], Family.IPV4)
