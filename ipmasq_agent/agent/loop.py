"""The loop: events in, one pass each; the last good policy is kept, and kept healed.

Everything that can happen is put into one queue (a document, a source that fails, a
signal) and taken out by one thread. Whatever arrived while a pass ran is taken as one. Only
this thread writes to the kernel; others read of it what devices, routes and counters say.
"""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import random
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ipmasq_agent.agent.choice import PlaneChoice
from ipmasq_agent.agent.documents import Documents
from ipmasq_agent.agent.events import Event, Signal, condensed
from ipmasq_agent.agent.intent import Intent
from ipmasq_agent.agent.kept import Kept
from ipmasq_agent.agent.knowledge import Knowledge
from ipmasq_agent.agent.leaving import leave
from ipmasq_agent.agent.metrics import Metrics
from ipmasq_agent.agent.passes import Passes
from ipmasq_agent.agent.ports import PortWatch
from ipmasq_agent.agent.shadows import Shadows
from ipmasq_agent.agent.side_thread import commit_watch, sweeper
from ipmasq_agent.agent.status import Look, Status
from ipmasq_agent.answers.ports import PortLook
from ipmasq_agent.config.durations import UNITS
from ipmasq_agent.config.keys import RESYNC_INTERVAL, listed
from ipmasq_agent.config.model import Flags
from ipmasq_agent.errors import foreseen
from ipmasq_agent.host import patience
from ipmasq_agent.host.sysctl import connections
from ipmasq_agent.host.threads import Guarded, caught, revive, standstill
from ipmasq_agent.logs import event
from ipmasq_agent.planes.plane import Translator
from ipmasq_agent.policy.facts import Fact, Facts
from ipmasq_agent.sources import Document, Learnt, NotLearnt, Source
from ipmasq_agent.sources.facts import HostAndCluster

if TYPE_CHECKING:  # who keeps no record, or writes no Events, pays for none
    from ipmasq_agent.agent.announcer import Announcer
    from ipmasq_agent.agent.recorder import Recorder

# Seconds until a failed pass is tried again: doubled each time, up to the second figure.
_FIRST_RETRY, _LAST_RETRY = 0.5, 30.0
DRAIN_TIMEOUT = 3600.0
# Seconds between looks whether another agent is still there.
_STANDING_BY = 0.5
# Seconds after the word to stop in which rules may still be removed, and in which sources
# may end; an agent that is told to stop has left after five.
_CLEANING, _PARTING = 3.5, 1.0
GLANCE = 1.0
"""Seconds between looks at a data plane that others can take away without a word."""
_SHARE = 50
"""A look that took a second of CPU is followed by so many without one, whoever commits what."""
# Seconds without a look after one that found something, doubled up to GLANCE each time that
# another finds something right afterwards.
_RESPITE = 0.02


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """What the loop is told by flags."""

    flags: Flags
    cleanup_on_exit: bool = False
    drain_timeout: float = DRAIN_TIMEOUT
    """Seconds for which flows of a data plane that was left may go on."""


class Agent:
    """Keeps the kernel in step with a document until it is told to stop.

    Attributes:
        status: what there is to say of it, at any moment; replaced as a whole.
        events: where sources put what they say.
        busy_since: ``time.monotonic()`` when the turn began that goes on; None between turns.
    """

    def __init__(
        self,
        source: Source,
        choice: PlaneChoice,
        settings: LoopSettings,
        devices: Callable[[], tuple[str, ...]],
        fact_source: HostAndCluster,
        kept_by_others: Callable[[], Sequence[str]] = tuple,
        kept: Kept | None = None,
        shadows: Shadows | None = None,
        ports: PortWatch | None = None,
        recorder: Recorder | None = None,
        announcer: Announcer | None = None,
    ) -> None:
        self.source = source
        self.fact_source = fact_source
        self.choice = choice
        self.settings = settings
        self.metrics = Metrics()
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.busy_since: float | None = None
        self._knowledge = Knowledge(fact_source)  # what is to be in force, and kept healed
        self._documents = Documents(
            source.name, settings.flags, self._knowledge, kept, self.metrics
        )
        self._passes = Passes(
            choice,
            settings.drain_timeout,
            devices,
            kept_by_others,
            shadows,
            self._follow,
            self.metrics,
        )
        self._sweeper = sweeper(choice)
        commits = commit_watch(choice, lambda: self.send(Signal.LOOK))
        self._beside = (self._sweeper, commits, *((ports,) if ports else ()))
        self._ports = ports
        self._recorder = recorder
        self._announcer = announcer
        self.status = Status(self._documents.status)
        self._retries = 0
        self._blind: str | None = None  # why the latest look failed
        self._news = False  # something else was asked for since a pass went well
        self._unstarted: list[Callable[[], None]] = [
            lambda: self.fact_source.start(self.events.put),
            self._recall,
            lambda: self.source.start(self.events.put),
        ]
        self._batch: list[Event] = []  # what came and is not taken in yet
        self._told_to_stop = math.inf
        self._next_look = self._rested = 0.0  # when to look, and from when on it may be earlier
        self._others_wrote = False  # and nobody has looked beside our rules since
        self._healed, self._respite = -math.inf, _RESPITE
        # Also before the first document: a file that cannot be read now is looked at again.
        self._next_pass = time.monotonic() + RESYNC_INTERVAL.absent / UNITS["s"]

    def stand_by(self, keeper: Callable[[], str | None]) -> bool:
        """Wait until nobody else keeps what is ours to keep; false where told to stop first.

        Args:
            keeper: tells who does, or None.
        """
        while (who := keeper()) is not None:
            if who != self.status.standing_by:
                event(logging.WARNING, "standing by until another agent goes", which=who)
            self.status = replace(self.status, standing_by=who)
            with contextlib.suppress(queue.Empty):
                if self.events.get(timeout=_STANDING_BY) is Signal.STOP:
                    return False
        if self.status.standing_by:
            event(logging.INFO, "taking over", which=self.status.standing_by)
            self.status = replace(self.status, standing_by=None)
        return True

    def run(self) -> None:
        """Watch and reconcile until ``Signal.STOP`` arrives; whatever else happens is told."""
        while self.turn():
            continue
        # They end with the process: one that hangs is not waited for.
        halting = Guarded(self._halt, "halt")
        halting.start()
        told = min(self._told_to_stop, time.monotonic())
        cleanup = self.settings.cleanup_on_exit
        leave(self.choice, told + _CLEANING, self._passes.report, cleanup=cleanup)
        halting.stop(_PARTING)

    def _halt(self) -> None:
        for each in self._beside:
            each.stop(0.0)
        if self._announcer:
            self._announcer.stop(0.0)
        self._sweeper.stop(_PARTING)
        if self._recorder:
            self._recorder.stop(_PARTING)
        self.source.stop()
        self.fact_source.stop()

    @property
    def in_force(self) -> tuple[Document | None, Facts | None]:
        """The document that the kernel holds, and the facts that it is made with."""
        intent = self._knowledge.intent
        return self._documents.in_force, intent.facts if intent else None

    def status_now(self) -> Status:
        """Return the status with what is known only when it is asked for; in any thread."""
        status, heard = self.status, self.source.heard
        if why := standstill():  # what is said to be in force may not be any more
            status = replace(status, in_sync=False, failure=why)
        if self._ports:
            status = replace(status, ports=self._ports.look._replace(tracked=connections()))
        if heard is not None:
            age = round(time.monotonic() - heard, 1)
            status = replace(status, config=replace(status.config, age=age))
        if self._recorder:
            advice = (*status.look.advice, *self._recorder.trouble)
            status = replace(status, look=replace(status.look, advice=advice))
        plane = self.choice.in_use
        if plane is not None:
            try:
                usage = plane.usage() if isinstance(plane, Translator) else status.usage
                status = replace(status, counters=plane.counters(), usage=usage)
            except Exception as error:
                told = foreseen(error, "reading counters")
                event(logging.WARNING, "counters cannot be read", error=str(told))
        return status

    def send(self, signal: Signal) -> None:
        """Ask for something. Safe in a signal handler: the queue is reentrant.

        To stop ends at once whatever a pass waits for: a program, a lock.
        """
        if signal is Signal.STOP:
            self._told_to_stop = time.monotonic()
            patience.end_by(self._told_to_stop)
        self.events.put(signal)

    # -- one turn -----------------------------------------------------------------------

    def turn(self) -> bool:
        """Wait for events or for the next pass, and act; false when it is time to stop."""
        # Python acts on a signal between two instructions: one that comes when the wait is as
        # good as begun would be late by as long as that takes.
        timeout = max(0.0, min(self._next_pass, self._next_look) - time.monotonic())
        if self._unstarted and not self.status.failure:
            timeout = 0.0
        came: list[Event] = []
        try:
            with contextlib.suppress(queue.Empty):
                came.append(self.events.get(timeout=timeout))
                while True:
                    came.append(self.events.get_nowait())
            if Signal.STOP in came:
                return False
            self.busy_since = time.monotonic()
            self._act(came)
            if self._announcer:
                self._announcer.see(self.status, self._ports.look if self._ports else PortLook())
        except Exception as error:
            # The last resort: what nobody foresaw is told, and all is tried again later.
            self._fail(error)
            self._schedule(failed=True)
        finally:
            self.busy_since = None
        return True

    def _fail(self, error: Exception) -> None:
        """Tell what failed beside a pass; it is forgotten when all goes well again."""
        self.status = replace(self.status, failure=str(caught(error, "the agent's loop", "loop")))

    def _disturbed(self, *, told: bool) -> bool:
        """Whether what was in force is not any more, where it is time to look.

        Args:
            told: somebody may have changed it just now.
        """
        if told:
            self._next_look = min(self._next_look, self._rested)
        if time.monotonic() < self._next_look:
            return False
        before = _spent()
        disturbed, plane = False, self.choice.in_use
        # What failed is tried again at its time; the other family is healed meanwhile.
        look = self.status.look
        if plane is not None and not look.errors.keys() >= {*look.families}:
            try:
                disturbed, self._blind = plane.disturbed(look.errors), None
            except Exception as error:
                why = str(foreseen(error, "a look at the kernel"))
                if why != self._blind:
                    event(logging.WARNING, "cannot look", backend=plane.name, error=why)
                self._blind = why
        ended = time.monotonic()
        self._rested = ended + _SHARE * (_spent() - before)
        self._next_look = max(ended + GLANCE, self._rested)
        return disturbed

    def _rest_after_healing(self) -> None:
        """Follow one who flushes in a loop at a pace that a node can bear."""
        now = time.monotonic()
        often = now - self._healed < max(GLANCE, 2 * self._respite)
        self._healed, self._respite = now, min(2 * self._respite, GLANCE) if often else _RESPITE
        self._rested = self._next_look = now + self._respite

    def _act(self, came: Sequence[Event]) -> None:
        # By the clock, not by silence: a source that never stops talking delays no healing.
        due = time.monotonic() >= self._next_pass
        news = [each for each in came if each is not Signal.LOOK]
        self._batch += news
        told = len(news) < len(came)
        self._others_wrote |= told
        disturbed = not due and self._disturbed(told=told)
        if disturbed:
            self.status = replace(self.status, in_sync=False)
            due = True
        revive()
        # What could not be taken in, or started, is tried again at its time.
        if not (due or news or (self._unstarted and not self.status.failure)):
            self._look_beside()
            return
        reload = Signal.RELOAD in self._batch
        try:
            needed = self._take_in(due, reload)
            self._batch.clear()
            self.status = replace(self.status, failure=None)
        except Exception as error:
            # What came is kept for another try. The last good policy is healed nevertheless.
            self._fail(error)
            self._batch = condensed(self._batch)
            needed = True
        intent = self._knowledge.intent
        if needed and intent is not None:
            # What others did to our rules is found at each resync, and is looked for when
            # something went wrong; a change of ours alone builds on what we know.
            thorough = due or reload or bool(self.status.look.errors)
            self._pass(intent, thorough=thorough, at_once=reload)
            if disturbed:
                self._rest_after_healing()
        elif due or self.status.failure:
            self._schedule(failed=bool(self.status.failure))
        # After the pass, which it must not delay, and which a document may not survive.
        self._documents.keep()

    def _look_beside(self) -> None:
        """Say what others decide by now, where they may have written."""
        if self._others_wrote and (others := self._passes.shadows_again()):
            self._others_wrote = False
            self._say(others)

    def _say(self, others: Shadows) -> None:
        self.status = replace(
            self.status,
            overridden=others.overridden,
            partial=others.partial,
            unknown=others.unknown,
        )

    def _take_in(self, due: bool, reload: bool) -> bool:
        """Act on what came; true where a pass is called for."""
        while self._unstarted:
            self._unstarted[0]()
            del self._unstarted[0]
        fresh = self._documents.take_in(self._batch)
        # What is in force from now on is out of step until the pass: both are said at once.
        in_sync = self.status.in_sync and not fresh
        self.status = replace(self.status, in_sync=in_sync, config=self._documents.status)
        facts = [each for each in self._batch if isinstance(each, Learnt | NotLearnt)]
        news = self._knowledge.learn(facts) | fresh
        self._news |= news
        needed = news or due  # what failed is tried again at its time
        if reload:
            event(logging.INFO, "reload asked for")
            self.source.refresh()
            self.fact_source.refresh()
            needed = True
        elif due and self.source.cheap:
            self.source.refresh()
        if needed or facts:
            self._knowledge.settle()
            self._show_facts()
        return needed

    def _recall(self) -> None:
        """Go on with what was in force before this process, until the source answers."""
        if self._documents.recall():
            self._next_pass = time.monotonic()

    def _follow(self, needs: frozenset[Fact[Any]]) -> None:
        self._knowledge.follow(needs)
        self._show_facts()

    def _show_facts(self) -> None:
        knowledge = self._knowledge
        self.status = replace(self.status, waiting=knowledge.waiting, facts=knowledge.sources)

    def _pass(self, intent: Intent, *, thorough: bool, at_once: bool) -> None:
        found = self._passes.bring(
            intent,
            self._documents.changed,
            thorough=thorough,
            at_once=at_once,
            healing=not self._news,
        )
        for each in self._beside:
            each.provide()
        config = self._documents.config
        self.metrics.cidrs.set(listed(config) if config else 0)
        self.status = self.status.passed(found)
        status = self.status
        self._schedule(failed=bool(status.look.errors or status.look.left_behind or status.failure))
        if not status.look.errors:
            self._news = False
            if self._recorder:
                self._recorder.provide()
            self._documents.applied(intent.config)
            self.status = replace(status, config=self._documents.status)
        # Rules are in the kernel and said to be; what others make of them can wait for that.
        if isinstance(found, Look) and (others := self._passes.shadows(intent, found)):
            self._say(others)

    def _schedule(self, *, failed: bool) -> None:
        config = self._documents.config
        delay = (config[RESYNC_INTERVAL] if config else RESYNC_INTERVAL.absent) / UNITS["s"]
        if failed:
            retry = min(_FIRST_RETRY * 2**self._retries, _LAST_RETRY)
            # Half of it at random, so that nodes which failed together do not retry together.
            delay = min(delay, retry * random.uniform(0.5, 1.0))
            self._retries = min(self._retries + 1, 10)
        else:
            self._retries = 0
        self._next_pass = time.monotonic() + delay


def _spent() -> float:
    """Return the seconds of CPU of this thread, and of the programs that were run."""
    used = map(resource.getrusage, (resource.RUSAGE_THREAD, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)
