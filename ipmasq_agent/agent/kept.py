"""What an agent that starts while the API is away goes on with: what was in force before.

A document from the API, and what was learnt from the API beside it. A file is on the node
itself, and so are devices and routes.
"""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ipmasq_agent.errors import SourceError
from ipmasq_agent.logs import event
from ipmasq_agent.policy.addresses import Family, Prefix
from ipmasq_agent.policy.assemble import Need
from ipmasq_agent.sources import Document, Part
from ipmasq_agent.sources.state_dir import StateDir

Value = TypeVar("Value")

# Of each fact that the API tells: into JSON and back.
_FORMS: Mapping[Need, tuple[str, Callable[[Any], Any], Callable[[Any], Any]]] = {
    Need.NODE_ADDRESSES: (
        "nodes",
        lambda value: sorted((family.value, address) for family, address in value),
        lambda kept: frozenset((Family(family), int(address)) for family, address in kept),
    ),
    Need.POD_CIDRS: (
        "pod-cidrs",
        lambda value: [(p.family.value, p.first, p.length) for p in value],
        lambda kept: tuple(Prefix(Family(family), int(a), int(n)) for family, a, n in kept),
    ),
}


class Kept:
    """The last good document and the last facts, on the node; failures to keep are logged.

    Args:
        state: where.
        documents: whether documents are kept too, as those from the API are.
    """

    def __init__(self, state: StateDir, *, documents: bool) -> None:
        self._state = state
        self._documents = documents
        self._facts: dict[Need, Any] = {}  # to be kept
        self._written: dict[Need, Any] = {}
        self._failure: str | None = None

    def keep_document(self, document: Document) -> bool:
        """Keep a document that is in force; false where it is worth another try."""
        if not self._documents:
            return True
        parts = [(part.name, base64.b64encode(part.content).decode()) for part in document.parts]
        value = {"name": document.name, "revision": document.revision, "parts": parts}
        return self._write("document", value | {"time": time.strftime("%FT%TZ", time.gmtime())})

    def note(self, need: Need, value: Any) -> None:
        """Have what was learnt kept by ``keep_facts``, where it is the API that tells it."""
        if need in _FORMS:
            self._facts[need] = value

    def keep_facts(self) -> None:
        """Keep what was learnt since; what cannot be kept is tried again the next time."""
        for need, value in list(self._facts.items()):
            kind, into, _ = _FORMS[need]
            if self._written.get(need) == value or self._write(kind, into(value)):
                self._written[need] = self._facts.pop(need)

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

    def facts(self) -> dict[Need, Any]:
        """Return the facts that were kept."""
        kept = {need: self._read(kind, back) for need, (kind, _, back) in _FORMS.items()}
        return {need: value for need, value in kept.items() if value is not None}

    def _read(self, kind: str, back: Callable[[Any], Value]) -> Value | None:
        try:
            kept = self._state.read(kind)
            return None if kept is None else back(kept)
        except SourceError as error:
            self._complain(error)
        except (ValueError, KeyError, TypeError, AttributeError):
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
    parts = tuple(Part(str(name), base64.b64decode(text)) for name, text in kept["parts"])
    document = Document(str(kept["name"]), parts, str(kept["revision"]), time.monotonic())
    return document, str(kept["time"])
