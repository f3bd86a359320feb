"""A document that a few nodes try first, as its ConfigMap says: which nodes, since when, by whom.

All that there is to know of it is in the cluster, so that anybody can go on with it or end it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ipmasq_agent.errors import UsageError
from ipmasq_agent.fleet.nodes import plain
from ipmasq_agent.fleet.published import Published
from ipmasq_agent.fleet.trial import tried_on
from ipmasq_agent.sources.canary import NODES, tries

BEGUN, UNTIL, BY, BEFORE = (
    f"ipmasq-agent/{word}" for word in ("begun", "until", "by", "hash-before")
)
"""Annotations: when it was written, until when it is watched, by whom, and over what."""

_MEANT = re.compile(
    r"(?P<share>[0-9]+(\.[0-9]+)?%)|label=(?P<label>.+)|node=(?P<names>[a-z0-9.,-]+)"
)


@dataclass(frozen=True, slots=True)
class Meant:
    """Which nodes are to try a document, as somebody says on a command line.

    Attributes:
        share: of all nodes, as ``5%``.
        label: of nodes, as a label selector.
        names: of nodes, with commas between.
    """

    share: str | None = None
    label: str | None = None
    names: str | None = None

    @classmethod
    def of(cls, text: str) -> Meant:
        """Return what a text means.

        Raises:
            UsageError: nothing.
        """
        found = _MEANT.fullmatch(text)
        if found is None or (found["share"] and float(found["share"][:-1]) > 100):
            raise UsageError(
                f"--canary: {text!r} says no nodes",
                remedy="write a share as 5%, label=KEY=VALUE, or node=NAME,NAME",
            )
        return cls(**found.groupdict())

    def among(self, nodes: Collection[str], labelled: Collection[str]) -> list[str]:
        """Return who of all nodes is meant.

        Args:
            nodes: those that have an agent.
            labelled: those with the label.

        Raises:
            UsageError: nobody is, or one that is no node.
        """
        named = set((self.names or "").split(",")) - {""}
        if self.share:
            meant = {node for node in nodes if tries(self.share, node)}
        else:
            meant = named or set(labelled) & set(nodes)
        if missing := meant - set(nodes):
            raise UsageError(f"--canary: no agent runs on {', '.join(sorted(missing))}")
        if not meant:
            raise UsageError(
                f"--canary: that is none of {len(nodes)} nodes",
                remedy="the nodes of a share follow from their names: take a larger one",
            )
        return sorted(meant)


@dataclass(frozen=True, slots=True)
class Canary:
    """One that is there.

    Attributes:
        document: it, as it was read.
    """

    document: Published

    @property
    def about(self) -> Mapping[str, str]:
        """The annotations of its ConfigMap."""
        return self.document.about

    @property
    def digest(self) -> str:
        """The document's hash, as agents tell it."""
        return self.document.digest

    def left(self, now: datetime) -> float | None:
        """Return for how many seconds more it is watched; None where it is not any more."""
        try:
            seconds = (datetime.fromisoformat(self.about[UNTIL]) - now).total_seconds()
        except (KeyError, ValueError, TypeError):  # as somebody else has written it
            return None
        return seconds if seconds > 0 else None

    def among(self, nodes: Iterable[str]) -> list[str]:
        """Return those nodes that try it; none where what it says of them cannot be read."""
        try:
            return [node for node in nodes if tries(self.about.get(NODES, ""), node)]
        except ValueError:
            return []

    def line(self, nodes: Iterable[str]) -> str:
        """Return in a line what there is to say of it, given all nodes."""
        words = [f"canary: {self.digest} on {tried_on(self.among(nodes))}"]
        keys = (("since", BEGUN), ("by", BY), ("watched until", UNTIL))
        words += [f"{word} {self.about[key]}" for word, key in keys if key in self.about]
        return plain(", ".join(words))

    def as_data(self, nodes: Iterable[str]) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "hash": self.digest,
            "nodes": self.among(nodes),
            "begun": self.about.get(BEGUN),
            "until": self.about.get(UNTIL),
            "by": self.about.get(BY),
            "before": self.about.get(BEFORE),
        }


def canary_of(found: Published) -> Canary | None:
    """Return the canary of its ConfigMap; None where there is none, or without a document."""
    return None if found.content is None else Canary(found)
