"""Flows by what rules counted: nothing twice, nothing lost, never less than before."""

from __future__ import annotations

from ipmasq_agent.errors import KernelReadError
from ipmasq_agent.planes.flowcount import ENTERED, TRANSLATED, Counts, FlowCount
from ipmasq_agent.policy.addresses import Family

FOUR = Family.IPV4


class Rules:
    """What rules of a kernel have counted: of each how many came to it, and whether it keeps."""

    def __init__(self, **counted: int) -> None:
        self.counted = counted
        self.broken = False
        self.flows = FlowCount(self.read)

    def read(self, family: Family) -> Counts:
        if self.broken:
            raise KernelReadError("no")
        for rule, packets in self.counted.items() if family is FOUR else ():
            yield rule, ENTERED, packets
            if not rule.startswith("keep"):
                yield rule, TRANSLATED, packets

    def told(self) -> tuple[int, int]:
        found = self.flows.told()
        return found.get((FOUR, "flows_translated"), 0), found.get((FOUR, "flows_kept"), 0)


def test_what_was_counted_before_anybody_asked_is_none_of_ours() -> None:
    rules = Rules(keep=100, rest=1000)
    assert rules.told() == (0, 0)
    rules.counted = {"keep": 103, "rest": 1005}
    assert rules.told() == rules.told() == (5, 3)


def test_rules_that_are_written_anew_lose_nothing() -> None:
    rules = Rules(keep=0, rest=0)
    rules.told()
    rules.counted = {"keep": 3, "rest": 5}
    with rules.flows.rewriting(FOUR):
        rules.counted = {"keep2": 0, "rest": 0}
    rules.counted = {"keep2": 1, "rest": 2}
    assert rules.told() == (7, 4)
    with rules.flows.rewriting(FOUR):
        rules.counted = {"keep2": 0, "rest": 0}
    rules.counted = {"keep2": 5, "rest": 6}  # more than those before had: all of it is new
    assert rules.told() == (13, 9)
    rules.counted = {}
    assert rules.told() == (13, 9)


def test_before_anybody_asks_a_pass_reads_nothing() -> None:
    rules = Rules(rest=1)
    rules.broken = True
    with rules.flows.rewriting(FOUR):
        rules.broken = False
    assert rules.told() == (0, 0)


def test_what_cannot_be_read_fails_no_pass_and_takes_nothing_away() -> None:
    rules = Rules(rest=1)
    rules.told()
    rules.counted = {"rest": 4}
    rules.broken = True
    with rules.flows.rewriting(FOUR):
        rules.broken = False
    assert rules.told() == (3, 0)


def test_a_rule_that_was_translating_and_keeps_now_takes_nothing_back() -> None:
    rules = Rules(rest=0)
    rules.told()
    rules.counted = {"rest": 9}
    assert rules.told() == (9, 0)
    rules.counted = {"keep": 2}
    assert rules.told() == (9, 2)


def test_a_pass_waits_for_nobody_who_is_reading() -> None:
    rules = Rules(rest=0)
    rules.told()
    rules.counted = {"rest": 2}
    seen = []

    def reading(family: Family) -> Counts:
        with rules.flows.rewriting(FOUR):  # as if by the thread of passes, at this moment
            seen.append(family)
        return rules.read(family)

    rules.flows._read = reading
    assert rules.told() == (2, 0)
    assert seen == [*Family]
