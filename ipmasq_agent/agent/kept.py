"""What an agent that starts while the API is away goes on with: what was in force before.

A document from the API, and what was learnt from the API beside it. A file is on the node
itself, and so are devices and routes.
"""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

from ipmasq_agent.errors import MALFORMED, SourceError
from ipmasq_agent.logs import event
from ipmasq_agent.policy.addresses import Family, Prefix, prefix_around
from ipmasq_agent.policy.facts import NO_FACTS, NODE_ADDRESSES, OWN_POD_CIDRS, Fact, Facts
from ipmasq_agent.sources import Document, Part
from ipmasq_agent.sources.state_dir import StateDir

Value = TypeVar("Value")


class _Form(NamedTuple, Generic[Value]):
    """How a fact is kept: under which name, and the way into JSON and back."""

    fact: Fact[Value]
    kind: str
    into: Callable[[Value], Any]
    back: Callable[[Any], Value]


def _address(family: Any, number: Any) -> tuple[Family, int]:
    found = Family(family), int(number)
    if not 0 <= found[1] <= found[0].last_address:
        raise ValueError("no address of its family")
    return found


def _prefix(family: Any, first: Any, length: Any) -> Prefix:
    of, address = _address(family, first)
    if not 0 <= int(length) <= of.bits:
        raise ValueError("no length of a prefix")
    return prefix_around(of, address, int(length))


# Of each fact that the API tells.
_FORMS: tuple[_Form[Any], ...] = (
    _Form(
        NODE_ADDRESSES,
        "nodes",
        lambda value: sorted((family.value, address) for family, address in value),
        lambda kept: frozenset(_address(family, address) for family, address in kept),
    ),
    _Form(
        OWN_POD_CIDRS,
        "pod-cidrs",
        lambda value: [(p.family.value, p.first, p.length) for p in value],
        lambda kept: tuple(_prefix(family, a, n) for family, a, n in kept),
    ),
)


class Kept:
    """The last good document and the last facts, on the node; failures to keep are logged.

    Args:
        documents: whether documents are kept too, as those from the API are.
    """

    def __init__(self, state: StateDir, *, documents: bool) -> None:
        self._state = state
        self._documents = documents
        self._latest = NO_FACTS
        self._packed: dict[str, Any] = {}  # as they are kept
        self._failure: str | None = None

    def keep_document(self, document: Document) -> bool:
        """Keep a document that is in force; false where it is worth another try."""
        if not self._documents:
            return True
        since = {"time": time.strftime("%FT%TZ", time.gmtime())}
        return self._write("document", pack_document(document) | since)

    def keep_facts(self, facts: Facts) -> None:
        """Keep what the API told; what cannot be kept is tried again the next time."""
        if facts is self._latest:
            return
        packed = self._packed | pack_facts(facts)
        if packed == self._packed or self._write("facts", packed):
            self._packed, self._latest = packed, facts

    def document(self) -> Document | None:
        """Return the document that was kept, if there is one and it can be trusted."""
        if not self._documents:
            return None
        found = self._read("document", _document)
        if found is None:
            return None
        document, since = found
        event(
            logging.WARNING,
            "the document kept on this node is in force until its source answers",
            source=document.name,
            revision=document.revision,
            kept=since,
        )
        return document

    def facts(self) -> dict[Fact[Any], Any]:
        """Return the facts that were kept."""
        self._packed = self._read("facts", dict) or {}
        return self._read("facts", unpack_facts) or {}

    def _read(self, kind: str, back: Callable[[Any], Value]) -> Value | None:
        try:
            kept = self._state.read(kind)
            return None if kept is None else back(kept)
        except SourceError as error:
            self._complain(error)
        except MALFORMED:
            self._complain(SourceError(f"the {kind} kept on this node is in another form"))
        return None

    def _write(self, kind: str, value: Any) -> bool:
        try:
            self._state.write(kind, value)
        except SourceError as error:
            self._complain(error)
            return False
        self._failure = None
        return True

    def _complain(self, error: SourceError) -> None:
        if str(error) != self._failure:
            self._failure = str(error)
            event(logging.WARNING, "what is in force is not kept on this node", error=str(error))


def _document(kept: Any) -> tuple[Document, str]:
    return unpack_document(kept), str(kept["time"])


def pack_document(document: Document) -> dict[str, Any]:
    """Return a document for JSON."""
    parts = [(part.name, base64.b64encode(part.content).decode()) for part in document.parts]
    lacking = {"lacking": document.lacking} if document.lacking else {}
    return {"name": document.name, "revision": document.revision, "parts": parts, **lacking}


def unpack_document(data: Any) -> Document:
    """Return the document that was packed.

    Raises:
        ValueError, KeyError, TypeError: it was not.
    """
    parts = tuple(Part(str(name), base64.b64decode(text)) for name, text in data["parts"])
    name, revision = str(data["name"]), str(data["revision"])
    return Document(name, parts, revision, time.monotonic(), tuple(data.get("lacking", ())))


def pack_facts(facts: Facts) -> dict[str, Any]:
    """Return for JSON what the API told."""
    known = ((kind, into, facts.get(fact)) for fact, kind, into, _ in _FORMS)
    return {kind: into(value) for kind, into, value in known if value is not None}


def unpack_facts(data: Any) -> dict[Fact[Any], Any]:
    """Return the facts that were packed.

    Raises:
        ValueError, KeyError, TypeError: they were not.
    """
    return {fact: back(data[kind]) for fact, kind, _, back in _FORMS if kind in data}
