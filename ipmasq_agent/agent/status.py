"""What the agent says of itself: one immutable value, shown as JSON or as a line.

The agent and the verb ``status`` build it here, of what they have seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

from ipmasq_agent.answers.overrides import Overridden
from ipmasq_agent.answers.ports import PortLook
from ipmasq_agent.config.document import Understood
from ipmasq_agent.config.keys import NATIVE_ROUTING_CIDRS
from ipmasq_agent.planes.usage import Usage
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.sources import Document, revision_of

_SHOWN = 8  # rules in the text


class Sighting(NamedTuple):
    """A state of the document, and when it came.

    Attributes:
        revision: as its source counts.
        digest: of its content.
        since: when it was first seen, or was in force, in seconds of Unix time.
    """

    revision: str
    digest: str
    since: float

    @property
    def time(self) -> str:
        """When, as people and programs read it."""
        return f"{datetime.fromtimestamp(self.since, UTC):%FT%TZ}"

    def as_data(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {"revision": self.revision, "hash": self.digest, "since": self.time}


@dataclass(frozen=True, slots=True)
class ConfigStatus:
    """The newest document that was seen, and the one in force.

    Attributes:
        source: the path or ConfigMap it comes from.
        newest: that was seen; None before the first.
        in_force: what the kernel holds, or held when it was last looked at; None before the
            first.
        accepted: the newest document can be used.
        error: why it cannot, or why the source cannot be read at the moment.
        warnings: what its author may want to know.
        caveat: what there is to know of the source, whatever it says.
        native_routing: destinations that the newest good document says can be reached with
            pod addresses.
        kept: the document in force is the one of before this process; its source has not
            answered since.
        age: seconds since the source gave a sign of life; None where it is on this node.
    """

    source: str
    newest: Sighting | None = None
    in_force: Sighting | None = None
    accepted: bool = False
    error: str | None = None
    warnings: tuple[str, ...] = ()
    caveat: str | None = None
    native_routing: tuple[str, ...] = ()
    kept: bool = False
    age: float | None = None

    @property
    def notices(self) -> tuple[str, ...]:
        """All that somebody may want to know of it."""
        return (*self.warnings, self.caveat) if self.caveat else self.warnings

    @property
    def revision(self) -> str | None:
        """The newest document's."""
        return self.newest.revision if self.newest else None

    def as_data(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "source": self.source,
            "revision": self.revision,
            "accepted": self.accepted,
            "error": self.error,
            "warnings": list(self.notices),
            "kept": self.kept,
            "secondsSinceHeard": self.age,
            "newest": self.newest and self.newest.as_data(),
            "inForce": self.in_force and self.in_force.as_data(),
        }


def _seen(data: Mapping[str, Any] | None) -> Sighting | None:
    if data is None:
        return None
    since = datetime.fromisoformat(data["since"]).timestamp()
    return Sighting(str(data["revision"]), str(data["hash"]), since)


def _words(told: Any) -> str | None:
    return None if told is None else str(told)


def seen(document: Document, since: float) -> Sighting:
    """Return what there is to say of any document."""
    return Sighting(document.revision, revision_of(document.parts), since)


def accepted(source: str, document: Document, understood: Understood, since: float) -> ConfigStatus:
    """Return what there is to say of a document that can be used."""
    return ConfigStatus(
        source,
        seen(document, since),
        accepted=True,
        warnings=(*understood.warnings, *document.warnings),
        caveat=document.caveat,
        native_routing=tuple(str(prefix) for prefix, _ in understood.config[NATIVE_ROUTING_CIDRS]),
    )


@dataclass(frozen=True, slots=True)
class Healed:
    """What others had done to our rules, and a pass undid.

    Attributes:
        at: when, as RFC 3339 has it.
        backend: where.
        family: whose rules.
        unexpected: lines that were there, and that we never write.
        missing: lines that were not there. Neither where rules had been moved, or where there
            are very many.
    """

    at: str
    backend: str
    family: Family
    unexpected: Sequence[str]
    missing: Sequence[str]

    def as_data(self) -> dict[str, Any]:
        """Return it as ``status -o json`` has it."""
        return {
            "at": self.at,
            "backend": self.backend,
            "family": self.family.value,
            "missing": list(self.missing),
            "unexpected": list(self.unexpected),
        }

    def __str__(self) -> str:
        kinds = (("missing", self.missing), ("unexpected", self.unexpected))
        told = [f"{word}: {'; '.join(lines[:_SHOWN])}" for word, lines in kinds if lines]
        where = f"{self.at} {self.family.value} ({self.backend})"
        return ", ".join((where, *told))


@dataclass(frozen=True, slots=True)
class Look:
    """What the kernel was found to hold, by a pass or by somebody who only looks.

    Attributes:
        mode: the backend in use.
        reason: why it is that one.
        devices: the egress devices.
        families: those that are managed.
        in_step: the kernel holds what is asked for, wherever it can be read.
        errors: family → why it cannot be read, or written.
        changed: it was written to.
        healed: see ``Healed``; what else was written was asked for.
        left_behind: see ``Status``.
        unanswered: see ``Status``.
        doubtful: source addresses to which replies may not come back.
        advice: family → what the backend has to say about the size of what it holds.
        further: more advice.
        contested: see ``Status``.
    """

    mode: str
    reason: str
    devices: tuple[str, ...]
    families: tuple[Family, ...]
    in_step: bool = True
    errors: Mapping[Family, str] = field(default_factory=dict)
    changed: bool = False
    healed: tuple[Healed, ...] = ()
    left_behind: tuple[str, ...] = ()
    unanswered: tuple[str, ...] = ()
    doubtful: tuple[str, ...] = ()
    advice: Mapping[Family, str | None] = field(default_factory=dict)
    further: tuple[str, ...] = ()
    contested: str | None = None


@dataclass(frozen=True, slots=True)
class Status:
    """One moment of the agent.

    Attributes:
        mode: the backend in use; None before the first pass.
        mode_reason: why it is that one.
        devices: the egress devices found on the node.
        config: the document.
        families: those that are managed.
        in_sync: after the latest pass the kernel held what the policy in force asks for.
        errors: family → why its latest pass failed.
        failure: what failed beside a pass, unexpectedly, and is tried again.
        waiting: what has to be learnt before the newest document can be in force.
        facts: what is in force depends on these beside the document → why one cannot be
            followed at the moment, so that what was learnt before stays true; or None.
        left_behind: what an agent of ours left in another data plane and cannot be taken away,
            or cannot be seen: it may decide by an older policy.
        unanswered: source addresses that the document gives and that nothing comes back to.
        advice: what the backend has to say about the size of what it holds.
        standing_by: who keeps on this node what this agent would keep, which waits for its end.
        agent: who was asked, where this is not its own status, in words.
        contested: who undoes what we write, again and again; None while nobody does.
        passes: how many there were, and how many of them changed the kernel.
        heals: how many of those undid what others had done.
        healed: the latest of it.
        overridden: what others decide about otherwise than the policy, which the kernel holds.
        partial: rules of others that do so for some packets, in words.
        unknown: why it cannot be told what others decide, or how many ports are in use.
        counters: family and outcome → packets and flows, where the data plane counts by
            itself.
        usage: how full the data plane's own tables are, and where its ports ran out.
        ports: how many source ports are in use.
    """

    config: ConfigStatus
    mode: str | None = None
    mode_reason: str | None = None
    devices: tuple[str, ...] = ()
    families: tuple[Family, ...] = ()
    in_sync: bool = False
    errors: Mapping[Family, str] = field(default_factory=dict)
    passes: int = 0
    changes: int = 0
    heals: int = 0
    healed: tuple[Healed, ...] = ()
    failure: str | None = None
    waiting: tuple[str, ...] = ()
    facts: Mapping[str, str | None] = field(default_factory=dict)
    left_behind: tuple[str, ...] = ()
    unanswered: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    standing_by: str | None = None
    agent: str | None = None
    contested: str | None = None
    overridden: tuple[Overridden, ...] = ()
    partial: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    counters: Mapping[tuple[Family, str], int] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)
    ports: PortLook = field(default_factory=PortLook)

    @classmethod
    def told(cls, agent: str, data: Mapping[str, Any]) -> Status:
        """Return what an agent says of itself by ``as_data``, but for what the kernel holds.

        Raises:
            one of MALFORMED: it is in another form.
        """
        of = data["config"]
        config = ConfigStatus(
            str(of["source"]),
            _seen(of["newest"]),
            _seen(of["inForce"]),
            accepted=bool(of["accepted"]),
            error=_words(of["error"]),
            warnings=tuple(map(str, of["warnings"])),
            native_routing=tuple(filter(None, (data["nativeRoutingCIDR"] or "").split(", "))),
            kept=bool(of["kept"]),
            age=None if of["secondsSinceHeard"] is None else float(of["secondsSinceHeard"]),
        )
        return cls(
            config,
            passes=int(data["passes"]),
            changes=int(data["changes"]),
            heals=int(data["heals"]),
            healed=tuple(
                Healed(
                    str(one["at"]),
                    str(one["backend"]),
                    Family(one["family"]),
                    tuple(map(str, one["unexpected"])),
                    tuple(map(str, one["missing"])),
                )
                for one in data["healed"]
            ),
            failure=_words(data["failure"]),
            waiting=tuple(map(str, data["waiting"])),
            facts={str(fact["name"]): _words(fact["error"]) for fact in data["facts"]},
            standing_by=_words(data["standingBy"]),
            agent=agent,
            contested=_words(data["contested"]),
        )

    def looked(self, look: Look) -> Status:
        """Return what there is to say after a look at the kernel."""
        of_sizes = (
            f"{family.value}: {line}" for family in Family if (line := look.advice.get(family))
        )
        return replace(
            self,
            mode=look.mode,
            mode_reason=look.reason,
            devices=look.devices,
            families=look.families,
            # What is healed is the last good policy; the newest one still waits for facts.
            in_sync=look.in_step and not look.errors and not self.waiting,
            errors=look.errors,
            left_behind=look.left_behind,
            unanswered=look.unanswered,
            advice=(*of_sizes, *look.further, *look.doubtful),
            contested=look.contested,
        )

    def passed(self, found: Look | Mapping[Family, str]) -> Status:
        """Return what there is to say after a pass: what it found, or why it found nothing."""
        if isinstance(found, Look):
            after, changed, healed = self.looked(found), found.changed, found.healed
        else:
            after, changed, healed = replace(self, in_sync=False, errors=found), False, ()
        return replace(
            after,
            passes=self.passes + 1,
            changes=self.changes + changed,
            heals=self.heals + bool(healed),
            healed=healed or self.healed,
        )

    def beside(
        self,
        overridden: tuple[Overridden, ...],
        partial: tuple[str, ...],
        unknown: tuple[str, ...],
    ) -> Status:
        """Return it with what others decide beside the policy."""
        return replace(self, overridden=overridden, partial=partial, unknown=unknown)

    @property
    def in_force(self) -> bool:
        """Whether what becomes of packets is what the policy says.

        A rule of others that comes first is theirs to remove, and no reason to restart or
        to hold back an agent: readiness does not ask for this.
        """
        return self.in_sync and not self.overridden and not self.left_behind

    @property
    def ready(self) -> bool:
        """Whether document and facts are in force and replies come back.

        Nor may a data plane that was left decide too. Who stands by is ready to take over: a
        rollout that starts the new agent first would never end the old one otherwise.
        """
        if self.standing_by:
            return True
        sources = (self.failure, self.config.error, *self.facts.values())
        if self.config.kept or any(sources) or self.left_behind or self.unanswered:
            return False
        return self.config.accepted and self.in_sync

    def why_not_ready(self) -> str:
        """Return what readiness waits for, in one line."""
        if self.failure is not None:
            return self.failure
        if self.config.revision is None and self.config.error is None:
            return f"waiting for {self.config.source}"
        if self.config.kept:
            reason = self.config.error or f"waiting for {self.config.source}"
            return f"{reason}; {self._kept()}"
        if self.config.error is not None:
            return self.config.error
        if self.errors:
            return "; ".join(f"{family.value}: {error}" for family, error in self.errors.items())
        if self.waiting:
            return "; ".join(self.waiting)
        if lost := self._lost():
            return "; ".join(lost)
        if self.left_behind or self.unanswered:
            return "; ".join((*self.left_behind, *self.unanswered))
        return "" if self.in_sync else "no pass has finished yet"

    def _kept(self) -> str:
        revision = self.config.revision
        return f"the last good document, revision {revision}, kept on this node, is in force"

    def _lost(self) -> list[str]:
        """Return what cannot be followed, though it was known before, in lines."""
        waiting = "; ".join(self.waiting)
        return [
            f"{name} cannot be followed, those of before stay in force: {error}"
            for name, error in self.facts.items()
            if error and name not in waiting
        ]

    def as_data(self) -> dict[str, Any]:
        """Return the contract of ``status -o json``, with keys of our own after it."""
        return {
            "mode": self.mode,
            "devices": list(self.devices),
            "inSync": self.in_sync,
            "config": self.config.as_data(),
            **{family.value: self._family(family) for family in Family},
            "ready": self.ready,
            "modeReason": self.mode_reason,
            "nativeRoutingCIDR": ", ".join(self.config.native_routing) or None,
            "failure": self.failure,
            "waiting": list(self.waiting),
            "facts": [{"name": name, "error": error} for name, error in self.facts.items()],
            "leftBehind": list(self.left_behind),
            "unanswered": list(self.unanswered),
            "advice": [*self.advice, *self.usage.warnings, *self.ports.warnings, *self.unknown],
            "inForce": self.in_force,
            "overrides": [item.as_data() for item in self.overridden],
            "exceptions": list(self.partial),
            "contested": self.contested,
            "standingBy": self.standing_by,
            "agent": self.agent,
            "passes": self.passes,
            "changes": self.changes,
            "heals": self.heals,
            "healed": [one.as_data() for one in self.healed],
            "counters": {
                f.value: {name: n for (of, name), n in self.counters.items() if of is f}
                for f in Family
            },
            "tables": [table.as_data() for table in self.usage.tables],
            "ports": [row.as_data() for row in self.ports.rows[:_SHOWN]],
            "exhausted": [one.as_data() for one in self.usage.exhausted],
        }

    def _family(self, family: Family) -> dict[str, Any]:
        return {"enabled": family in self.families, "error": self.errors.get(family)}

    def _counted(self) -> list[str]:
        """Return what was counted in lines; of each family what is not zero."""
        lines = [f"Table:        {table}" for table in self.usage.tables]
        for family in Family:
            words = [
                f"{name.replace('_', ' ')} {count}"
                for (of, name), count in self.counters.items()
                if of is family and count
            ]
            if words:
                lines.append(f"Counted:      {family.value}: {', '.join(words)}")
        lines += (f"No port free: {one}" for one in self.usage.exhausted)
        return lines

    def _in_force_since(self) -> str:
        held = self.config.in_force
        return f", revision {held.revision} (hash {held.digest}) since {held.time}" if held else ""

    def as_text(self) -> str:
        """Return the line that operators know, then sync, config and backend."""
        switches = ", ".join(
            f"{label}: {'Enabled' if family in self.families else 'Disabled'}"
            for family, label in ((Family.IPV4, "IPv4"), (Family.IPV6, "IPv6"))
        )
        config = self.config
        state = "accepted" if config.accepted else "refused" if config.newest else "not read"
        if config.kept:
            state = "kept on this node, not confirmed"
        native = ", ".join(config.native_routing) or "-"
        lines = [
            f"Masquerading: {self.mode} [{', '.join(self.devices)}] {native} [{switches}]",
            f"In sync:      {'yes' if self.in_sync else 'no'}",
            f"In force:     {'yes' if self.in_force else 'no'}{self._in_force_since()}",
            f"Config:       {config.source} (revision {config.revision}, {state})",
            f"Backend:      {self.mode} ({self.mode_reason})",
        ]
        lines += [f"Asked:        {self.agent}"] if self.agent else []
        lines += self._counted()
        errors = f"{self.failure or ''}\n{config.error or ''}"
        lines += [f"Standing by:  {self.standing_by}"] if self.standing_by else []
        lines += (f"Error:        {error}" for error in errors.splitlines() if error)
        lines += (f"Error:        {f.value}: {error}" for f, error in self.errors.items())
        lines += (f"Error:        {line}" for line in self._lost())
        lines += (f"Error:        {line}" for line in (*self.left_behind, *self.unanswered))
        lines += (f"Overridden:   {item}" for item in self.overridden[:_SHOWN])
        if len(self.overridden) > _SHOWN:
            lines.append(f"Overridden:   by {len(self.overridden) - _SHOWN} more rules")
        lines += (f"Some packets: {line}" for line in self.partial[:_SHOWN])
        lines += (f"Healed:       {one}" for one in self.healed)
        lines += (f"Waiting:      {line.removeprefix('waiting for ')}" for line in self.waiting)
        lines += (
            f"Warning:      {warning}"
            for warning in (
                *(*config.notices, *self.advice, *self.usage.warnings),
                *(*self.ports.warnings, *self.unknown),
            )
        )
        return "\n".join(lines)
