"""The newest document: understood and in force, or refused while the last good one stays."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ipmasq_agent.agent.events import Event, newest
from ipmasq_agent.agent.kept import Kept
from ipmasq_agent.agent.knowledge import Knowledge
from ipmasq_agent.agent.metrics import Metrics
from ipmasq_agent.agent.status import ConfigStatus, accepted, seen
from ipmasq_agent.config.document import parse_documents
from ipmasq_agent.config.keys import listed
from ipmasq_agent.config.model import Config, Flags
from ipmasq_agent.errors import ConfigError
from ipmasq_agent.logs import event
from ipmasq_agent.sources import Document, SourceFailed


class Documents:
    """Takes in what a source says, and has what a document asks for learnt and kept.

    Attributes:
        status: of the newest document.
        config: the newest one that can be used; None before the first.
        changed: ``time.monotonic()`` when that was noticed; None once the kernel holds it.
        in_force: the one that the kernel holds, or held when it was last looked at.
    """

    def __init__(
        self, name: str, flags: Flags, knowledge: Knowledge, kept: Kept | None, metrics: Metrics
    ) -> None:
        self.status = ConfigStatus(name)
        self.config: Config | None = None
        self.changed: float | None = None
        self.in_force: Document | None = None
        self._name, self._flags = name, flags
        self._knowledge, self._kept, self._metrics = knowledge, kept, metrics
        self._seen: Document | None = None  # the newest one
        self._refused: str | None = None  # why that one cannot be used
        self._accepted: Document | None = None  # the newest one that can
        self._unkept: Document | None = None  # in force, and not yet what is kept

    def recall(self) -> bool:
        """Go on with what was in force before this process; true where there was something."""
        if self._kept is None:
            return False
        self._knowledge.recall(self._kept.facts())
        document = self._kept.document()
        if document is None:
            return False
        if self._understand(document):
            self._seen, self._unkept = document, None
            self._set(kept=True)
            return True
        # As of other flags: what the source says decides.
        self._refused = None
        self.status = ConfigStatus(self._name)
        return False

    def take_in(self, batch: Sequence[Event]) -> bool:
        """Take in what the source has said; true where another document is to be in force."""
        # Only the newest state counts: what came before it was true for a moment.
        document, failing = newest(batch)
        fresh = document is not None and self._hear(document, failing=failing is not None)
        if failing is not None:
            self._failed(failing)
        return fresh

    def applied(self, config: Config) -> None:
        """The kernel holds what a document asks for; the newest one may wait for facts yet."""
        if config is not self.config or self._accepted is None:
            return
        if self.changed is not None:
            self._metrics.lag.observe(time.monotonic() - self.changed)
            self.changed = None
        if self.in_force is not self._accepted:
            self._hold(self._accepted)

    def _hold(self, document: Document) -> None:
        """Say that a document is in force: since before, if only its revision is another."""
        before, held = self.status.in_force, seen(document, time.time())
        if before is not None and before.digest == held.digest:
            held = held._replace(since=before.since)
        self.in_force = document
        self._set(in_force=held)

    def keep(self) -> None:
        """Keep on this node what is in force, where it is the API that told it."""
        if self._kept:
            self._kept.keep_facts(self._knowledge.facts)
            if self._unkept and self._kept.keep_document(self._unkept):
                self._unkept = None

    def _hear(self, document: Document, *, failing: bool) -> bool:
        """Take in what the source says; true where another document is to be in force.

        In the same breath it may say that it is failing, and may miss the next one.
        """
        if document.caveat != self.status.caveat:
            news = document.caveat or f"{document.name} is watched again"
            event(logging.WARNING if document.caveat else logging.INFO, news)
            self._set(caveat=document.caveat)
        if self._seen is None or self._seen.says != document.says:
            fresh = self._understand(document)
            self._seen = document  # not before: one that could not be taken in is heard again
            return fresh
        self._seen = document
        if self.status.error != self._refused and not failing:
            event(logging.INFO, "source answers again", source=document.name)
            self._set(error=self._refused)
        if self.status.kept:
            event(logging.INFO, "source confirms the document that was kept", source=document.name)
        if document.revision != self.status.revision and not self._refused:
            self._unkept = document
        if self._refused is None:
            if self.in_force is self._accepted:
                self._hold(document)
            self._accepted = document
        if document.revision != self.status.revision:
            self._set(newest=seen(document, time.time()))
        self._set(kept=False)
        return False

    def _understand(self, document: Document) -> bool:
        """Take ``document`` into force, or say why not and keep the last good one."""
        try:
            parts = [(part.name, part.content) for part in document.parts]
            understood = parse_documents(parts, document.name, self._flags)
        except ConfigError as error:
            self._refused = str(error)
            kept = "the last good document" if self.config else "nothing, there was none before"
            event(
                logging.ERROR,
                "document refused",
                source=document.name,
                revision=document.revision,
                error=str(error),
                in_force=kept,
            )
            newest = seen(document, time.time())
            said = self._refused
            self._set(newest=newest, accepted=False, error=said, refused=said, kept=False)
            self._metrics.documents.inc(1, "refused")
            return False
        self._knowledge.require(understood.config)
        self._refused, self._unkept = None, document
        self.config, self.changed = understood.config, document.noticed
        self._accepted = document
        held = self.status.in_force
        told = accepted(self._name, document, understood, time.time())
        self.status = replace(told, in_force=held)
        self._metrics.documents.inc(1, "accepted")
        gone = self._seen is not None and self._seen.parts
        absent = "the document is gone, using defaults" if gone else "no document, using defaults"
        event(
            logging.INFO if document.parts else logging.WARNING,
            "document accepted" if document.parts else absent,
            source=document.name,
            revision=document.revision,
            cidrs=listed(understood.config),
        )
        # What is not there at all was just told.
        for warning in self.status.warnings if document.parts else understood.warnings:
            event(logging.WARNING, warning)
        return True

    def _failed(self, news: SourceFailed) -> None:
        message = str(news.error)
        if self.status.error != message:
            event(logging.ERROR, "document cannot be read", source=news.name, error=message)
        self._set(error=message)

    def _set(self, **changes: Any) -> None:
        self.status = replace(self.status, **changes)
