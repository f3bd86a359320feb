"""What the newest document asks for, what it depends on, and what of both is in force.

A document that needs a fact not yet learnt (the cluster's nodes, the node's devices) waits
for it; the policy before stays in force meanwhile. A fact that was learnt stays true until
its source says otherwise, also while the source fails.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from ipmasq_agent.agent.intent import Intent
from ipmasq_agent.config.assemble import may_differ, needs
from ipmasq_agent.config.model import Config
from ipmasq_agent.logs import event
from ipmasq_agent.policy.facts import NO_FACTS, Fact
from ipmasq_agent.sources import FactEvent, Learnt
from ipmasq_agent.sources.facts import HostAndCluster


class Knowledge:
    """A configuration and the facts that it needs, as they come in.

    Attributes:
        intent: what is to be kept in force; None before the first.
        facts: those that are known of all that are watched.
        waiting: what is missing for the newest one, a line for each fact.
    """

    def __init__(self, source: HostAndCluster) -> None:
        self.intent: Intent | None = None
        self.waiting: tuple[str, ...] = ()
        self._source = source
        self._config: Config | None = None
        self.facts = NO_FACTS
        self._followed: frozenset[Fact[Any]] = frozenset()
        self._required: frozenset[Fact[Any]] = frozenset()  # of the source, which took it
        self._errors: dict[Fact[Any], str] = {}
        self._kept: Mapping[Fact[Any], Any] = {}

    def recall(self, kept: Mapping[Fact[Any], Any]) -> None:
        """Take facts of before this process for the first document, until their sources answer."""
        self._kept = kept

    def require(self, config: Config) -> None:
        """Make ``config`` the newest one: have its facts watched, and forget all others."""
        self._config = config
        self._watch()

    def follow(self, needs: frozenset[Fact[Any]]) -> None:
        """Have also watched what the data plane in use depends on."""
        self._followed = needs
        if self._needs != self._required:
            self._watch()

    def _watch(self) -> None:
        needs = self._needs
        self.facts = self.facts.only(needs)
        self._errors = {fact: why for fact, why in self._errors.items() if fact in needs}
        for fact in self.facts.missing(needs):
            if fact in self._kept:
                self.facts = self.facts.with_(fact, self._kept[fact])
                self._errors[fact] = "nothing was heard of them since the agent started"
        self._kept = {}
        self._source.require(needs)
        self._required = needs

    @property
    def _needs(self) -> frozenset[Fact[Any]]:
        return self._followed | (needs(self._config) if self._config else frozenset())

    def learn(self, events: Iterable[FactEvent]) -> bool:
        """Take in what was learnt, or not; true where that may change what is to be in force."""
        before = self.facts
        needs, called = self._needs, False
        for item in events:
            if item.fact not in needs:
                continue
            called |= item.fact in self._followed
            if isinstance(item, Learnt):
                self.facts = self.facts.with_(item.fact, item.value)
                if self._errors.pop(item.fact, None) is not None:
                    event(logging.INFO, "known again", what=item.fact.what)
            elif self._errors.get(item.fact) != str(item.error):
                self._errors[item.fact] = str(item.error)
                event(logging.ERROR, "not known", what=item.fact.what, error=str(item.error))
        config = self._config
        return config is not None and (called or may_differ(config, before, self.facts))

    @property
    def sources(self) -> Mapping[str, str | None]:
        """Each fact that is watched now → why its source fails, or None where it does not."""
        return {fact.what: self._errors.get(fact) for fact in sorted(self._needs)}

    def settle(self) -> None:
        """Make the newest configuration the intent if all that it needs is known."""
        if self._config is None:
            return
        waiting = tuple(
            f"waiting for {fact.what}" + (f": {why}" if (why := self._errors.get(fact)) else "")
            for fact in self.facts.missing(needs(self._config))
        )
        for line in set(waiting) - set(self.waiting):
            event(logging.WARNING, line)
        self.waiting = waiting
        kept = self.intent
        stands = (
            kept is not None
            and kept.config is self._config
            and not may_differ(kept.config, kept.facts, self.facts)
        )
        if not waiting and not stands:
            self.intent = Intent(self._config, self.facts)
