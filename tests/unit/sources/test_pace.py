"""Pace: a pure clockwork, so every moment is a number here."""

from __future__ import annotations

import itertools
import threading

from ipmasq_agent.sources.pace import Pace, Paced


def test_there_is_nothing_to_tell_at_first() -> None:
    assert Pace(0.2, 2.0).due is None


def test_a_change_is_told_once_it_has_been_quiet() -> None:
    pace = Pace(0.2, 2.0)
    pace.noted(10.0)
    assert pace.due == 10.2
    pace.noted(10.1)
    assert pace.due == 10.1 + 0.2


def test_changes_without_end_are_told_late_but_told() -> None:
    pace = Pace(0.2, 2.0)
    for tenth in range(100):
        pace.noted(10 + tenth / 10)
    assert pace.due == 12.0


def test_nothing_is_due_after_telling() -> None:
    pace = Pace(0.2, 2.0)
    pace.noted(10.0)
    pace.told(10.2)
    assert pace.due is None


def test_an_urgent_change_after_silence_is_due_at_once() -> None:
    pace = Pace(0.2, 2.0)
    pace.noted(10.0, urgent=True)
    assert pace.due == 10.0
    pace.told(10.0)
    pace.noted(60.0, urgent=True)
    assert pace.due == 60.0


def test_a_storm_of_urgent_changes_is_told_some_dozens_of_times_only() -> None:
    pace = Pace(0.2, 2.0)
    tellings = []
    for hundredth in range(5000):  # 100 a second for 50 seconds
        now = hundredth / 100
        pace.noted(now, urgent=True)
        assert pace.due is not None
        if pace.due <= now:
            tellings.append(now)
            pace.told(now)
    assert tellings[0] == 0
    assert len(tellings) < 35
    assert max(later - sooner for sooner, later in itertools.pairwise(tellings)) < 2.1


def test_work_that_raises_is_told_and_done_again() -> None:
    done, failures = threading.Event(), list[str]()
    raising = iter([ValueError("a secret")])

    def work() -> None:
        for error in raising:
            raise error
        done.set()

    paced = Paced(work, "worker", Pace(0.0, 0.0), lambda error: failures.append(error.message))
    paced.start()
    paced.note()
    assert done.wait(20)
    paced.stop()
    assert failures == ["the thread worker failed unexpectedly (ValueError)"]


def test_work_that_takes_long_is_not_done_all_the_time() -> None:
    pace = Pace(0.2, 2.0)
    pace.told(10.0, took=1.0)
    pace.noted(10.1)
    assert pace.due == 20.0
