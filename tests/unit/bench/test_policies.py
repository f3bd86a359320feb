"""What a measured policy decides can be told from its document alone."""

from __future__ import annotations

import ipaddress
from itertools import pairwise

import pytest
import yaml

from ipmasq_agent.bench.policies import DESTINATIONS, BlockPolicy, in_gap, samples, spread
from ipmasq_agent.config.assemble import assemble_family
from ipmasq_agent.config.document import parse_document
from ipmasq_agent.config.model import Flags
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.decisions import Verdict
from ipmasq_agent.policy.model import Capabilities

FAMILIES = pytest.mark.parametrize("family", list(Family), ids=lambda family: family.value)
FLAGS = Flags(enable_ipv6=True)


def networks(policy: BlockPolicy) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    return [ipaddress.ip_network(n) for n in yaml.safe_load(policy.document)["nonMasqueradeCIDRs"]]


@FAMILIES
@pytest.mark.parametrize("policy_size", [3, 64])
def test_it_has_as_many_cidrs_as_it_says_and_none_touches_another(
    family: Family, policy_size: int
) -> None:
    found = networks(BlockPolicy(family, policy_size))
    assert len(found) == policy_size
    spans = [(int(network[0]), int(network[-1])) for network in found]
    assert all(first > last + 1 for (_, last), (first, _) in pairwise(spans))
    whole = ipaddress.ip_network(DESTINATIONS[family])
    assert int(whole[0]) <= spans[0][0]
    assert spans[-1][1] <= int(whole[-1])


@FAMILIES
def test_what_is_expected_of_packets_is_what_the_document_has(family: Family) -> None:
    for policy in (
        BlockPolicy(family, 3),
        BlockPolicy(family, 64),
        BlockPolicy(family, 64, kept=500),
    ):
        held = networks(policy)
        asked = [*samples(family, policy.cidrs), in_gap(family, 500), in_gap(family, 501)]
        told = [policy.keeps(to) for to in asked]
        assert told == [
            any(ipaddress.ip_address(family.show(to)) in network for network in held)
            for to in asked
        ]
        assert {True, False} == set(told)


@FAMILIES
def test_the_agent_understands_it_so_too(family: Family) -> None:
    policy = BlockPolicy(family, 64, kept=500)
    config = parse_document(policy.document.encode(), "bench", FLAGS).config
    decisions = assemble_family(config, family, Capabilities()).decisions
    for to in (*samples(family, 64), in_gap(family, 500)):
        assert (decisions.decide(to).verdict is Verdict.NON_MASQUERADE) == policy.keeps(to)


@FAMILIES
def test_destinations_lie_between_all_cidrs_and_within_what_the_world_has(family: Family) -> None:
    whole = ipaddress.ip_network(DESTINATIONS[family])
    biggest = BlockPolicy(family, 100_000)
    for to in spread(family):
        assert not biggest.keeps(to)
        assert ipaddress.ip_address(family.show(to)) in whole
    assert len(set(spread(family))) == 250
