"""The node's devices and routes, read again whenever the kernel says that they changed."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

from ipmasq_agent.errors import AgentError, KernelReadError
from ipmasq_agent.host.devices import list_devices, read_links
from ipmasq_agent.host.patience import Backoff
from ipmasq_agent.host.routes import preferred_sources
from ipmasq_agent.host.threads import Guarded
from ipmasq_agent.netlink.rt import list_addresses
from ipmasq_agent.netlink.rt_events import (
    DELETED_FILTER,
    DELETED_QDISC,
    TRAFFIC_CONTROL,
    Changes,
    Message,
    Overrun,
)
from ipmasq_agent.policy.facts import ADDRESSES, HOOKS, LINKS, ROUTES, Fact
from ipmasq_agent.sources import FactEvent, Learnt, NotLearnt
from ipmasq_agent.sources.pace import Pace

READERS: Mapping[Fact[Any], Callable[[], Any]] = {
    LINKS: read_links,
    ROUTES: preferred_sources,
    HOOKS: list_devices,
    ADDRESSES: lambda: frozenset(a for a in list_addresses() if a.reaches_out),
}
"""Facts of this network namespace → how the kernel is asked for them (``KernelReadError``)."""
HOST = frozenset(READERS)
# A pod that comes makes a dozen messages within some 50 ms; a node may get 200 at once.
QUIET, LATE = 0.1, 1.0
_TAKEN_AWAY = frozenset({DELETED_FILTER, DELETED_QDISC})  # of ours perhaps: packets go by


class NetworkWatch:
    """Tells devices and routes of this network namespace, at first and when they changed.

    One thread waits for rtnetlink's messages. It works only while there are any, and reads
    at most once a second while they do not end.

    Args:
        needs: which of ``HOST`` are asked for.
        tell: called from the thread.
    """

    def __init__(self, needs: frozenset[Fact[Any]], tell: Callable[[FactEvent], None]) -> None:
        self.needs = needs
        self._tell = tell
        self._told: dict[Fact[Any], Any] = {}
        self._pace = Pace(QUIET, LATE)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._asked = threading.Event()
        self._stopping = False
        self._guarded = Guarded(self._run, "network-watch", self._failed)

    def start(self) -> None:
        """Begin to watch the network namespace of the calling thread."""
        self._guarded.start()

    def refresh(self) -> None:
        """Read again now, and tell also what has not changed."""
        if not self._stopping:
            self._asked.set()
            os.eventfd_write(self._wake, 1)

    def stop(self) -> None:
        """End the thread; safe to call twice. Nothing is told after it returns."""
        if self._stopping:
            return
        self._stopping = True
        os.eventfd_write(self._wake, 1)
        self._guarded.stop(1)
        if not self._guarded.alive:
            os.close(self._wake)

    # In the thread

    def _run(self) -> None:
        backoff = Backoff()
        while not self._stopping:
            try:
                with closing(Changes()) as changes:
                    # Listening comes first: what changes while we read is heard.
                    self._look()
                    backoff.reset()
                    self._follow(changes)
            except KernelReadError as error:
                self._failed(error)
                self._wait(select.poll(), backoff.next())

    def _failed(self, error: AgentError) -> None:
        # What is read next is told, also where nothing has changed: it ends the failure.
        self._told.clear()
        for fact in sorted(self.needs):
            if not self._stopping:
                self._tell(NotLearnt(fact, error))

    def _follow(self, changes: Changes) -> None:
        poll = select.poll()
        poll.register(changes, select.POLLIN)
        while not self._stopping:
            due = self._pace.due
            self._wait(poll, None if due is None else due - time.monotonic())
            now = time.monotonic()
            try:
                concern = [each for each in changes.receive() if self._concerns(each)]
                if concern:
                    self._pace.noted(now, urgent=any(each.kind in _TAKEN_AWAY for each in concern))
            except Overrun:
                self._pace.noted(now)
            due = self._pace.due
            if self._asked.is_set() or (due is not None and due <= now):
                self._look()

    def _wait(self, poll: select.poll, seconds: float | None) -> None:
        """Wait for a message, for a wish of the owner's, or until ``seconds`` have passed."""
        poll.register(self._wake, select.POLLIN)
        # Rounded up: to wake a fraction of a millisecond early is to go round once more.
        timeout = None if seconds is None else max(0, int(seconds * 1000) + 1)
        if any(descriptor == self._wake for descriptor, _ in poll.poll(timeout)):
            os.eventfd_read(self._wake)

    def _concerns(self, message: Message) -> bool:
        """Whether a message may change what is told.

        Of all routes only default ones tell which devices lead out.
        """
        if message.kind in _TAKEN_AWAY:
            # It is told also though nothing else has changed: that is all there is to tell.
            self._told.pop(HOOKS, None)
            return HOOKS in self.needs
        if message.kind in TRAFFIC_CONTROL:
            return False
        return ROUTES in self.needs or message.route_length in (None, 0)

    def _look(self) -> None:
        started = time.monotonic()
        asked = self._asked.is_set()
        self._asked.clear()
        for fact in sorted(self.needs):
            value = READERS[fact]()
            if asked or fact not in self._told or self._told[fact] != value:
                self._told[fact] = value
                if not self._stopping:
                    self._tell(Learnt(fact, value))
        ended = time.monotonic()
        self._pace.told(ended, took=ended - started)
