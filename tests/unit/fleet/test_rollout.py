"""Who is waited for, who has failed, and when a document is to be taken back."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ipmasq_agent.fleet.nodes import NodeState
from ipmasq_agent.fleet.rollout import NextStep, Rollout

NODES = ("a", "b", "c")
HOLDS: dict[str, Any] = {
    "held": "new",
    "newest": "new",
    "accepted": True,
    "ready": True,
    "in_force": True,
}
BEFORE: dict[str, Any] = HOLDS | {"held": "old", "newest": "old"}
REFUSES: dict[str, Any] = BEFORE | {
    "newest": "new",
    "accepted": False,
    "ready": False,
    "trouble": ("line 3",),
}
UNREADY: dict[str, Any] = BEFORE | {"newest": "new", "ready": False, "trouble": ("no room",)}
SILENT: dict[str, Any] = {"silent": "no route"}


def rollout(**terms: Any) -> Rollout:
    return Rollout("new", frozenset(NODES), grace=10, limit=100, **terms)


def looked(before: Rollout, moment: float, *found: dict[str, Any]) -> Rollout:
    states = [NodeState(node, **each) for node, each in zip(NODES, found, strict=False)]
    return before.after(states, moment, NODES)


def test_it_is_done_once_all_hold_it_at_one_look() -> None:
    first = looked(rollout(), 1, HOLDS, HOLDS, BEFORE)
    assert first.step is NextStep.WAIT
    assert first.pending == {"c"}
    then = first.after([NodeState("c", **HOLDS)], 2, NODES)
    assert then.step is NextStep.WAIT
    assert then.pending == set(NODES)  # all are asked once more
    assert looked(then, 2, HOLDS, HOLDS, HOLDS).step is NextStep.DONE
    assert looked(then, 2, HOLDS, UNREADY, HOLDS).step is NextStep.WAIT


def test_a_node_that_refuses_it_has_failed_at_once() -> None:
    found = looked(rollout(), 0, BEFORE, REFUSES, BEFORE)
    assert found.step is NextStep.WITHDRAW
    assert found.failed == {"b": "line 3"}


def test_a_node_may_be_unready_or_silent_for_a_while() -> None:
    for ailing in (UNREADY, SILENT):
        found = looked(rollout(), 5, HOLDS, ailing, HOLDS)
        assert found.step is NextStep.WAIT
        assert set(found.troubled) == {"b"}
        assert looked(found, 14.9, HOLDS, ailing, HOLDS).step is NextStep.WAIT
        assert looked(found, 15, HOLDS, ailing, HOLDS).step is NextStep.WITHDRAW
        well = looked(found, 14, HOLDS, HOLDS, HOLDS)
        assert (well.step, well.troubled) == (NextStep.DONE, {})
        assert looked(well, 16, HOLDS, ailing, HOLDS).step is NextStep.WAIT


def test_who_has_not_seen_it_in_time_has_failed() -> None:
    assert looked(rollout(), 99, HOLDS, BEFORE, HOLDS).step is NextStep.WAIT
    found = looked(rollout(), 100, HOLDS, BEFORE, HOLDS)
    assert found.step is NextStep.WITHDRAW
    assert found.failed == {"b": "has not seen the cluster's document (new) yet"}


def test_as_many_as_are_tolerated_may_fail() -> None:
    assert looked(rollout(tolerated=1), 0, HOLDS, REFUSES, HOLDS).step is NextStep.DONE
    assert looked(rollout(tolerated=1), 0, HOLDS, REFUSES, REFUSES).step is NextStep.WITHDRAW


def test_who_leaves_the_cluster_is_not_waited_for() -> None:
    states = [NodeState("a", **HOLDS), NodeState("b", **HOLDS), NodeState("c", **SILENT)]
    assert rollout().after(states, 0, ["a", "b"]).step is NextStep.DONE


@given(
    st.lists(
        st.tuples(
            st.floats(0, 50),
            st.lists(
                st.sampled_from([HOLDS, BEFORE, REFUSES, UNREADY, SILENT]), min_size=3, max_size=3
            ),
        )
    )
)
def test_it_is_done_only_while_the_last_look_saw_that_all_hold_it(
    looks: list[tuple[float, list[dict[str, Any]]]],
) -> None:
    found, moment = rollout(), 0.0
    for seconds, states in looks:
        moment += seconds
        found = looked(found, moment, *states)
        assert (found.step is NextStep.DONE) == all(each is HOLDS for each in states)
        if any(each is REFUSES for each in states):
            assert found.step is NextStep.WITHDRAW
