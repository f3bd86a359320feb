"""A source that a test speaks through, and backends that fail when they are told to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from typing import Any

from ipmasq_agent.agent.announcer import Announcer
from ipmasq_agent.agent.choice import PlaneChoice
from ipmasq_agent.agent.kept import Kept
from ipmasq_agent.agent.loop import Agent, LoopSettings
from ipmasq_agent.config.model import Flags
from ipmasq_agent.errors import HostError, SourceUnavailable
from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.planes.rules.table import Table
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.facts import NO_FACTS, ROUTES, Fact, Facts
from ipmasq_agent.policy.model import Capabilities
from ipmasq_agent.sources import (
    Document,
    FactEvent,
    Learnt,
    NotLearnt,
    Part,
    Sink,
    SourceFailed,
)
from ipmasq_agent.sources.facts import HostAndCluster
from tests.memory import MemoryPlane

DEADLINE = 60.0
# No wish of the benches' needs it, so nobody takes note of it.
_NOTHING = NotLearnt(ROUTES, SourceUnavailable("nobody asks"))


class ScriptedSource:
    """Delivers what the test says, when the test says it."""

    name = "the document"
    cheap = True
    heard: float | None = None

    def __init__(self) -> None:
        self.refreshed = 0
        self.stopped = False
        self.sink: Sink | None = None

    def read(self) -> Document:
        raise SourceUnavailable("nobody reads once here")

    def start(self, sink: Sink) -> None:
        self.sink = sink

    def refresh(self) -> None:
        self.refreshed += 1

    def stop(self) -> None:
        self.stopped = True


class ScriptedFacts(HostAndCluster):
    """A fact source that says nothing by itself and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.required: frozenset[Fact[Any]] = frozenset()
        self.refreshed = 0
        self.stopped = False

    def start(self, sink: Callable[[FactEvent], None]) -> None:
        return None

    def require(self, needs: frozenset[Fact[Any]]) -> None:
        self.required = needs

    def gather(self, needs: frozenset[Fact[Any]]) -> Facts:
        return NO_FACTS

    def refresh(self) -> None:
        self.refreshed += 1

    def stop(self) -> None:
        self.stopped = True


class FailingPlane(MemoryPlane):
    """A memory backend that cannot read a family in ``broken``, nor knows one in ``unable``."""

    def __init__(self, placement: Placement, name: str = "memory") -> None:
        super().__init__(placement)
        self.name = self.place = name
        self.broken: set[Family] = set()
        self.unable: set[Family] = set()
        self.closed = False
        self.gone: bool | Exception = False
        self.looks = 0
        self.failing: set[Family] = set()

    def disturbed(self, failing: Collection[Family] = ()) -> bool:
        self.looks += 1
        self.failing = set(failing)
        if isinstance(self.gone, Exception):
            raise self.gone
        return self.gone

    def read(self, family: Family) -> Table:
        if family in self.broken:
            raise HostError(f"{family.value} is broken")
        return super().read(family)

    def capabilities(self, family: Family) -> Capabilities:
        if family in self.unable:
            raise HostError(f"there are no programs for {family.value}")
        return super().capabilities(family)

    def close(self) -> None:
        self.closed = True


class Bench:
    """An agent on a bench: every part is in the test's hands."""

    def __init__(
        self,
        *,
        flags: Flags | None = None,
        cleanup_on_exit: bool = False,
        fact_source: HostAndCluster | None = None,
        kept: Kept | None = None,
        announcer: Announcer | None = None,
    ) -> None:
        self.source = ScriptedSource()
        self.facts = ScriptedFacts()
        self.backends = {n: FailingPlane(Placement(), n) for n in ("memory", "other")}
        self.backend = self.backends["memory"]
        self.detected = "memory"
        self.held: list[str] = []
        self.leavings: list[str] = []
        self.blind: str | None = None
        self.asked_for_large: list[bool] = []
        choice = PlaneChoice(
            detect=self._detect,
            make=lambda name: self.backends[name],
            holders=lambda: self._look(self.held),
            home=lambda name: name,
            leavings=lambda: self._look(self.leavings),
        )
        self.agent = Agent(
            self.source,
            choice,
            LoopSettings(flags or Flags(), cleanup_on_exit),
            devices=lambda: ("eth0",),
            fact_source=fact_source or self.facts,
            kept=kept,
            announcer=announcer,
        )
        self.source.start(self.agent.events.put)

    def _look(self, found: list[str]) -> list[str]:
        if self.blind is not None:
            raise HostError(self.blind)
        return found

    def _detect(self, large: bool) -> tuple[str, str]:
        self.asked_for_large.append(large)
        return self.detected, "the test says so"

    def turn_until(self, condition: Callable[[], bool]) -> None:
        """Let the agent take turns, at what real sources say, until the condition holds."""
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < deadline, self.agent.status
            # Nothing may come for a while, and a turn waits until something does.
            wake = threading.Timer(0.5, self.agent.events.put, [_NOTHING])
            wake.start()
            self.agent.turn()
            wake.cancel()

    def learn(self, need: Fact[Any], value: Any) -> None:
        """Let a fact be learnt, and the agent take its turn."""
        self.agent.events.put(Learnt(need, value))
        self.agent.turn()

    def fact_fails(self, need: Fact[Any], message: str) -> None:
        self.agent.events.put(NotLearnt(need, SourceUnavailable(message)))
        self.agent.turn()

    def document(self, content: str | None, revision: str = "1") -> None:
        """Let the source see a document, and the agent take its turn."""
        parts = () if content is None else (Part("the document", content.encode()),)
        self.agent.events.put(Document("the document", parts, revision, time.monotonic()))
        self.agent.turn()

    def source_fails(self, message: str) -> None:
        self.agent.events.put(SourceFailed("the document", SourceUnavailable(message)))
        self.agent.turn()

    def resync(self) -> None:
        """Let the next pass be due now."""
        self.agent._next_pass = time.monotonic()
        self.agent.turn()

    def chain(self, family: Family = Family.IPV4, backend: str = "memory") -> list[str]:
        """The destinations that the chain returns for, in order."""
        rules = self.backends[backend].tables[family].rules("IP-MASQ")
        return [option.values[0] for rule in rules if (option := rule.option("destination"))]

    def flush(self, family: Family = Family.IPV4) -> None:
        """Somebody empties the chain by hand."""
        from ipmasq_agent.planes.rules.table import Chain

        table = self.backend.tables[family]
        chains = {**table.chains, "IP-MASQ": Chain("IP-MASQ", None, ())}
        self.backend.tables[family] = Table(family, chains)
