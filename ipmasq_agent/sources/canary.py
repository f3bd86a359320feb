"""A document that some nodes try before the others."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Sequence

from ipmasq_agent.errors import AccessDenied
from ipmasq_agent.sources import Document, Source, SourceEvent, SourceFailed
from ipmasq_agent.sources.merged import MergedSource

NODES = "ipmasq-agent/nodes"
"""The annotation of a ConfigMap that says which nodes try its document."""

_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")


def tries(nodes: str, node: str) -> bool:
    """Whether a node is among those that try a document.

    Args:
        nodes: as the annotation has it: names, with spaces or commas between, or a share of
            all nodes like ``5%``. The nodes of a smaller share are among those of a larger one.
        node: its name.

    Raises:
        ValueError: ``nodes`` is neither.
    """
    text = nodes.strip()
    if text.endswith("%"):
        share = float(text[:-1])
        if not 0 <= share <= 100:
            raise ValueError(f"{text} is no share of all nodes")
        place = int.from_bytes(hashlib.sha256(node.encode()).digest()[:8], "big")
        return place / 2**64 < share / 100
    names = text.replace(",", " ").split()
    for name in names:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a node")
    return node in names


class CanarySource(MergedSource):
    """Implements ``Source``: one document, or the other where this node is to try that.

    Nothing is delivered before both sources have answered: an agent that starts does not go
    back to the document of the others for a moment. Of what this node does not try, nothing
    can make it unready: a failure is a caveat of the other document.

    Args:
        everyone: the document of all nodes.
        tried: the one to try; a document without parts where this node is not to.
    """

    def __init__(self, everyone: Source, tried: Source) -> None:
        super().__init__((everyone, tried))

    def _heard(self, number: int, event: SourceEvent) -> None:
        if number and isinstance(event, SourceFailed):
            held = self._documents.get(number)
            # Before the first answer, only one who will not be answered goes on without.
            unused = isinstance(event.error, AccessDenied) if held is None else not held.parts
            if unused:
                caveat = f"whether this node tries another document is not known: {event.error}"
                event = Document(event.name, (), "unknown", time.monotonic(), caveat=caveat)
        super()._heard(number, event)

    def _joined(self, documents: Sequence[Document]) -> Document:
        everyone, tried = documents
        if tried.parts:
            return tried
        noticed = max(everyone.noticed, tried.noticed)
        return everyone._replace(noticed=noticed, caveat=tried.caveat or everyone.caveat)
