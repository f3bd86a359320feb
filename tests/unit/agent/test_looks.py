"""Looks between resyncs: at word from the kernel, and now and then, as often as they may cost."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

import pytest

from ipmasq_agent.agent import loop
from ipmasq_agent.agent.events import Signal
from ipmasq_agent.agent.exposition import exposed
from ipmasq_agent.errors import HostError
from ipmasq_agent.planes.rules.table import Table
from ipmasq_agent.policy.addresses import Family
from tests.unit.agent.support import Bench

DOCUMENT = "resyncInterval: 1h\nnonMasqueradeCIDRs: [10.0.0.0/8]\n"
KEPT = ["169.254.0.0/16", "10.0.0.0/8"]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    """An agent that looks at nothing unless it is told to."""
    monkeypatch.setattr(loop, "GLANCE", 3600.0)
    made = Bench()
    made.document(DOCUMENT)
    assert made.chain() == KEPT
    return made


def told(bench: Bench) -> None:
    """Let the kernel send word, when the look before is long past."""
    bench.agent._rested = 0.0
    bench.agent.send(Signal.LOOK)
    bench.agent.turn()


def metrics(bench: Bench) -> list[bytes]:
    """Return what the agent tells of itself, without the time and memory of this process."""
    lines = exposed(bench.agent.metrics.all(bench.agent.status))[1].splitlines()
    return [line for line in lines if line.startswith(b"ipmasq_agent_")]


def test_at_word_of_a_commit_what_is_gone_comes_back(bench: Bench) -> None:
    bench.flush()
    told(bench)
    assert bench.chain() == []  # the look has found nothing
    bench.backend.gone = True
    told(bench)
    assert bench.chain() == KEPT
    assert bench.agent.status.in_sync


def test_word_that_means_nothing_makes_no_pass(bench: Bench) -> None:
    before, looks = metrics(bench), bench.backend.looks
    told(bench)
    assert bench.backend.looks == looks + 1
    assert metrics(bench) == before


def test_words_that_follow_each_other_are_looked_into_once(bench: Bench) -> None:
    told(bench)
    looks = bench.backend.looks
    bench.agent._rested = time.monotonic() + 3600
    for _ in range(100):
        bench.agent.send(Signal.LOOK)
        bench.agent.turn()
    assert bench.backend.looks == looks


def test_one_who_flushes_in_a_loop_is_not_followed_at_full_speed(bench: Bench) -> None:
    bench.backend.gone = True
    waits = []
    for _ in range(20):
        bench.flush()
        told(bench)
        assert bench.chain() == KEPT
        waits.append(bench.agent._rested - time.monotonic())
        bench.flush()
        bench.agent.send(Signal.LOOK)
        bench.agent._rested = bench.agent._next_look = time.monotonic() + 3600  # it is not past
        bench.agent.send(Signal.LOOK)
        bench.agent.turn()
        assert bench.chain() == []
    assert waits[0] < 1 < waits[-1]


def test_a_look_that_fails_is_said_once(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.backend.gone = HostError("no permission")
    with caplog.at_level(logging.WARNING):
        told(bench)
        told(bench)
        assert [r.getMessage() for r in caplog.records].count("cannot look") == 1
        bench.backend.gone = False
        told(bench)
        bench.backend.gone = HostError("no permission")
        told(bench)
    assert [r.getMessage() for r in caplog.records].count("cannot look") == 2


def test_what_failed_is_tried_again_at_its_time_and_not_at_each_look(bench: Bench) -> None:
    bench.backend.broken.add(Family.IPV4)
    bench.document("nonMasqueradeCIDRs: [10.0.0.0/8, 172.16.0.0/12]\n", "2")
    assert bench.agent.status.look.errors
    bench.agent._next_pass = time.monotonic() + 3600
    passes = bench.agent.status.passes
    for _ in range(3):
        bench.agent._next_look = time.monotonic()
        bench.agent.turn()
    assert bench.agent.status.passes == passes
    bench.backend.broken.clear()
    bench.resync()
    assert bench.chain() == [*KEPT, "172.16.0.0/12"]


def test_a_family_that_fails_does_not_keep_the_other_one_from_being_healed(bench: Bench) -> None:
    status = bench.agent.status
    failing = {Family.IPV6: "the kernel has no nat for it"}
    look = replace(status.look, families=(Family.IPV4, Family.IPV6), errors=failing)
    bench.agent.status = replace(status, look=look)
    bench.agent._next_pass = time.monotonic() + 3600
    bench.flush()
    bench.backend.gone = True
    told(bench)
    assert bench.chain() == KEPT
    assert bench.backend.failing == {Family.IPV6}


def test_out_of_step_is_said_before_it_is_healed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[bool] = []
    read = bench.backend.read

    def reading(family: Family) -> Table:
        said.append(bench.agent.status.in_sync)
        return read(family)

    monkeypatch.setattr(bench.backend, "read", reading)
    bench.backend.gone = True
    told(bench)
    assert said
    assert not any(said)
    assert bench.agent.status.in_sync


def test_what_could_not_be_taken_in_is_tried_again_at_its_time_and_not_at_each_look(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[object] = []

    def fails(batch: object) -> bool:
        tries.append(batch)
        raise RuntimeError("nobody foresaw this")

    monkeypatch.setattr(bench.agent._documents, "take_in", fails)
    bench.document("nonMasqueradeCIDRs: [10.0.0.0/8, 172.16.0.0/12]\n", "2")
    assert len(tries) == 1
    bench.agent._next_pass = time.monotonic() + 3600
    for _ in range(3):
        bench.agent._next_look = time.monotonic()
        bench.agent.turn()
    assert len(tries) == 1
    monkeypatch.undo()
    bench.resync()
    assert bench.chain() == [*KEPT, "172.16.0.0/12"]
