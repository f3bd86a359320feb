"""What the agent says of itself: one immutable value, shown as JSON or as a line.

The agent and the verb ``status`` build it here, of what they have seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

from ipmasq_agent.answers.overrides import Overridden
from ipmasq_agent.answers.ports import PortLook
from ipmasq_agent.config.document import Understood
from ipmasq_agent.config.keys import NATIVE_ROUTING_CIDRS
from ipmasq_agent.planes.usage import Usage
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.sources import ConfigMapName, Document, revision_of

_SHOWN = 8  # rules in the text


class Sighting(NamedTuple):
    """A state of the document, and when it came.

    Attributes:
        since: when it was first seen, or was in force, in seconds of Unix time.
        configmaps: the objects of the API that it was in.
    """

    revision: str
    digest: str
    since: float
    configmaps: tuple[ConfigMapName, ...] = ()

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
        refused: why the newest one cannot be used; None where it can.
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
    refused: str | None = None
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
    return Sighting(document.revision, revision_of(document.parts), since, document.configmaps)


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
        unexpected: lines that were there, and that we never write.
        missing: lines that were not there. Neither where rules had been moved, or where there
            are very many.
    """

    at: str
    backend: str
    family: Family
    unexpected: Sequence[str]
    missing: Sequence[str]

    @property
    def cause(self) -> str:
        """What it was, in a word: ``removed``, ``added``, ``replaced`` or ``other``."""
        if self.missing and self.unexpected:
            return "replaced"
        return "removed" if self.missing else "added" if self.unexpected else "other"

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
        mode: the backend in use; None before the first pass.
        reason: why it is that one.
        devices: the egress devices found on the node.
        in_step: the kernel holds what is asked for, wherever it can be read.
        errors: family → why it cannot be read, or written.
        healed: see ``Healed``; what else was written was asked for.
        left_behind: what an agent of ours left in another data plane and cannot be taken away,
            or cannot be seen: it may decide by an older policy.
        unanswered: source addresses that the document gives and that nothing comes back to.
        advice: what there is to say about the size of what is held, and else.
        contested: who undoes what we write, again and again; None while nobody does.
    """

    mode: str | None = None
    reason: str | None = None
    devices: tuple[str, ...] = ()
    families: tuple[Family, ...] = ()
    in_step: bool = True
    errors: Mapping[Family, str] = field(default_factory=dict)
    changed: bool = False
    healed: tuple[Healed, ...] = ()
    left_behind: tuple[str, ...] = ()
    unanswered: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    contested: str | None = None


@dataclass(frozen=True, slots=True)
class Status:
    """One moment of the agent.

    Attributes:
        in_sync: after it the kernel held what the policy in force asks for.
        passes: how many there were, and how many of them changed the kernel, or failed.
        heals: how many of those undid what others had done.
        healed: the latest of it.
        failure: what failed beside a pass, unexpectedly, and is tried again.
        waiting: what has to be learnt before the newest document can be in force.
        facts: what is in force depends on these beside the document → why one cannot be
            followed at the moment, so that what was learnt before stays true; or None.
        standing_by: who keeps on this node what this agent would keep, which waits for its end.
        agent: who was asked, where this is not its own status, in words.
        overridden: what others decide about otherwise than the policy, which the kernel holds.
        partial: rules of others that do so for some packets, in words.
        unknown: why it cannot be told what others decide, or how many ports are in use.
        counters: family and outcome → packets and flows, where the data plane counts by
            itself.
        usage: how full the data plane's own tables are, and where its ports ran out.
        ports: how many source ports are in use.
    """

    config: ConfigStatus
    look: Look = field(default_factory=Look)
    in_sync: bool = False
    passes: int = 0
    changes: int = 0
    failed: int = 0
    heals: int = 0
    healed: tuple[Healed, ...] = ()
    failure: str | None = None
    waiting: tuple[str, ...] = ()
    facts: Mapping[str, str | None] = field(default_factory=dict)
    standing_by: str | None = None
    agent: str | None = None
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
            Look(
                errors={f: str(error) for f in Family if (error := data[f.value]["error"])},
                contested=_words(data["contested"]),
            ),
            passes=int(data["passes"]),
            changes=int(data["changes"]),
            failed=int(data.get("failedPasses") or 0),
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
        )

    def looked(self, look: Look) -> Status:
        """Return what there is to say after a look at the kernel."""
        # What is healed is the last good policy; the newest one still waits for facts.
        in_sync = look.in_step and not look.errors and not self.waiting
        return replace(self, look=look, in_sync=in_sync)

    def passed(self, found: Look | Mapping[Family, str]) -> Status:
        """Return what there is to say after a pass: what it found, or why it found nothing."""
        if not isinstance(found, Look):
            found = replace(self.look, errors=found, changed=False, healed=())
        return replace(
            self.looked(found),
            passes=self.passes + 1,
            changes=self.changes + found.changed,
            failed=self.failed + bool(found.errors),
            heals=self.heals + bool(found.healed),
            healed=found.healed or self.healed,
        )

    @property
    def in_force(self) -> bool:
        """Whether what becomes of packets is what the policy says.

        A rule of others that comes first is theirs to remove, and no reason to restart or
        to hold back an agent: readiness does not ask for this.
        """
        return self.in_sync and not self.overridden and not self.look.left_behind

    @property
    def ready(self) -> bool:
        """Whether document and facts are in force and replies come back.

        Nor may a data plane that was left decide too. Who stands by is ready to take over: a
        rollout that starts the new agent first would never end the old one otherwise.
        """
        if self.standing_by:
            return True
        sources = (self.failure, self.config.error, *self.facts.values())
        if self.config.kept or any(sources) or self.look.left_behind or self.look.unanswered:
            return False
        return self.config.accepted and self.in_sync

    def why_not_ready(self) -> str:
        """Return what readiness waits for, in one line."""
        config, look = self.config, self.look
        unheard = f"waiting for {config.source}"
        kept = f"the last good document, revision {config.revision}, kept on this node, is in force"
        lines = (
            (f"{family.value}: {error}" for family, error in look.errors.items()),
            *(self.waiting, self._lost(), (*look.left_behind, *look.unanswered)),
        )
        reasons = (
            self.failure,
            unheard if config.revision is None and config.error is None else None,
            f"{config.error or unheard}; {kept}" if config.kept else config.error,
            *map("; ".join, lines),
        )
        return next(filter(None, reasons), "" if self.in_sync else "no pass has finished yet")

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
        tracked = self.ports.tracked
        return {
            "mode": self.look.mode,
            "devices": list(self.look.devices),
            "inSync": self.in_sync,
            "config": self.config.as_data(),
            **{family.value: self._family(family) for family in Family},
            "ready": self.ready,
            "modeReason": self.look.reason,
            "nativeRoutingCIDR": ", ".join(self.config.native_routing) or None,
            "failure": self.failure,
            "waiting": list(self.waiting),
            "facts": [{"name": name, "error": error} for name, error in self.facts.items()],
            "leftBehind": list(self.look.left_behind),
            "unanswered": list(self.look.unanswered),
            "advice": list(self._advice),
            "inForce": self.in_force,
            "overrides": [item.as_data() for item in self.overridden],
            "exceptions": list(self.partial),
            "contested": self.look.contested,
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
            "failedPasses": self.failed,
            "tracked": tracked and {"used": tracked[0], "of": tracked[1]},
        }

    def _family(self, family: Family) -> dict[str, Any]:
        return {"enabled": family in self.look.families, "error": self.look.errors.get(family)}

    @property
    def _advice(self) -> tuple[str, ...]:
        of_tables = (*self.usage.warnings, *self.ports.warnings)
        return (*self.look.advice, *of_tables, *self.unknown)

    def _counted(self, family: Family) -> str:
        """Return what was counted of a family and is not zero."""
        return ", ".join(
            f"{name.replace('_', ' ')} {count}"
            for (of, name), count in self.counters.items()
            if of is family and count
        )

    def as_text(self) -> str:
        """Return the line that operators know, then sync, config and backend."""
        look, config = self.look, self.config
        switches = ", ".join(
            f"{label}: {'Enabled' if family in look.families else 'Disabled'}"
            for family, label in ((Family.IPV4, "IPv4"), (Family.IPV6, "IPv6"))
        )
        state = "accepted" if config.accepted else "refused" if config.newest else "not read"
        if config.kept:
            state = "kept on this node, not confirmed"
        native = ", ".join(config.native_routing) or "-"
        held = config.in_force
        since = f", revision {held.revision} (hash {held.digest}) since {held.time}" if held else ""
        more = len(self.overridden) - _SHOWN
        rows: tuple[tuple[str, Iterable[object]], ...] = (
            ("Masquerading", (f"{look.mode} [{', '.join(look.devices)}] {native} [{switches}]",)),
            ("In sync", ("yes" if self.in_sync else "no",)),
            ("In force", (f"{'yes' if self.in_force else 'no'}{since}",)),
            ("Config", (f"{config.source} (revision {config.revision}, {state})",)),
            ("Backend", (f"{look.mode} ({look.reason})",)),
            ("Asked", filter(None, (self.agent,))),
            ("Table", self.usage.tables),
            ("Counted", (f"{f.value}: {told}" for f in Family if (told := self._counted(f)))),
            ("No port free", self.usage.exhausted),
            ("Standing by", filter(None, (self.standing_by,))),
            ("Error", filter(None, f"{self.failure or ''}\n{config.error or ''}".splitlines())),
            ("Error", (f"{family.value}: {error}" for family, error in look.errors.items())),
            ("Error", (*self._lost(), *look.left_behind, *look.unanswered)),
            ("Overridden", self.overridden[:_SHOWN]),
            ("Overridden", (f"by {more} more rules",) if more > 0 else ()),
            ("Some packets", self.partial[:_SHOWN]),
            ("Healed", self.healed),
            ("Waiting", (line.removeprefix("waiting for ") for line in self.waiting)),
            ("Warning", (*config.notices, *self._advice)),
        )
        return "\n".join(f"{label + ':':13} {line}" for label, lines in rows for line in lines)
