"""Threads that must live."""

from __future__ import annotations

import logging
import queue
import signal
import threading
import time

import pytest

from ipmasq_agent.errors import AgentError
from ipmasq_agent.host import threads
from ipmasq_agent.host.threads import Guarded
from tests.waiting import wait_until


class Work:
    """Fails as often as a test wants, then works until it is told to stop."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.told: queue.SimpleQueue[AgentError] = queue.SimpleQueue()
        self.at_work, self.stopping = threading.Event(), threading.Event()

    def __call__(self) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.at_work.set()
        self.stopping.wait()

    def guarded(self) -> Guarded:
        return Guarded(self, "worker", self.told.put)

    def stop(self, thread: Guarded) -> None:
        self.stopping.set()
        thread.stop(10)
        assert not thread.alive


def test_work_that_raises_is_told_counted_and_begun_anew() -> None:
    before = threads.failures().get("worker", 0)
    work = Work(KeyError("x"), OSError(24, "x"))
    thread = work.guarded()
    thread.start()
    assert work.at_work.wait(10)
    assert "the thread worker failed unexpectedly (KeyError)" in str(work.told.get_nowait())
    assert "(OSError: Too many open files)" in str(work.told.get_nowait())
    assert threads.failures()["worker"] == before + 2
    assert threads.dead() == []
    work.stop(thread)
    assert threads.dead() == []


def test_the_place_is_logged_once_and_a_librarys_text_never(
    caplog: pytest.LogCaptureFixture,
) -> None:
    work = Work(*(ValueError("Invalid header value b'Bearer hush-hush'") for _ in range(3)))
    thread = work.guarded()
    thread.start()
    assert work.at_work.wait(10)
    work.stop(thread)
    fields = [getattr(record, "fields", {}) for record in caplog.records]
    traces = [found.get("trace") for found in fields]
    assert len(traces) == 3
    assert traces[1:] == [None, None]
    assert "test_threads.py" in str(traces[0])
    assert "hush-hush" not in str(fields)
    assert all("hush-hush" not in str(work.told.get_nowait()) for _ in range(3))


def test_a_thread_that_cannot_be_had_is_dead_until_it_is_revived(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    work = Work()
    thread = work.guarded()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    thread.start()
    assert threads.dead() == ["worker"]
    assert "RuntimeError" in str(work.told.get_nowait())
    monkeypatch.setattr(threading.Thread, "start", start)
    threads.revive()
    assert work.at_work.wait(10)
    assert threads.dead() == []
    work.stop(thread)


def test_work_that_returns_has_ended_well() -> None:
    ended = threading.Event()
    thread = Guarded(ended.set, "worker")
    thread.start()
    assert ended.wait(10)
    thread.stop(10)
    assert threads.dead() == []


def test_signals_are_for_the_main_thread_alone() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    masks: list[set[int]] = []
    guarded = Guarded(lambda: masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, ())), "masks")
    guarded.start()
    guarded.stop(5)
    assert masks[0] >= {signal.SIGHUP, signal.SIGINT, signal.SIGTERM}
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_a_thread_that_stays_in_one_call_is_told_and_one_that_waits_or_runs_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, kernel = 1000.0, (b"D", b"7")
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(threads, "_of_kernel", lambda thread: kernel)

    def told_after(seconds: float) -> bool:
        nonlocal now
        now += seconds
        return threading.current_thread().name in (threads.standstill() or "")

    assert not told_after(0)
    assert not told_after(29)
    assert told_after(2)
    kernel = b"D", b"8"  # it has run since, and is in the next call
    assert not told_after(20)
    assert not told_after(20)
    kernel = b"S", b"8"
    assert not told_after(40)
    kernel = b"D", b"8"
    assert not told_after(40)
    monkeypatch.undo()
    assert threads.standstill() is None


def test_the_kernel_tells_of_each_thread_whether_it_can_be_interrupted() -> None:
    work = Work()
    thread = work.guarded()
    thread.start()
    assert work.at_work.wait(10)
    running = next(each for each in threading.enumerate() if each.name == "worker")
    wait_until(lambda: threads._of_kernel(running.native_id)[0] == b"S", "it waits")
    assert threads._of_kernel(threading.get_native_id())[0] == b"R"
    work.stop(thread)
    assert threads._of_kernel(running.native_id) == (b"R", b"")
