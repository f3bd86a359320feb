"""The loop: events in, one pass each; the last good policy is kept, and kept healed.

Everything that can happen is put into one queue (a document, a source that fails, a
signal) and taken out by one thread, the only one that touches the kernel. Whatever
arrived while a pass ran is taken as one.
"""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ipmasq_agent.agent.choice import PlaneChoice
from ipmasq_agent.agent.events import Event, Signal, condensed, newest
from ipmasq_agent.agent.intent import Intent
from ipmasq_agent.agent.kept import Kept
from ipmasq_agent.agent.knowledge import Knowledge
from ipmasq_agent.agent.leaving import leave
from ipmasq_agent.agent.metrics import Metrics
from ipmasq_agent.agent.moves import Moves
from ipmasq_agent.agent.reconcile import Outcome, Outcomes, reconcile
from ipmasq_agent.agent.rivals import Rivals
from ipmasq_agent.agent.shadows import Shadows
from ipmasq_agent.agent.snat import Replies, replies, tell
from ipmasq_agent.agent.status import ConfigStatus, Status
from ipmasq_agent.config.document import parse_documents
from ipmasq_agent.config.durations import UNITS
from ipmasq_agent.config.model import DEFAULT_RESYNC_INTERVAL, Config, Flags
from ipmasq_agent.errors import ConfigError, foreseen
from ipmasq_agent.host import patience
from ipmasq_agent.host.threads import Guarded, caught, revive
from ipmasq_agent.logs import event, failure
from ipmasq_agent.planes.plane import AnyPlane
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.sources import (
    Document,
    FactSource,
    Learnt,
    NotLearnt,
    Source,
    SourceFailed,
)

# Seconds until a failed pass is tried again: doubled each time, up to the second figure.
_FIRST_RETRY, _LAST_RETRY = 0.5, 30.0
DRAIN_TIMEOUT = 3600.0
# Seconds after the word to stop in which rules may still be removed, and in which sources
# may end; an agent that is told to stop has left after five.
_CLEANING, _PARTING = 3.5, 1.0
GLANCE = 5.0
"""Seconds between looks at a data plane that others can take away without a word."""


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """What the loop is told by flags."""

    flags: Flags
    cleanup_on_exit: bool = False
    drain_timeout: float = DRAIN_TIMEOUT
    """Seconds for which flows of a data plane that was left may go on."""


class Agent:
    """Keeps the kernel in step with a document until it is told to stop."""

    def __init__(
        self,
        source: Source,
        choice: PlaneChoice,
        settings: LoopSettings,
        devices: Callable[[], tuple[str, ...]],
        fact_source: FactSource,
        kept_by_others: Callable[[], Sequence[str]] = tuple,
        kept: Kept | None = None,
        shadows: Shadows | None = None,
    ) -> None:
        self.source = source
        self.fact_source = fact_source
        self.choice = choice
        self.settings = settings
        self.devices = devices
        self.metrics = Metrics()
        self.status = Status(ConfigStatus(source.name))
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.busy_since: float | None = None
        self._config: Config | None = None  # the newest document that can be used
        self._knowledge = Knowledge(fact_source)  # what is to be in force, and kept healed
        self._seen: Document | None = None  # the newest one
        self._refused: str | None = None  # why that one cannot be used
        self._changed_at: float | None = None
        self._kept = kept
        self._unkept: Document | None = None  # in force, and not yet what is kept
        self._moves = Moves(settings.drain_timeout)
        self._replies = Replies()
        self._rivals = Rivals(kept_by_others, self.metrics)
        self._shadows = shadows
        self._retries = 0
        self._unstarted: list[Callable[[], None]] = [
            lambda: self.fact_source.start(self.events.put),
            self._recall,
            lambda: self.source.start(self.events.put),
        ]
        self._batch: list[Event] = []  # what came and is not taken in yet
        self._told_to_stop = math.inf
        # Also before the first document: a file that cannot be read now is looked at again.
        self._next_pass = time.monotonic() + DEFAULT_RESYNC_INTERVAL / UNITS["s"]

    def run(self) -> None:
        """Watch and reconcile until ``Signal.STOP`` arrives; whatever else happens is told."""
        while self.turn():
            continue
        # They end with the process: one that hangs is not waited for.
        halting = Guarded(self._halt, "halt")
        halting.start()
        self._leave()
        halting.stop(_PARTING)

    def _halt(self) -> None:
        self.source.stop()
        self.fact_source.stop()

    def counters(self) -> Mapping[tuple[Family, str], int]:
        """Return what the data plane in use counts by itself; in any thread.

        Raises:
            AgentError: it cannot be read.
        """
        backend = self.choice.in_use
        return backend.counters() if backend is not None else {}

    def send(self, signal: Signal) -> None:
        """Ask for something. Safe in a signal handler: the queue is reentrant.

        To stop ends at once whatever a pass waits for: a program, a lock, a worker.
        """
        if signal is Signal.STOP:
            self._told_to_stop = time.monotonic()
            patience.end_by(self._told_to_stop)
        self.events.put(signal)

    def _recall(self) -> None:
        """Go on with what was in force before this process, until the source answers."""
        if self._kept is None:
            return
        self._knowledge.recall(self._kept.facts())
        document = self._kept.document()
        if document is None:
            return
        if self._understand(document):
            self._seen, self._unkept = document, None
            self._set_config(kept=True)
            self._next_pass = time.monotonic()
        else:  # as of other flags; what the source says decides
            self._refused = None
            self.status = replace(self.status, config=ConfigStatus(self.source.name))

    # -- one turn -----------------------------------------------------------------------

    def turn(self) -> bool:
        """Wait for events or for the next pass, and act; false when it is time to stop."""
        timeout = max(0.0, self._next_pass - time.monotonic())
        if self._unstarted and not self.status.failure:
            timeout = 0.0
        backend = self.choice.in_use
        if backend is not None and backend.glances:
            timeout = min(timeout, GLANCE)
        try:
            with contextlib.suppress(queue.Empty):
                self._batch.append(self.events.get(timeout=timeout))
                while True:
                    self._batch.append(self.events.get_nowait())
            if Signal.STOP in self._batch:
                return False
            self.busy_since = time.monotonic()
            self._act()
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

    def _disturbed(self) -> bool:
        """Whether what was in force is not any more; what failed is tried again at its time."""
        backend = self.choice.in_use
        if backend is None or self.status.errors:
            return False
        try:
            return backend.disturbed()
        except Exception as error:
            told = foreseen(error, "a look at the kernel")
            event(logging.WARNING, "cannot look", backend=backend.name, error=str(told))
            return False

    def _act(self) -> None:
        # By the clock, not by silence: a source that never stops talking delays no healing.
        due = time.monotonic() >= self._next_pass
        if not self._batch and not due:
            due = self._disturbed()
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
            thorough = due or reload or bool(self.status.errors)
            self._pass(intent, thorough=thorough, at_once=reload)
        elif due or self.status.failure:
            self._schedule(failed=bool(self.status.failure))
        # After the pass, which it must not delay, and which a document may not survive.
        if self._kept:
            self._kept.keep_facts()
            if self._unkept and self._kept.keep_document(self._unkept):
                self._unkept = None

    def _take_in(self, due: bool, reload: bool) -> bool:
        """Act on what came; true where a pass is called for."""
        while self._unstarted:
            self._unstarted[0]()
            del self._unstarted[0]
        revive()
        # Only the newest state counts: what came before it was true for a moment.
        document, failing = newest(self._batch)
        needed = due
        if document is not None:
            needed |= self._hear(document, failing=failing is not None)
        if failing is not None:
            self._source_failed(failing)
        facts = [each for each in self._batch if isinstance(each, Learnt | NotLearnt)]
        needed |= self._knowledge.learn(facts)
        for each in facts:
            if self._kept and isinstance(each, Learnt):
                self._kept.note(each.fact, each.value)
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

    def _hear(self, document: Document, *, failing: bool) -> bool:
        """Take in what the source says; true where a pass is called for.

        Args:
            document: its newest state.
            failing: the source says in the same breath that it may miss the next one.
        """
        same = self._seen is not None and self._seen.parts == document.parts
        if not same:
            needed = self._understand(document)
            self._seen = document  # not before: one that could not be taken in is heard again
            return needed
        self._seen = document
        if self.status.config.error != self._refused and not failing:
            event(logging.INFO, "source answers again", source=document.name)
            self._set_config(error=self._refused)
        if self.status.config.kept:
            event(logging.INFO, "source confirms the document that was kept", source=document.name)
        if document.revision != self.status.config.revision and not self._refused:
            self._unkept = document
        self._set_config(revision=document.revision, kept=False)
        return False

    def _understand(self, document: Document) -> bool:
        """Take ``document`` into force, or say why not and keep the last good one."""
        try:
            parts = [(part.name, part.content) for part in document.parts]
            understood = parse_documents(parts, document.name, self.settings.flags)
        except ConfigError as error:
            self._refused = str(error)
            kept = "the last good document" if self._config else "nothing, there was none before"
            event(
                logging.ERROR,
                "document refused",
                source=document.name,
                revision=document.revision,
                error=str(error),
                in_force=kept,
            )
            self._set_config(
                revision=document.revision, accepted=False, error=str(error), kept=False
            )
            self._count("refused")
            return False
        self._refused, self._unkept = None, document
        self._config = understood.config
        lacking = (f"{name} does not exist, its entries are missed" for name in document.lacking)
        warnings = (*understood.warnings, *lacking)
        self._knowledge.require(understood.config.wish(self.settings.flags))
        self._changed_at = document.noticed
        # In force from now on, and so out of step until the pass: both are said at once.
        self.status = replace(
            self.status,
            in_sync=False,
            config=ConfigStatus(
                self.source.name,
                document.revision,
                accepted=True,
                warnings=warnings,
            ),
        )
        self._count("accepted")
        event(
            logging.INFO if document.parts else logging.WARNING,
            "document accepted" if document.parts else "no document, using defaults",
            source=document.name,
            revision=document.revision,
            cidrs=understood.config.listed,
        )
        for warning in warnings:
            event(logging.WARNING, warning)
        return True

    def _source_failed(self, news: SourceFailed) -> None:
        message = str(news.error)
        if self.status.config.error != message:
            event(logging.ERROR, "document cannot be read", source=news.name, error=message)
        self._set_config(error=message)

    # -- a pass -------------------------------------------------------------------------

    def _pass(self, intent: Intent, *, thorough: bool, at_once: bool) -> None:
        started = time.monotonic()
        try:
            outcomes = self._bring(intent, started, thorough=thorough, at_once=at_once)
        except Exception as error:
            told = foreseen(error, "the pass")
            failure("pass failed", told)
            outcomes = dict.fromkeys(intent.wish.families, Outcome(error=told))
            self._finish(dict.fromkeys(outcomes, str(told)), changed=False)
        ended = time.monotonic()
        failed = any(outcome.error for outcome in outcomes.values())
        event(logging.DEBUG, "pass done", ms=_ms(ended - started))
        self.metrics.passed(outcomes, ended - started)
        self.metrics.cidrs.set(self._config.listed if self._config else 0)
        if self._changed_at is not None and not failed:
            self.metrics.lag.observe(ended - self._changed_at)
        if not failed:
            self._changed_at = None

    def _bring(self, intent: Intent, started: float, *, thorough: bool, at_once: bool) -> Outcomes:
        """Bring the backend in use to ``intent``, clean those that were left, and say so."""
        backend, left_behind = self.choice.current(large=intent.is_large, look=thorough)
        self._knowledge.follow(backend.needs | intent.wish.follows)
        self._show_facts()
        self._moves.announce(left_behind)
        alone = {} if at_once else self._rivals.left_alone(backend, intent, started)
        # A backend that we come to for the first time has nothing to remember.
        outcomes = reconcile(backend, intent, thorough=thorough, rivals=alone)
        written = {family: o for family, o in outcomes.items() if family not in alone}
        self._rivals.watch(backend, intent, written, time.monotonic())
        failed = {f: str(outcome.error) for f, outcome in outcomes.items() if outcome.error}
        left = self.choice.unseen
        if not failed:
            # The backend in use decides now; only then may the one before it go.
            left += self._moves.complete(left_behind, self._left)
        self._report(outcomes, backend.name, "applied")
        said, self._replies = self._replies, replies(intent.wish)
        tell(said, self._replies)
        self._finish(
            failed,
            changed=any(outcome.changed for outcome in outcomes.values()),
            mode=backend.name,
            mode_reason=self.choice.reason,
            devices=self._devices(),
            families=intent.wish.families,
            left_behind=left,
            unanswered=self._replies.unanswered,
            advice=(
                *_advice(backend, intent, failed),
                *self._moves.advice,
                *self._rivals.advice,
                *self._replies.doubtful,
            ),
            contested=self._rivals.name,
        )
        # Rules are in the kernel and said to be; what others make of them can wait for that.
        if self._shadows and not failed:
            self._shadows.look(backend, intent, self.status.devices)
            self.status = replace(
                self.status,
                overridden=self._shadows.overridden,
                partial=self._shadows.partial,
                advice=self.status.advice + self._shadows.unknown,
            )
        return outcomes

    def _left(self, other: AnyPlane, outcomes: Outcomes) -> None:
        self._report(outcomes, other.name, "left")
        if not any(outcome.error for outcome in outcomes.values()):
            self.choice.cleaned(other)

    def _devices(self) -> tuple[str, ...]:
        """Return the egress devices for the status line; those of before if they are not told."""
        try:
            return self.devices()
        except Exception as error:
            told = foreseen(error, "the list of devices")
            event(logging.WARNING, "devices cannot be listed", error=str(told))
            return self.status.devices

    def _report(self, outcomes: Outcomes, backend: str, verb: str) -> None:
        for family, outcome in outcomes.items():
            if outcome.error is not None:
                failure("pass failed", outcome.error, backend=backend, family=family.value)
            elif outcome.change:
                since = self._changed_at
                event(
                    logging.INFO,
                    f"rules {verb}",
                    backend=backend,
                    family=family.value,
                    added=outcome.change.counts[0],
                    removed=outcome.change.counts[1],
                    ms=None if since is None else _ms(time.monotonic() - since),
                )

    def _finish(self, failed: dict[Family, str], *, changed: bool, **more: Any) -> None:
        """Say what the pass led to, all at once: others read the status at any moment."""
        self.status = replace(
            self.status,
            # What is healed is the last good policy; the newest one still waits for facts.
            in_sync=not failed and not self.status.waiting,
            errors=failed,
            passes=self.status.passes + 1,
            changes=self.status.changes + changed,
            **more,
        )
        self._schedule(failed=bool(failed or self.status.left_behind or self.status.failure))

    def _schedule(self, *, failed: bool) -> None:
        interval = self._config.resync_interval if self._config else DEFAULT_RESYNC_INTERVAL
        delay = interval / UNITS["s"]
        if failed:
            retry = min(_FIRST_RETRY * 2**self._retries, _LAST_RETRY)
            # Half of it at random, so that nodes which failed together do not retry together.
            delay = min(delay, retry * random.uniform(0.5, 1.0))
            self._retries = min(self._retries + 1, 10)
        else:
            self._retries = 0
        self._next_pass = time.monotonic() + delay

    # -- the end, and what others see ---------------------------------------------------

    def _leave(self) -> None:
        told = min(self._told_to_stop, time.monotonic())
        leave(self.choice, told + _CLEANING, self._report, cleanup=self.settings.cleanup_on_exit)

    def _set_config(self, **changes: Any) -> None:
        config = replace(self.status.config, **changes)
        self.status = replace(self.status, config=config)

    def _count(self, result: str) -> None:
        self.metrics.documents.inc(1, result)

    def _show_facts(self) -> None:
        knowledge = self._knowledge
        self.status = replace(self.status, waiting=knowledge.waiting, facts=knowledge.sources)


def _advice(backend: AnyPlane, intent: Intent, failed: dict[Family, str]) -> tuple[str, ...]:
    """Return what the backend has to say about what it holds, one line for each family."""
    lines = (
        (family, backend.advice(intent.desired(backend, family)))
        for family in intent.wish.families
        if family not in failed
    )
    return tuple(f"{family.value}: {line}" for family, line in lines if line)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)
