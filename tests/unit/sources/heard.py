"""What a source told its sink, and waiting for it without sleeping."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ipmasq_agent.sources import Document, SourceEvent, SourceFailed

DEADLINE = 60.0


class Heard:
    """A sink that remembers, with the time of each delivery (``time.monotonic()``)."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.events: list[SourceEvent] = []
        self.times: list[float] = []

    def __call__(self, event: SourceEvent) -> None:
        with self._changed:
            self.events.append(event)
            self.times.append(time.monotonic())
            self._changed.notify_all()

    def wait(self, condition: Callable[[list[SourceEvent]], bool]) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: condition(self.events), DEADLINE):
                raise AssertionError(f"not heard within {DEADLINE} s, but: {self.events}")

    def content(self, content: bytes | None) -> Document:
        """Wait until this is the newest that was heard."""
        self.wait(lambda events: bool(events) and _content(events[-1]) == content)
        last = self.events[-1]
        assert isinstance(last, Document)
        return last

    def parts(self, **contents: bytes) -> Document:
        """Wait until the newest that was heard has these parts: last word of name → bytes."""

        def same(event: SourceEvent) -> bool:
            return isinstance(event, Document) and contents == {
                part.name.replace("/", " ").split()[-1]: part.content for part in event.parts
            }

        self.wait(lambda events: bool(events) and same(events[-1]))
        last = self.events[-1]
        assert isinstance(last, Document)
        return last

    def failure(self, words: str) -> SourceFailed:
        """Wait until the newest that was heard is a failure that says ``words``."""
        self.wait(
            lambda events: (
                bool(events)
                and isinstance(events[-1], SourceFailed)
                and words in str(events[-1].error)
            )
        )
        last = self.events[-1]
        assert isinstance(last, SourceFailed)
        return last

    def forget(self) -> None:
        """Start over, as if nothing had been heard."""
        with self._changed:
            self.events.clear()
            self.times.clear()

    @property
    def contents(self) -> list[bytes | str | None]:
        """All that was heard in order: content, None for absent, the text of failures."""
        return [_content(event) for event in self.events]


def _content(event: SourceEvent) -> bytes | str | None:
    return content_of(event) if isinstance(event, Document) else str(event.error)


def content_of(document: Document) -> bytes | None:
    """Return the bytes of a document of at most one part; None where it does not exist."""
    assert len(document.parts) < 2
    return document.parts[0].content if document.parts else None
