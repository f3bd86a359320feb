"""What every data plane promises: the agent and the verbs rely on this, and on no more."""

from __future__ import annotations

from random import Random

from ipmasq_agent.planes.registry import PLANES
from ipmasq_agent.policy.decisions import Verdict
from ipmasq_agent.policy.model import FamilyPolicy
from tests.contract.planes import DEVICES, ROWS, SUBJECTS, Subject
from tests.contract.policies import MANY, PORTS, entry, policy, prefix, walk


def test_there_is_one_subject_for_each_plane() -> None:
    assert SUBJECTS.keys() == {row.name for row in ROWS}
    assert {row.name for row in PLANES} < SUBJECTS.keys()


def policies(subject: Subject) -> list[FamilyPolicy]:
    """Return one policy for each thing that one can say."""
    family = subject.family
    within = [entry(family, 5, Verdict.MASQUERADE), *range(9)]
    return [
        policy(family, [1, 2, 3]),
        policy(family, within, ports=PORTS[2]),
        policy(family, [1], ports=PORTS[1], random_fully=False),
        policy(family, [1, 9], default=Verdict.NON_MASQUERADE),
        policy(family, [entry(family, 4, Verdict.MASQUERADE)], default=Verdict.NON_MASQUERADE),
        policy(family, [2], local=True, sources=[5, 7]),
        policy(family, [2], devices=DEVICES[1:], fixed=[8, 9]),
        policy(family, [1], fixed=[-1]),
        policy(family, range(MANY)),
        policy(family),
    ]


def test_what_was_planned_is_what_is_read_and_understood_and_nothing_is_left_to_do(
    subject: Subject,
) -> None:
    dialect = subject.plane.dialect
    for wanted in policies(subject):
        change = subject.write(wanted)
        assert change.counts == (len(change.added), len(change.removed))
        held = subject.another().read(subject.family)
        # Order and rounding of a probability are the data plane's own.
        assert len(dialect.describe(held)) == len(dialect.describe(change.result))
        assert not dialect.plan(held, dialect.compile(wanted))
        assert dialect.interpret(held).policy == dialect.interpret(change.result).policy == wanted
        assert not subject.planned(wanted)
        assert subject.plane.recall(subject.family) == held
        before = subject.shown()
        assert not subject.write(wanted)
        assert subject.shown() == before


def test_what_has_nothing_of_ours_says_so_and_cleanup_leads_there(subject: Subject) -> None:
    dialect, untouched = subject.plane.dialect, subject.shown()
    assert dialect.describe(subject.plane.read(subject.family)) == []
    assert not subject.write(None)
    assert subject.shown() == untouched
    for wanted in policies(subject)[:3]:
        assert subject.write(wanted)
        assert dialect.describe(subject.plane.read(subject.family))
        assert subject.row.may_hold(subject.placement)
    assert subject.write(None)
    assert dialect.describe(subject.another().read(subject.family)) == []
    assert subject.shown() == untouched
    assert not subject.row.holds(subject.placement)
    assert not subject.write(None)


def test_a_walk_through_random_policies_is_right_at_every_step(subject: Subject) -> None:
    random = Random(1)
    for number, wanted in enumerate(walk(subject.family, seed=3, steps=20)):
        subject.write(wanted)
        assert subject.decided() == wanted, f"step {number}"
        assert not subject.planned(wanted), f"step {number}"
        for address in (prefix(subject.family, number).first, random.getrandbits(32)):
            state = subject.another().read_at(subject.family, address)
            decided = subject.plane.dialect.interpret(state).policy.decisions.decide(address)
            expected = wanted.decisions.decide(address).verdict
            assert decided.verdict is expected, f"step {number}"


def test_a_change_of_one_entry_is_one_line(subject: Subject) -> None:
    numbers = list(range(0, 600, 3))
    subject.write(policy(subject.family, numbers))
    for wanted, counts in (
        ([*numbers, 1000], (1, 0)),
        ([*numbers[:50], *numbers[51:], 1000], (0, 1)),
        ([*numbers[:50], 2000, *numbers[51:], 1000], (1, 0)),
    ):
        change = subject.write(policy(subject.family, wanted))
        assert change.counts == counts
        assert subject.decided() == policy(subject.family, wanted)


def test_what_others_do_to_our_state_is_seen_and_healed(subject: Subject) -> None:
    wanted = policy(subject.family, range(20))
    subject.write(wanted)
    described = subject.plane.dialect.describe(subject.another().read(subject.family))
    for number in range(len(list(subject.ruins()))):
        ruin = list(subject.ruins())[number]
        assert not subject.plane.disturbed()
        ruin()
        assert subject.plane.disturbed(), number
        assert subject.write(wanted), number
        assert subject.decided() == wanted
        healed = subject.another().read(subject.family)
        assert subject.plane.dialect.describe(healed) == described
