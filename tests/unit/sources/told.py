"""What a source of facts told, and waiting for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from ipmasq_agent.errors import AgentError
from ipmasq_agent.policy.facts import Fact
from ipmasq_agent.sources import FactEvent, Learnt, NotLearnt

DEADLINE = 60.0


class Told:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.events: list[FactEvent] = []

    def __call__(self, event: FactEvent) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def wait(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            if not self._changed.wait_for(condition, DEADLINE):
                raise AssertionError(f"not told within {DEADLINE} s, but: {self.events[-5:]}")

    def latest(self, fact: Fact[Any]) -> FactEvent | None:
        return next((each for each in reversed(self.events) if each.fact == fact), None)

    def value(self, fact: Fact[Any], condition: Callable[[Any], bool]) -> Any:
        """Wait until the newest word of a fact is a value that meets the condition."""

        def met() -> bool:
            latest = self.latest(fact)
            return isinstance(latest, Learnt) and condition(latest.value)

        self.wait(met)
        latest = self.latest(fact)
        assert isinstance(latest, Learnt)
        return latest.value

    def failure(self, fact: Fact[Any], *words: str) -> AgentError:
        """Wait until the newest word of a fact is a failure whose text holds the words."""

        def met() -> bool:
            latest = self.latest(fact)
            return isinstance(latest, NotLearnt) and all(w in str(latest.error) for w in words)

        self.wait(met)
        latest = self.latest(fact)
        assert isinstance(latest, NotLearnt)
        return latest.error
