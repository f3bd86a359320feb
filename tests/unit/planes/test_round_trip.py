"""For every dialect and any policy: what is compiled is interpreted as the same policy."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ipmasq_agent.planes.bpf.interpret import interpret as interpret_bpf
from ipmasq_agent.planes.iptables import compile as iptables
from ipmasq_agent.planes.iptables.interpret import interpret
from ipmasq_agent.planes.iptables.plan import plan
from ipmasq_agent.planes.nftables import compile as nftables
from ipmasq_agent.planes.nftables.interpret import interpret as interpret_nftables
from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.planes.rules.table import empty_table
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.model import FamilyPolicy
from tests.unit.planes.bpf.node import on_a_node
from tests.unit.strategies import policies

PLACEMENT = Placement()


def by_rules(policy: FamilyPolicy) -> FamilyPolicy:
    desired = iptables.compile_policy(policy, PLACEMENT)
    return interpret(plan(empty_table(policy.family), desired).result, PLACEMENT).policy


def by_a_set(policy: FamilyPolicy) -> FamilyPolicy:
    desired = iptables.compile_policy(policy, PLACEMENT, set_name="IP-MASQ-4")
    return interpret(plan(empty_table(policy.family), desired).result, PLACEMENT).policy


def by_a_table(policy: FamilyPolicy) -> FamilyPolicy:
    return interpret_nftables(nftables.compile_policy(policy, PLACEMENT)).policy


def by_maps(policy: FamilyPolicy) -> FamilyPolicy:
    return interpret_bpf(on_a_node(policy)).policy


DIALECTS = (by_rules, by_a_set, by_a_table, by_maps)


def come_back(family: Family, examples: int) -> None:
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(policies(family))
    def each(policy: FamilyPolicy) -> None:
        for through in DIALECTS:
            assert through(policy) == policy, through.__name__

    each()


@pytest.mark.parametrize("family", list(Family), ids=lambda family: family.value)
def test_policies_come_back_as_they_were(family: Family) -> None:
    come_back(family, 200)


@pytest.mark.long
@pytest.mark.parametrize("family", list(Family), ids=lambda family: family.value)
def test_a_great_many_policies_come_back_as_they_were(family: Family) -> None:
    come_back(family, 5000)


@given(st.sampled_from(list(Family)).flatmap(policies))
def test_a_policy_that_differs_does_not_come_back_as_this_one(policy: FamilyPolicy) -> None:
    """Equality is not blind: a guard more makes another policy, unless nothing is masqueraded."""
    guards = policy.guards
    other = FamilyPolicy(
        policy.decisions,
        type(guards)(not guards.local_destinations, guards.sources, guards.devices),
        policy.action,
    )
    for through in DIALECTS:
        assert (through(other) == policy) is not policy.masquerades
