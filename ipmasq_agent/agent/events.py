"""What the loop is told, and what of it counts when it comes all at once."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import Any

from ipmasq_agent.sources import Document, FactEvent, SourceFailed


class Signal(Enum):
    """What the loop is asked to do."""

    RELOAD = auto()
    STOP = auto()
    LOOK = auto()
    """Somebody may have changed what is ours in the kernel."""


Event = Document | SourceFailed | FactEvent | Signal


def newest(batch: Sequence[Event]) -> tuple[Document | None, SourceFailed | None]:
    """Return the newest document, and the newest failure unless a document came after it."""
    document: Document | None = None
    failure: SourceFailed | None = None
    for item in batch:
        if isinstance(item, Document):
            document, failure = item, None
        elif isinstance(item, SourceFailed):
            failure = item
    return document, failure


def condensed(batch: list[Event]) -> list[Event]:
    """Return the newest event of each kind, in their order: what has to be remembered."""
    kept: dict[Any, Event] = {}
    for item in batch:
        kind = item if isinstance(item, Signal) else (type(item), getattr(item, "fact", None))
        kept.pop(kind, None)
        kept[kind] = item
    return list(kept.values())
