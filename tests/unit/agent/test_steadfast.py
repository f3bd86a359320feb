"""Whatever fails, and however: it is told, the last good policy is healed, the loop goes on."""

from __future__ import annotations

import errno
import json
import math
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from operator import attrgetter
from typing import Any

import pytest

from ipmasq_agent import logs
from ipmasq_agent.agent import documents
from ipmasq_agent.agent.events import Signal
from ipmasq_agent.agent.reception import answers
from ipmasq_agent.config.document import parse_documents
from ipmasq_agent.host import patience
from ipmasq_agent.host.threads import Guarded
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.sources import Document
from tests.unit.agent.support import Bench

FAULTS = [
    KeyError("Bearer hush-hush"),
    MemoryError(),
    OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
    RecursionError("hush-hush"),
    AssertionError("hush-hush"),
]
ONE = "masqLinkLocal: true\nnonMasqueradeCIDRs: [10.0.0.0/8]"
TWO = "masqLinkLocal: true\nnonMasqueradeCIDRs: [10.0.0.0/8, 192.0.2.0/24]"


@pytest.fixture(autouse=True)
def no_stop() -> Iterator[None]:
    yield
    patience.end_by(math.inf)


@pytest.fixture
def bench() -> Bench:
    made = Bench()
    made.document(ONE)
    assert made.agent.status.ready
    return made


def fail(fault: Exception, times: list[int], after: Any = None) -> Any:
    """Return a function that raises as long as ``times`` has entries, then does ``after``."""

    def failing(*args: Any, **options: Any) -> Any:
        if times:
            times.pop()
            raise type(fault)(*fault.args)
        return after(*args, **options) if after is not None else None

    return failing


def assert_told(bench: Bench) -> None:
    status = bench.agent.status
    assert not status.ready
    assert "failed unexpectedly" in status.why_not_ready()
    assert "hush-hush" not in json.dumps(status.as_data()) + status.as_text()
    assert bench.agent._next_pass <= time.monotonic() + 30


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
@pytest.mark.parametrize("step", ["read", "plan", "apply", "advice"])
def test_a_fault_in_a_backend_fails_the_pass_and_the_next_one_heals(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, fault: Exception, step: str
) -> None:
    dialect = bench.backend.dialect
    if hasattr(dialect, step):
        failing = fail(fault, [1], getattr(dialect, step))
        monkeypatch.setattr(bench.backend, "dialect", replace(dialect, **{step: failing}))
    else:
        done = getattr(bench.backend, step)
        monkeypatch.setattr(bench.backend, step, fail(fault, [1], done))
    bench.flush()
    bench.resync()
    assert_told(bench)
    bench.resync()
    assert bench.agent.status.ready
    assert bench.chain() == ["10.0.0.0/8"]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
@pytest.mark.parametrize(
    "place", ["choice.current", "_passes._moves.announce", "_knowledge.follow"]
)
def test_a_fault_beside_the_backend_fails_the_pass_and_the_next_one_heals(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, fault: Exception, place: str
) -> None:
    owner, _, name = place.rpartition(".")
    part = attrgetter(owner)(bench.agent)
    monkeypatch.setattr(part, name, fail(fault, [1], getattr(part, name)))
    bench.flush()
    bench.resync()
    assert_told(bench)
    bench.resync()
    assert bench.agent.status.ready
    assert bench.chain() == ["10.0.0.0/8"]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_a_document_that_cannot_be_taken_in_is_taken_in_later_and_the_one_before_is_healed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    monkeypatch.setattr(documents, "parse_documents", fail(fault, [1, 2], parse_documents))
    bench.flush()
    bench.document(TWO, "2")
    assert_told(bench)
    assert bench.chain() == ["10.0.0.0/8"]
    bench.flush()
    bench.resync()
    assert_told(bench)
    assert bench.chain() == ["10.0.0.0/8"]
    bench.resync()
    assert bench.agent.status.ready
    assert bench.agent.status.config.revision == "2"
    assert bench.chain() == ["10.0.0.0/8", "192.0.2.0/24"]


def test_of_what_waits_to_be_taken_in_only_the_newest_is_kept(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = [1] * 50
    monkeypatch.setattr(documents, "parse_documents", fail(KeyError(), failing, parse_documents))
    for revision in range(49):
        bench.document(ONE.replace("0.0.0/8", f"0.{revision}.0/24"), str(revision))
    assert len(bench.agent._batch) == 1
    failing.clear()
    bench.resync()
    assert bench.chain() == ["10.0.48.0/24"]
    assert bench.agent._batch == []


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_a_source_that_cannot_look_is_asked_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    monkeypatch.setattr(bench.source, "refresh", fail(fault, [1], bench.source.refresh))
    bench.agent.send(Signal.RELOAD)
    bench.agent.turn()
    assert_told(bench)
    bench.resync()
    assert bench.agent.status.ready
    assert bench.source.refreshed == 1


def test_a_source_that_cannot_start_is_started_later(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    start = bench.source.start
    times = [1]
    monkeypatch.setattr(bench.source, "start", fail(OSError(errno.EMFILE, ""), times, start))
    bench.document(ONE)
    assert_told(bench)
    bench.resync()
    assert bench.agent.status.ready
    assert bench.agent._unstarted == []


def test_devices_that_cannot_be_listed_cost_nothing(bench: Bench) -> None:
    bench.agent._passes._list_devices = fail(MemoryError(), [1])
    bench.resync()
    assert bench.agent.status.ready
    assert bench.agent.status.look.devices == ("eth0",)


def test_where_it_failed_is_logged_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure("json", "info")
    logs._traced.clear()
    monkeypatch.setattr(bench.backend, "read", fail(KeyError("hush-hush"), [1, 2, 3]))
    for _ in range(3):
        bench.resync()
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    failed = [line for line in lines if line["message"] == "pass failed"]
    assert len(failed) == 3
    assert [("trace" in line) for line in failed] == [True, False, False]
    assert "test_steadfast.py" in failed[0]["trace"]
    assert "hush-hush" not in str(lines)


def test_a_failure_of_the_loop_itself_is_told_and_it_goes_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.agent, "_act", fail(KeyError(), [1], bench.agent._act))
    bench.agent.events.put(Document("the document", (), "3", time.monotonic()))
    assert bench.agent.turn()
    assert_told(bench)
    bench.resync()
    assert bench.agent.status.ready


def test_what_could_not_be_removed_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = Bench(cleanup_on_exit=True)
    bench.document(ONE)
    bench.backend.broken.add(Family.IPV4)
    logs.configure("json", "info")
    bench.agent.send(Signal.STOP)
    bench.agent.run()
    last = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert last["message"] == "stopped"
    assert last["rules"] == "not all removed"
    assert last["left"] == "memory (ipv4)"


def test_a_source_that_does_not_end_holds_nobody_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.source, "stop", lambda: time.sleep(60))
    bench.agent.send(Signal.STOP)
    began = time.monotonic()
    bench.agent.run()
    assert time.monotonic() - began < 30


def test_a_thread_that_ought_to_run_and_does_not_is_no_health(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start
    failing = [1, 2]
    monkeypatch.setattr(threading.Thread, "start", fail(RuntimeError(), failing, start))
    ended = threading.Event()

    def work() -> None:
        ended.wait()

    thread = Guarded(work, "worker", lambda error: None)
    thread.start()
    healthy = answers(bench.agent)["/healthz"]
    assert healthy("") == (503, "text/plain; charset=utf-8", b"not running: worker\n")
    failing.clear()
    bench.resync()  # each turn starts what ought to run
    assert healthy("")[0] == 200
    ended.set()
    thread.stop(10)
