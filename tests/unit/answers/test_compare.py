from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipmasq_agent.answers.compare import PolicyComparison, Side, compare
from ipmasq_agent.policy.addresses import Family, Prefix
from ipmasq_agent.policy.decisions import DecisionMap, Origin, Stated, Verdict, entry_of_prefix
from ipmasq_agent.policy.model import Action, FamilyPolicy, FixedSource, Guards, PortRange
from tests.unit import strategies

KEEP, MASQUERADE, UNKNOWN = Verdict.NON_MASQUERADE, Verdict.MASQUERADE, Verdict.UNKNOWN
EVERYTHING = {Family.IPV4: "0.0.0.0/0", Family.IPV6: "::/0"}


def prefix(text: str) -> Prefix:
    network = ipaddress.ip_network(text)
    family = Family.IPV4 if network.version == 4 else Family.IPV6
    return Prefix(family, int(network.network_address), network.prefixlen)


def policy(
    *kept: str,
    family: Family = Family.IPV4,
    unknown: str = "",
    guards: Guards | None = None,
    action: Action | None = None,
    default: Verdict = MASQUERADE,
) -> FamilyPolicy:
    entries = [entry_of_prefix(prefix(t), UNKNOWN, Stated(f"odd {t}")) for t in unknown.split()]
    entries += [entry_of_prefix(prefix(t), KEEP, Origin(t, "doc", 3, 5)) for t in kept]
    decisions = DecisionMap(family, entries, default)
    return FamilyPolicy(decisions, guards or Guards(), action or Action())


def side(label: str, *policies: FamilyPolicy, **more: Any) -> Side:
    return Side(label, {policy.family: policy for policy in policies}, **more)


def compared(left: FamilyPolicy, right: FamilyPolicy) -> PolicyComparison:
    return compare(side("left", left), side("right", right))


def cidrs(comparison: PolicyComparison) -> list[tuple[str, str, str]]:
    differences = comparison.as_data()["differences"]
    return [(each["cidr"], each["left"], each["right"]) for each in differences]


def test_policies_that_decide_alike_are_equal_whatever_their_entries() -> None:
    answer = compared(policy("10.0.0.0/8"), policy("10.0.0.0/9", "10.128.0.0/9", "10.1.0.0/16"))
    assert answer.equal
    assert answer.as_data() == {
        "equal": True,
        "left": "left",
        "right": "right",
        "differences": [],
        "conditions": [],
        "notes": [],
    }
    assert list(answer.as_lines(50)) == ["left and right decide alike about ipv4"]


def test_a_range_that_differs_names_an_address_and_the_entry_behind_each_side() -> None:
    answer = compared(policy("10.0.0.0/8", "172.16.0.0/12"), policy("10.0.0.0/9"))
    assert not answer.equal
    assert answer.as_data()["differences"] == [
        {
            "family": "ipv4",
            "cidr": "10.128.0.0/9",
            "address": "10.128.0.0",
            "left": "non-masquerade",
            "right": "masquerade",
            "leftEntry": "10.0.0.0/8 (doc:3)",
            "rightEntry": "every other destination",
        },
        {
            "family": "ipv4",
            "cidr": "172.16.0.0/12",
            "address": "172.16.0.0",
            "left": "non-masquerade",
            "right": "masquerade",
            "leftEntry": "172.16.0.0/12 (doc:3)",
            "rightEntry": "every other destination",
        },
    ]
    assert list(answer.as_lines(1)) == [
        "--- left",
        "+++ right",
        "@@ 10.128.0.0/9, for example 10.128.0.0 @@",
        "-non-masquerade: 10.0.0.0/8 (doc:3)",
        "+masquerade: every other destination",
        "... and 1 more ipv4 ranges; -o json shows them all",
    ]


def test_neighbours_that_differ_alike_are_told_in_the_fewest_cidrs() -> None:
    answer = compared(policy("10.0.0.0/16", "10.1.0.0/16", "10.2.0.0/15"), policy())
    assert cidrs(answer) == [("10.0.0.0/14", KEEP, MASQUERADE)]


@given(st.data(), strategies.FAMILIES)
def test_the_cidrs_hold_exactly_the_addresses_whose_verdict_differs(
    data: st.DataObject, family: Family
) -> None:
    left = FamilyPolicy(data.draw(strategies.maps(family)))
    right = FamilyPolicy(data.draw(strategies.maps(family)))
    address = data.draw(strategies.addresses(family))
    one, two = left.decisions.decide(address), right.decisions.decide(address)
    holding = [
        each
        for each in compared(left, right).as_data()["differences"]
        if ipaddress.ip_address(family.show(address)) in ipaddress.ip_network(each["cidr"])
    ]
    if one.verdict is two.verdict:
        assert holding == []
    else:
        assert [(each["left"], each["right"]) for each in holding] == [(one.verdict, two.verdict)]


@given(strategies.ANY_POLICY)
def test_any_policy_equals_itself(one: FamilyPolicy) -> None:
    assert compared(one, one).equal


@pytest.mark.parametrize("family", Family)
def test_a_family_of_one_side_is_compared_with_leaving_packets_alone(family: Family) -> None:
    masquerading = side("left", policy(family=family))
    answer = compare(masquerading, side("right"))
    assert cidrs(answer) == [(EVERYTHING[family], MASQUERADE, KEEP)]
    entry = answer.as_data()["differences"][0]["rightEntry"]
    assert entry == f"right does not manage {family.value}"
    assert answer.notes == (
        f"{family.value} is managed by left alone; right leaves its packets as they are",
    )
    idle = compare(side("left"), side("right", policy(family=family, default=KEEP)))
    assert idle.equal
    assert len(idle.notes) == 1


def test_a_range_that_neither_side_can_tell_is_a_difference() -> None:
    answer = compared(policy(unknown="10.0.0.0/8"), policy(unknown="10.1.0.0/16 11.0.0.0/8"))
    assert ("10.1.0.0/16", UNKNOWN, UNKNOWN) in cidrs(answer)
    assert ("11.0.0.0/8", MASQUERADE, UNKNOWN) in cidrs(answer)
    both = compared(policy(unknown="10.0.0.0/8"), policy(unknown="10.0.0.0/8"))
    assert cidrs(both) == [("10.0.0.0/8", UNKNOWN, UNKNOWN)]
    assert not both.equal


@pytest.mark.parametrize(
    ("guards", "action", "name", "told"),
    [
        (Guards(sources=(prefix("172.20.0.0/24"),)), None, "packets from", "172.20.0.0/24"),
        (Guards(devices=("eth0", "eth1")), None, "packets out of", "eth0, eth1"),
        (
            Guards(devices=tuple("abcdef")),
            None,
            "packets out of",
            "a, b, c, d and 2 more",
        ),
        (
            Guards(local_destinations=True),
            None,
            "packets to the node itself",
            "treated as any other",
        ),
        (
            None,
            Action(fixed=(FixedSource(0, Family.IPV4.last_address, 0xC0000201),)),
            "source address given",
            "192.0.2.1",
        ),
        (
            None,
            Action(fixed=(FixedSource(0, 0x0AFFFFFF, 1), FixedSource(0x0B000000, 0x0BFFFFFF, 2))),
            "source address given",
            "0.0.0.1 to 0.0.0.0-10.255.255.255, 0.0.0.2 to 11.0.0.0/8",
        ),
    ],
)
def test_what_masquerading_depends_on_makes_two_sides_unequal(
    guards: Guards | None, action: Action | None, name: str, told: str
) -> None:
    answer = compared(policy(guards=guards, action=action), policy())
    assert not answer.equal
    assert answer.ranges == ()
    (condition,) = answer.conditions
    assert (condition.name, condition.left) == (name, told)
    assert list(answer.as_lines(50))[2:] == [
        f"@@ ipv4, {name} @@",
        f"-{told}",
        f"+{condition.right}",
    ]
    assert answer.as_data()["conditions"][0]["left"] == told


def test_conditions_do_not_count_where_a_side_masquerades_nothing() -> None:
    guarded = policy("0.0.0.0/0", guards=Guards(devices=("eth0",)))
    assert compared(guarded, policy("0.0.0.0/0")).equal


def test_conditions_do_not_count_where_a_side_cannot_tell_them() -> None:
    guarded = side("left", policy(guards=Guards(devices=("eth0",))))
    assert compare(guarded, side("right", policy(), conditions_known=False)).equal


def test_ports_are_remarked_upon_and_leave_two_sides_equal() -> None:
    action = Action(ports=(PortRange(1024, 2000),), random_fully=False)
    answer = compared(policy(action=action), policy())
    assert answer.equal
    assert answer.notes == (
        "ipv4 source ports differ: 1024-2000 (left), any (right)",
        "ipv4 source ports are chosen fully at random by right only",
    )


def test_notes_of_the_sides_say_whose_they_are() -> None:
    answer = compare(side("left", policy(), notes=("the map is full",)), side("right", policy()))
    assert answer.as_data()["notes"] == ["left: the map is full"]
