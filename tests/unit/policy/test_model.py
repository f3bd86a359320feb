"""Ports, guards and actions; what makes two policies the same."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given

from ipmasq_agent.config.assemble import LINK_LOCAL, assemble_family
from ipmasq_agent.config.keys import MASQ_LINK_LOCAL_IPV6, NON_MASQUERADE_CIDRS
from ipmasq_agent.config.model import Config, Flags
from ipmasq_agent.policy.addresses import Family, Prefix
from ipmasq_agent.policy.decisions import Stated, Verdict
from ipmasq_agent.policy.model import (
    Action,
    Capabilities,
    FamilyPolicy,
    Guards,
    PortRange,
    parse_port_ranges,
)
from ipmasq_agent.policy.prefixes import Listed
from tests.unit.strategies import ANY_POLICY

V4, V6 = Family.IPV4, Family.IPV6


def test_port_ranges_keep_their_order_and_a_lone_port_is_a_range() -> None:
    assert parse_port_ranges("32768-65535,1024-29999,42") == (
        PortRange(32768, 65535),
        PortRange(1024, 29999),
        PortRange(42, 42),
    )
    assert parse_port_ranges("") == ()
    assert PortRange(1, 3).size == 3
    assert str(PortRange(1, 3)) == "1-3"


@pytest.mark.parametrize(
    "text",
    [
        *(",", "1024-", "-5", "5-4", "0-5", "0", "65536", "1-65536", "1024-2000,", "1 - 2", "a"),
        *("1-2-3", "\N{ARABIC-INDIC DIGIT FIVE}", "+5", "9" * 5_000),
    ],
)
def test_what_is_not_a_port_range_is_refused_in_words(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a port or a range|does not go upwards"):
        parse_port_ranges(text)


@given(ANY_POLICY)
def test_a_policy_equals_its_copy_and_hashes_alike(policy: FamilyPolicy) -> None:
    copy = dataclasses.replace(policy)
    assert policy == copy
    assert hash(policy) == hash(copy)
    assert policy != "a policy"


@given(ANY_POLICY)
def test_guards_and_actions_count_unless_nothing_is_masqueraded(policy: FamilyPolicy) -> None:
    masquerades = any(v is Verdict.MASQUERADE for _, v in policy.decisions.shape())
    local = Guards(not policy.guards.local_destinations)
    assert (policy != dataclasses.replace(policy, guards=local)) == masquerades
    action = Action(policy.action.ports, not policy.action.random_fully)
    assert (policy != dataclasses.replace(policy, action=action)) == masquerades


def test_link_local_comes_first_and_each_family_gets_its_own_entries() -> None:
    ten, seven = Prefix(V4, 10 << 24, 8), Prefix(V6, 0xFD << 120, 8)
    config = Config(
        Flags(enable_ipv6=True, to_ports=(PortRange(5, 6),)),
        {
            NON_MASQUERADE_CIDRS: Listed.of(((seven, Stated("b")), (ten, Stated("a")))),
            MASQ_LINK_LOCAL_IPV6: True,
        },
    )
    host = Capabilities(random_fully=False)
    policy = {family: assemble_family(config, family, host) for family in config.families}
    first = [entry.first for entry in policy[V4].decisions.entries]
    assert first == [LINK_LOCAL[V4].first, ten.first]
    assert [entry.first for entry in policy[V6].decisions.entries] == [seven.first]
    assert policy[V4].action == Action((PortRange(5, 6),), random_fully=False)
    assert "masqLinkLocal: false" in str(policy[V4].decisions.entries[0].reason)
