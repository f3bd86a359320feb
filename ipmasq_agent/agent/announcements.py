"""What of the agent's status is worth an Event of Kubernetes, how often, and what it looks like.

One Event stands for one thing that is told within an hour, however often it happens: later times
are counted in its series. Its name follows from what it says, so an agent that was restarted makes
none twice, and of a document that a thousand nodes refuse for one reason one Event is stored: the
API server answers all others that it exists.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from ipmasq_agent.agent.status import Status
from ipmasq_agent.answers.ports import PortLook
from ipmasq_agent.sources import ConfigMapName

WINDOW = 3600.0
"""Seconds for which the same thing is told by the same Event; API servers keep one as long."""
MOST = 20
"""New Events within that time; what is more is left to the log."""
UPDATES = 60.0
"""Seconds until what is there already is written again, of all Events of an agent together."""
# What an API server takes (pkg/apis/core/validation/events.go), the first in bytes.
_NOTE, _INSTANCE, _NAME = 1024, 128, 253
_CONTROLLER = "ipmasq-agent"
_OF_NODES = "default"
"""The namespace of Events about what is in none, where kubelet and client-go write them too."""


class Announcement(NamedTuple):
    """Something that happened.

    Attributes:
        node: where.
        about: the ConfigMap that it is about; None for the node.
        reason, action: in the words of Kubernetes: why, and what was done.
        note: for people.
        same: by which it is told from other things with that reason.
        at: when, in seconds of Unix time.
    """

    node: str
    about: ConfigMapName | None
    reason: str
    action: str
    note: str
    same: str
    at: float
    warning: bool = True

    @property
    def namespace(self) -> str:
        """Where its Event belongs."""
        return self.about.namespace if self.about else _OF_NODES

    @property
    def name(self) -> str:
        """Of its Event: the same for the same thing within an hour of the clock."""
        said = "\0".join((self.reason, self.same, str(self.at // WINDOW)))
        digest = hashlib.sha256(said.encode(errors="replace")).hexdigest()[:16]
        about = self.about.name if self.about else self.node
        return f"{about[: _NAME - len(digest) - 1].rstrip('.-')}.{digest}"

    def as_event(self) -> dict[str, Any]:
        """Return it as an object of events.k8s.io/v1."""
        if self.about:
            regarding = {"apiVersion": "v1", "kind": "ConfigMap", **self.about._asdict()}
        else:
            # Its name for its uid, as kubelet does: so `kubectl describe node` finds it.
            regarding = {"apiVersion": "v1", "kind": "Node", "name": self.node, "uid": self.node}
        return {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": self.name, "namespace": self.namespace},
            "eventTime": micro_time(self.at),
            "type": "Warning" if self.warning else "Normal",
            "reason": self.reason,
            "action": self.action,
            "note": _cut(self.note),
            "regarding": {key: value for key, value in regarding.items() if value},
            "reportingController": _CONTROLLER,
            "reportingInstance": self.node[:_INSTANCE],
        }


def announcements(
    node: str, before: tuple[Status, PortLook], now: tuple[Status, PortLook], at: float
) -> Iterator[Announcement]:
    """Yield what happened between two moments of the agent of a node.

    Args:
        node: its name.
        before: the first moment: the status, and the latest look at the source ports.
        now: the second one.
        at: when that was, in seconds of Unix time.
    """
    (was, ports_were), (status, ports) = before, now
    yield from _of_document(node, was, status, at)

    def here(reason: str, note: str, same: str = "", *, warning: bool = True) -> Announcement:
        return Announcement(node, None, reason, "Reconcile", note, same, at, warning)

    if status.heals != was.heals:
        for healed in status.healed:
            yield here(
                "RulesHealed",
                f"what others had done to our rules was undone: {healed}",
                f"{healed.family.value} {healed.cause}",
            )
    contested, was_contested = status.look.contested, was.look.contested
    if contested and not was_contested:
        note = f"{contested} undoes our rules again and again; they are written less often for it"
        yield here("RulesContested", note)
    elif was_contested and not contested:
        yield here("RulesUncontested", "nobody undoes our rules any more", warning=False)
    known = {row.labels for row in ports_were.rows if row.warning}
    for row in ports.rows:
        if row.warning and row.labels not in known:
            yield here("SourcePortsRunOut", row.warning, " ".join(row.labels))


def _of_document(node: str, was: Status, status: Status, at: float) -> Iterator[Announcement]:
    refused, newest, before = status.config.refused, status.config.newest, was.config.newest
    if newest is None:
        return
    if refused and (refused != was.config.refused or before is None or newest[:2] != before[:2]):
        # The one that the fault is in, where several are merged.
        named = [each for each in newest.configmaps if f"{each} " in refused] or newest.configmaps
        note = f"refused, what was in force stays; {node} says: {refused}"
        for about in named:
            yield Announcement(node, about, "DocumentRefused", "Validate", note, refused, at)
    elif not refused and was.config.refused and before:
        note = f"accepted again: revision {newest.revision}, hash {newest.digest}"
        for about in newest.configmaps or before.configmaps:
            yield Announcement(
                node, about, "DocumentAccepted", "Validate", note, newest.digest, at, warning=False
            )


@dataclass(slots=True)
class Posting:
    """An Event, made or to be made.

    Attributes:
        since: when the thing happened first, by the ledger's clock.
        last: when it happened last, in seconds of Unix time.
        ours: whether this agent writes it, and so counts in it.
        count: how often it happened.
        written: how often the Event says that it did; 0 where there is none yet.
    """

    first: Announcement
    since: float
    last: float
    ours: bool = True
    count: int = 1
    written: int = 0

    def as_change(self) -> dict[str, Any]:
        """Return what is to be written: the whole Event, or how often it happened."""
        series = {"series": {"count": self.count, "lastObservedTime": micro_time(self.last)}}
        if self.written:
            return series
        return self.first.as_event() | (series if self.count > 1 else {})


class Ledger:
    """Remembers what was told, so that it is told once, and not too much.

    All times are seconds of one clock that is never set.
    """

    def __init__(self) -> None:
        self._postings: dict[tuple[str, ...], Posting] = {}
        self._updated = 0.0

    def enter(self, one: Announcement, now: float) -> Posting | None:
        """Take it in; return the Event to make, or None where there is one, or are too many."""
        self._expire(now)
        key = one.namespace, one.about.name if one.about else "", one.reason, one.same
        if posting := self._postings.get(key):
            posting.count, posting.last = posting.count + 1, one.at
            return None
        if len(self._postings) >= MOST:
            return None
        self._postings[key] = posting = Posting(one, now, one.at)
        self._updated = now
        return posting

    def until_update(self, now: float) -> float | None:
        """Return the seconds until an Event is to be written again; None while none is."""
        self._expire(now)
        return max(0.0, self._updated + UPDATES - now) if self._behind() else None

    def update(self, now: float) -> Posting | None:
        """Return the Event to be written again now, the one that lags most."""
        if self.until_update(now) != 0.0:
            return None
        self._updated = now
        return max(self._behind(), key=lambda each: each.count - each.written)

    def forget(self, posting: Posting) -> None:
        """Take an Event for never made: it is there no more."""
        self._postings = {key: each for key, each in self._postings.items() if each is not posting}

    def _behind(self) -> list[Posting]:
        return [each for each in self._postings.values() if each.ours and each.written < each.count]

    def _expire(self, now: float) -> None:
        postings = self._postings.items()
        self._postings = {key: each for key, each in postings if now - each.since < WINDOW}


def micro_time(moment: float) -> str:
    """Return Unix time as MicroTime of Kubernetes."""
    return f"{datetime.fromtimestamp(moment, UTC):%FT%T.%fZ}"


def _cut(note: str) -> str:
    """Return as much of a note as an Event may hold, in UTF-8."""
    encoded = note.encode(errors="replace")
    if len(encoded) <= _NOTE:
        return encoded.decode()
    return encoded[: _NOTE - 3].decode(errors="ignore") + "…"
