"""What a few nodes' numbers say of the document that they try."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ipmasq_agent.fleet.nodes import NodeState
from ipmasq_agent.fleet.rollout import NextStep, Rollout
from ipmasq_agent.fleet.trial import Trial, few_of

NODES = ("a", "b", "c", "d")  # of which the first two try it
HOLDS: dict[str, Any] = {
    "newest": "new",
    "accepted": True,
    "ready": True,
    "in_force": True,
    "ports": 0.2,
    "filled": 0.1,
}
UNREADY = HOLDS | {"ready": False, "trouble": ("no room",)}
SILENT: dict[str, Any] = {"silent": "no route"}
CALM: dict[str, Any] = {}

Look = Sequence[dict[str, Any]]


def states(told: Look) -> list[NodeState]:
    """Return what nodes say; an empty word is that all is well."""
    found = []
    for node, each in zip(NODES, told, strict=True):
        held = {} if "silent" in each else HOLDS | {"held": "new" if node in "ab" else "old"}
        found.append(NodeState(node, **(held | each)))
    return found


def watched(*looks: Look, until: float = 100, findings: Sequence[str] = ()) -> Trial:
    """Return what has become of it after the numbers of before, and a look each 10 s."""
    trial = Trial(Rollout("new", frozenset("ab"), 25, math.inf), until).begun(states(looks[0]))
    for number, look in enumerate(looks[1:], start=1):
        trial = trial.after(states(look), 10.0 * number, NODES, findings)
        if trial.step is NextStep.WITHDRAW:
            break
    return trial


QUIET: Look = (CALM, CALM, CALM, CALM)


def test_what_stays_flat_is_for_all_once_the_time_is_over() -> None:
    assert watched(QUIET, QUIET, QUIET).step is NextStep.WAIT
    assert watched(QUIET, QUIET, QUIET, until=20).step is NextStep.DONE


def test_what_is_worse_at_two_looks_withdraws_it_and_at_one_only_prolongs_it() -> None:
    bad: Look = (CALM, {"overridden": 3}, CALM, CALM)
    once = watched(QUIET, bad, until=10)
    assert once.step is NextStep.WAIT
    assert watched(QUIET, bad, QUIET, until=10).step is NextStep.DONE
    twice = watched(QUIET, bad, bad, until=10)
    assert twice.step is NextStep.WITHDRAW
    assert twice.reason == (
        "b: 3 more ranges decided by rules of others, at most 0 on most other nodes"
    )


def test_what_others_suffer_too_is_not_its_doing() -> None:
    storm: Look = ({"dropped": 9}, {"dropped": 5}, {"dropped": 10}, {"dropped": 9})
    assert watched(QUIET, storm, storm, until=20).step is NextStep.DONE
    worse: Look = ({"dropped": 90}, *storm[1:])
    assert watched(QUIET, worse, worse).reason == (
        "a: 90 more packets dropped, at most 10 on most other nodes"
    )


def test_what_was_there_before_is_no_reason() -> None:
    ill: Look = ({"overridden": 3, "failed": 7, "ports": 0.9}, CALM, CALM, CALM)
    assert watched(ill, ill, ill, until=20).step is NextStep.DONE


def test_use_may_rise_by_a_tenth_beyond_what_it_does_elsewhere() -> None:
    busy: Look = ({"ports": 0.45}, {"filled": 0.19}, {"ports": 0.36}, {"ports": 0.36})
    assert watched(QUIET, busy, busy, until=20).step is NextStep.DONE
    busier: Look = ({"ports": 0.5}, *busy[1:])
    reason = watched(QUIET, busier, busier).reason
    assert reason == "a: 30% more of the source ports in use, at most 16% on most other nodes"


def test_what_an_agent_counts_anew_is_added() -> None:
    before: Look = ({"failed": 7}, CALM, CALM, CALM)
    begun_anew: Look = ({"failed": 1}, CALM, CALM, CALM)
    found = watched(before, begun_anew, begun_anew)
    assert found.reason == "a: 1 more passes failed, at most 0 on most other nodes"


def test_a_node_that_is_unready_or_silent_for_too_long_withdraws_it() -> None:
    for ill, why in ((UNREADY, "no room"), (SILENT, "no route")):
        look: Look = (CALM, ill, CALM, CALM)
        assert watched(QUIET, look, look, QUIET, until=30).step is NextStep.DONE
        found = watched(QUIET, look, look, look, look)
        assert found.reason == f"b: {why}"


def test_as_many_as_are_tolerated_may_fail() -> None:
    look: Look = (CALM, SILENT, CALM, CALM)
    terms = Rollout("new", frozenset("ab"), 25, math.inf, tolerated=1)
    trial = Trial(terms, 40).begun(states(QUIET))
    for moment in (10, 20, 30):
        trial = trial.after(states(look), moment, NODES)
        assert trial.step is NextStep.WAIT
    assert trial.after(states(look), 40, NODES).step is NextStep.DONE


def test_what_the_doctor_finds_withdraws_it_at_once() -> None:
    assert watched(QUIET, QUIET, findings=["a leak, on a"]).reason == "a leak, on a"


def test_a_number_that_nobody_knew_before_has_no_rise() -> None:
    unknown: Look = ({"ports": None}, CALM, CALM, CALM)
    full: Look = ({"ports": 0.9}, CALM, CALM, CALM)
    assert watched(unknown, full, full, until=20).step is NextStep.DONE


def test_without_a_node_that_tries_it_nothing_is_known() -> None:
    trial = Trial(Rollout("new", frozenset("ab"), 25, math.inf), 0)
    found = trial.after([], 1, ("c", "d"))
    assert found.reason == "no node that tries it is left"


NUMBERS = st.fixed_dictionaries(
    {"failed": st.integers(0, 9), "overridden": st.integers(0, 9), "ports": st.floats(0, 1)}
)


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=8))
def test_nodes_that_fare_like_the_others_never_withdraw_it(looks: list[Any]) -> None:
    alike = [(one, two, one, one) for one, two in ((each[0], each[0]) for each in looks)]
    found = watched(*alike, until=0)
    assert found.reason is None


@given(st.integers(0, 500))
def test_few_are_some_of_all_and_of_few_all(count: int) -> None:
    nodes = [str(number) for number in range(count)]
    few = few_of(nodes)
    assert set(few) <= set(nodes)
    assert len(few) <= 50
    assert len(few) >= min(count, 25)
