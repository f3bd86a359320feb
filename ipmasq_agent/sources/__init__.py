"""Where documents come from (files, ConfigMaps, standard input), and facts about node and cluster.

A source yields raw bytes with a name and a revision, of one document or of several that
are to be merged. It does not know what is in a document, never guesses at defaults, and never
takes "cannot be read now" for "does not exist": the first is a ``SourceFailed``, the second a
``Document`` without parts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from ipmasq_agent.errors import AgentError
from ipmasq_agent.policy.facts import Fact

T = TypeVar("T")


class Part(NamedTuple):
    """One of the documents that are merged into one: its name for users, and its bytes."""

    name: str
    content: bytes


class ConfigMapName(NamedTuple):
    """A ConfigMap of the API; another one has another uid, also under the same name."""

    namespace: str
    name: str
    uid: str = ""

    def __str__(self) -> str:
        return f"ConfigMap {self.namespace}/{self.name}"


class Document(NamedTuple):
    """One state of a document, as its source saw it.

    Attributes:
        name: what a user calls it: a path, or ``ConfigMap NAMESPACE/NAME key KEY``.
        parts: the documents that are merged into it, in order; none where it does not exist.
        revision: changes whenever a part may have; for people and logs, opaque to us.
        noticed: ``time.monotonic()`` when the source learnt of this state.
        lacking: why it has no parts, or some of those that are merged have none: a clause for
            each, where there is more to say than that it does not exist.
        caveat: what whoever relies on the source has to know; None for nothing.
        configmaps: the objects that it was taken from.
    """

    name: str
    parts: tuple[Part, ...]
    revision: str
    noticed: float
    lacking: tuple[str, ...] = ()
    caveat: str | None = None
    configmaps: tuple[ConfigMapName, ...] = ()

    @property
    def says(self) -> tuple[tuple[Part, ...], tuple[str, ...]]:
        """All by which one state differs from another for who reads it."""
        return self.parts, self.absent

    @property
    def absent(self) -> tuple[str, ...]:
        """What is not there of it, a clause each; empty where all is."""
        return self.lacking or (() if self.parts else (f"{self.name} does not exist",))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is not there, and what that means."""
        effect = "its entries are missed" if self.parts else "the defaults stand for it"
        return tuple(f"{clause}: {effect}" for clause in self.absent)


def revision_of(parts: Sequence[Part]) -> str:
    """Return a revision for documents whose source has none: twelve digits of a digest."""
    if not parts:
        return "absent"
    if len(parts) == 1:
        return hashlib.sha256(parts[0].content).hexdigest()[:12]
    digest = hashlib.sha256()
    for part in parts:
        # With its length before it, no name or content can pass for the end of another.
        for piece in (part.name.encode(errors="surrogateescape"), part.content):
            digest.update(b"%d:" % len(piece))
            digest.update(piece)
    return digest.hexdigest()[:12]


class SourceFailed(NamedTuple):
    """The source cannot say what the document is at the moment. It goes on trying."""

    name: str
    error: AgentError


SourceEvent = Document | SourceFailed
Sink = Callable[[SourceEvent], None]


class Source(Protocol):
    """What the agent asks of a source.

    ``start`` returns soon; from then on ``sink`` is called, from any thread, with the
    first state of the document and with each later one. ``refresh`` asks for the state
    to be looked at again, and its outcome to be delivered to the sink even if it is the
    same as before. ``read`` answers once, without ``start``, for verbs that do not watch.

    A sink should return soon (put the event in a queue): the source is held up until it
    does. It may call ``refresh`` and must not call ``stop``.
    """

    @property
    def name(self) -> str:
        """What a user calls the document."""

    @property
    def cheap(self) -> bool:
        """Whether to look again at each resync: a file, yes; an API of many nodes, no."""

    @property
    def heard(self) -> float | None:
        """``time.monotonic()`` of the last sign of life; None for what is on this node."""

    def read(self) -> Document:
        """Return the document as it is now, or raise SourceError."""

    def start(self, sink: Sink) -> None:
        """Begin to watch."""

    def refresh(self) -> None:
        """Look again now."""

    def stop(self) -> None:
        """End the watch and its threads. Safe to call twice."""


class Learnt(NamedTuple, Generic[T]):
    """A fact as it is now."""

    fact: Fact[T]
    value: T


class NotLearnt(NamedTuple):
    """A fact cannot be had at the moment; what was learnt before stays true until told."""

    fact: Fact[Any]
    error: AgentError


FactEvent = Learnt[Any] | NotLearnt
