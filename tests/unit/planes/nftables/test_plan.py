"""What changes in a set of nftables: edited in place only where no look-up can miss."""

from __future__ import annotations

import pytest

from ipmasq_agent.planes.nftables.compile import KEEP, compile_policy
from ipmasq_agent.planes.nftables.plan import plan
from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.cidrs import parse_cidr
from ipmasq_agent.policy.decisions import DecisionMap, Entry, Stated, Verdict
from ipmasq_agent.policy.model import FamilyPolicy


def keeping(*texts: str) -> FamilyPolicy:
    prefixes = map(parse_cidr, texts)
    entries = [Entry(p.first, p.last, Verdict.NON_MASQUERADE, Stated("a test")) for p in prefixes]
    return FamilyPolicy(DecisionMap(Family.IPV4, entries, Verdict.MASQUERADE, Stated("the rest")))


@pytest.mark.parametrize(
    ("before", "after", "in_place"),
    [
        (["10.0.0.0/8"], ["10.0.0.0/8", "11.1.0.0/16"], True),
        (["10.0.0.0/8", "11.1.0.0/16"], ["10.0.0.0/8"], True),
        (["10.1.0.0/16"], ["10.2.0.0/16"], True),
        (["10.0.0.0/8"], ["10.0.0.0/16"], False),
        (["10.0.0.0/16"], ["10.0.0.0/8"], False),
        (["10.1.0.0/16", "12.0.0.0/8"], ["10.0.0.0/8", "12.0.0.0/8"], False),
    ],
)
def test_a_range_that_comes_where_another_goes_takes_another_set(
    before: list[str], after: list[str], in_place: bool
) -> None:
    there, wanted = (compile_policy(keeping(*texts), Placement()) for texts in (before, after))
    (change,) = plan(there, wanted).sets_changed
    assert (change.name, change.in_place) == (KEEP, in_place)
    # Rules have to ask the other set, too, in the same transaction.
    assert bool(plan(there, wanted).rewritten) is not in_place
