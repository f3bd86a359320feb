"""Threads that must live: what ends one is told and counted, and its work is begun anew.

A thread that does not come back from the kernel cannot be ended, or begun anew: it is told.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping

from ipmasq_agent.errors import AgentError, foreseen
from ipmasq_agent.host.patience import Backoff
from ipmasq_agent.logs import failure

# Seconds after which work that fails has gone well before.
_WELL = 60.0
# What the main thread is told by. A signal that the kernel gave to another thread, as it may
# where the main one is stopped or has one to deal with already, would not wake it up: Python
# would act on it with the next event, at the resync perhaps.
_OF_MAIN_THREAD = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGTERM})
# Seconds after which a call that nothing can interrupt is not going to end.
_STUCK = 30.0
_must_live: set[Guarded] = set()
# Thread in such a call → how often it had stopped to run by then, and when that was seen first.
_in_kernel: dict[str, tuple[bytes, float]] = {}
_failures: Counter[str] = Counter()


def caught(cause: Exception, what: str, thread: str) -> AgentError:
    """Log and count what nobody foresaw, and return it as it can be told."""
    _failures[thread] += 1
    error = foreseen(cause, what)
    failure("failed", error)
    return error


def failures() -> Mapping[str, int]:
    """Return the name of each thread that ought to run, or failed → how often it failed."""
    return {guarded.name: 0 for guarded in tuple(_must_live)} | _failures


class Guarded:
    """A daemon thread whose work is begun anew, after a pause, whenever it raises.

    Args:
        work: returns when the thread is to end; whatever it raises is a failure.
        name: of the thread, for people.
        failed: told of each failure, in the thread that fails.
    """

    def __init__(
        self,
        work: Callable[[], None],
        name: str,
        failed: Callable[[AgentError], None] = lambda error: None,
    ) -> None:
        self.name = name
        self._work = work
        self._failed = failed
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread; where the system has none to give, ``revive`` tries again."""
        _must_live.add(self)
        self._begin()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def stop(self, timeout: float | None = None) -> None:
        """Begin the work no more, and wait for the thread, unless it is the caller.

        The owner has told ``work`` to return before.
        """
        _must_live.discard(self)
        self._stopping.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def _begin(self) -> None:
        thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_MAIN_THREAD)  # a thread inherits it
        try:
            thread.start()
        except (RuntimeError, MemoryError) as cause:  # no thread, or no stack for it
            self._interrupted(cause)
        else:
            self._thread = thread
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _run(self) -> None:
        backoff = Backoff()
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                self._work()
            except Exception as cause:
                self._interrupted(cause)
                if time.monotonic() - began > _WELL:
                    backoff.reset()
                self._stopping.wait(backoff.next())
            else:
                _must_live.discard(self)
                return

    def _interrupted(self, cause: Exception) -> None:
        self._failed(caught(cause, f"the thread {self.name}", self.name))


def dead() -> list[str]:
    """Return the names of the threads that ought to run and do not."""
    return sorted(guarded.name for guarded in tuple(_must_live) if not guarded.alive)


def revive() -> None:
    """Start again the threads that ought to run and do not."""
    for guarded in tuple(_must_live):
        if not guarded.alive:
            guarded._begin()


def standstill() -> str | None:
    """Return which threads have been in one system call for half a minute, in words.

    Calls that wait for what may never come can be interrupted (state S, proc_pid_status(5)), and
    who waits for a program looks up ten times a second. One that waits for a lock of the
    kernel's, or for a disk, is in state D: it is seen there again and has not run since. How long
    is told from when this is asked, as a kubelet does all the time.
    """
    now = time.monotonic()
    before, names = dict(_in_kernel), []
    _in_kernel.clear()
    for thread in threading.enumerate():
        state, runs = _of_kernel(thread.native_id)
        if state in b"RSI":
            continue
        known = before.get(thread.name)
        _in_kernel[thread.name] = known if known and known[0] == runs else (runs, now)
        if now - _in_kernel[thread.name][1] > _STUCK:
            names.append(thread.name)
    return f"in one system call for over {_STUCK:g} s: {', '.join(names)}" if names else None


def _of_kernel(thread: int | None) -> tuple[bytes, bytes]:
    """Return the state of a thread and how often it has stopped to run; R of one that has gone."""
    try:
        with open(f"/proc/self/task/{thread}/status", "rb") as file:
            fields = {name: value for name, _, value in (line.partition(b":\t") for line in file)}
    except OSError:
        return b"R", b""
    return fields[b"State"][:1], fields[b"voluntary_ctxt_switches"]
