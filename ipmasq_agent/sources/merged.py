"""Several documents from different sources as one: the way past one ConfigMap's 1 MiB."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence

from ipmasq_agent.sources import Document, Sink, Source, SourceEvent, SourceFailed


class MergedSource:
    """Implements ``Source``: the parts of all its sources, in their order.

    Nothing is delivered before each has said what it has, since a part that is missing would
    be taken for one that was never written. While one fails, what it said last stands in.
    The sink must not call ``refresh``.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = tuple(sources)
        self._lock = threading.Lock()
        self._sink: Sink | None = None
        self._documents: dict[int, Document] = {}
        self._failures: dict[int, SourceFailed] = {}

    @property
    def name(self) -> str:
        """The names of all sources."""
        return ", ".join(source.name for source in self._sources)

    @property
    def cheap(self) -> bool:
        """Whether all of them are."""
        return all(source.cheap for source in self._sources)

    @property
    def heard(self) -> float | None:
        """Of the one that was silent longest."""
        return min((each.heard for each in self._sources if each.heard is not None), default=None)

    def read(self) -> Document:
        """Return what all of them have now.

        Raises:
            SourceError: one of them cannot be read.
        """
        return self._joined([source.read() for source in self._sources])

    def start(self, sink: Sink) -> None:
        """Begin to watch all of them."""
        self._sink = sink
        for number, source in enumerate(self._sources):
            source.start(functools.partial(self._heard, number))

    def refresh(self) -> None:
        """Look at all of them again."""
        for source in self._sources:
            source.refresh()

    def stop(self) -> None:
        """End all watches; safe to call twice."""
        for source in self._sources:
            source.stop()

    def _heard(self, number: int, event: SourceEvent) -> None:
        """Take in what one of them says; in any thread, one at a time."""
        assert self._sink is not None
        with self._lock:
            if isinstance(event, SourceFailed):
                self._failures[number] = event
                self._sink(event)
                return
            self._documents[number] = event
            self._failures.pop(number, None)
            if len(self._documents) < len(self._sources):
                return
            self._sink(self._joined([self._documents[n] for n in range(len(self._sources))]))
            # The document that was just delivered does not end the failures of others.
            for failure in self._failures.values():
                self._sink(failure)

    def _joined(self, documents: Sequence[Document]) -> Document:
        """Return what the documents of all sources, in their order, are together."""
        return Document(
            ", ".join(document.name for document in documents),
            tuple(part for document in documents for part in document.parts),
            ", ".join(document.revision for document in documents),
            max(document.noticed for document in documents),
            lacking=tuple(clause for document in documents for clause in document.absent),
            configmaps=tuple(each for document in documents for each in document.configmaps),
        )
