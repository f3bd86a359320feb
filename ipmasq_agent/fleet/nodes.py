"""What the agents of all nodes say of themselves, a line each."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ipmasq_agent.answers.table import aligned
from ipmasq_agent.policy.addresses import Family

FAMILIES = tuple(family.value for family in Family)
_NAMED = 3  # nodes in a row of them
_HEAD = ("NODE", "PLANE", "SYNC", "HASH", "REVISION", "SINCE", "PORTS", "DRIFT")


@dataclass(frozen=True, slots=True)
class NodeState:
    """One node.

    Attributes:
        node: its name.
        silent: why nothing was heard of it; None where something was.
        plane: the data plane in use.
        in_force: what becomes of packets is what the document in force says.
        ready: as readiness probes are told.
        held: hash of the document that is in force; None for none yet.
        revision, since: of that document.
        newest: hash of the newest document that the agent has seen.
        accepted: that one can be used.
        trouble: what keeps the agent from being in sync and ready, a clause each.
        ports: how full the fullest pool of source ports is, from 0 to 1; None where unknown.
        source: where the agent's document comes from.
        heals: how often it undid what others had done.
        healed: when, last.
        failed: how many of its passes failed.
        dropped: packets that its data plane dropped rather than let them out untranslated; 0
            where the kernel's own translation does that, which counts none.
        overridden: how many ranges of destinations rules of others decide about.
        filled: how full the fullest table of connections is, from 0 to 1.
        tried: hash of the document that this node is to try instead of the cluster's.
    """

    node: str
    silent: str | None = None
    plane: str = "-"
    in_force: bool = False
    ready: bool = False
    held: str | None = None
    revision: str | None = None
    since: str | None = None
    newest: str | None = None
    accepted: bool = False
    trouble: tuple[str, ...] = ()
    ports: float | None = None
    source: str = ""
    heals: int = 0
    healed: str | None = None
    failed: int = 0
    dropped: int = 0
    overridden: int = 0
    filled: float | None = None
    tried: str | None = None

    def good(self, document: str | None) -> bool:
        """Whether it is in sync with a document of that hash, or with any."""
        return self.in_force and self.ready and (self.tried or document) in (None, self.held)

    def reads(self, place: str, key: str) -> bool:
        """Whether its document is that of a ConfigMap alone, or of a canary instead.

        Args:
            place: of the ConfigMap, as sources call it.
            key: in it.
        """
        if not self.source.startswith("ConfigMap "):
            return True  # a file, which a kubelet may have made of it
        named = set(self.source.split(", ")) - self._canary(place)
        return len(named) == 1 and named <= {place, f"{place} key {key}"}

    def watches_canary(self, place: str) -> bool:
        """Whether it would try the document beside that of a ConfigMap, if it is meant."""
        return bool(self._canary(place))

    def _canary(self, place: str) -> set[str]:
        named = self.source.split(", ")
        return {name for name in named if name.partition(" key ")[0] == f"{place}-canary"}

    def why_not(self, document: str | None) -> str:
        """Return what is the matter, in one line; empty where nothing is."""
        if self.silent is not None:
            return self.silent
        if self.good(document):
            return ""
        clauses, wanted = list(self.trouble), self.tried or document
        if wanted is not None and wanted not in (self.held, self.newest):
            whose = "the canary" if self.tried else "the cluster's document"
            clauses.append(f"has not seen {whose} ({wanted}) yet")
        return "; ".join(clauses) or "not ready"

    def cells(self, document: str | None) -> tuple[str, ...]:
        """Return it as cells of a table."""
        if self.silent is not None:
            return (self.node, *("-",) * (len(_HEAD) - 1), self.silent)
        drift = f"{self.heals}, last {self.healed}" if self.healed else str(self.heals)
        return (
            self.node,
            self.plane,
            "yes" if self.good(document) else "no",
            self.held or "-",
            self.revision or "-",
            self.since or "-",
            "-" if self.ports is None else f"{self.ports:.0%}",
            drift,
            self.why_not(document) or ("tries the canary" if self.tried else ""),
        )

    def as_data(self, document: str | None) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "node": self.node,
            "heard": self.silent is None,
            "plane": self.plane,
            "inSync": self.good(document),
            "hash": self.held,
            "revision": self.revision,
            "since": self.since,
            "ports": self.ports,
            "heals": self.heals,
            "healed": self.healed,
            "reason": self.why_not(document) or None,
            "tries": self.tried,
        }


def state_of(node: str, told: Mapping[str, Any]) -> NodeState:
    """Return what an agent says, which is the contract of ``status -o json``.

    Raises:
        one of MALFORMED: it is in another form.
    """
    config = told["config"]
    held, newest = config.get("inForce") or {}, config.get("newest") or {}
    fills = [row["used"] / row["of"] for row in told.get("ports") or () if row["of"]]
    healed = told.get("healed") or ()
    tables = [
        (sum(n for name, n in each.items() if name in FAMILIES), each["capacity"])
        for each in told.get("tables") or ()
    ]
    if tracked := told.get("tracked"):
        tables.append((tracked["used"], tracked["of"]))
    counters = told.get("counters") or {}
    return NodeState(
        node,
        plane=_text(told["mode"]) or "-",
        in_force=bool(told.get("inForce", told["inSync"])),
        ready=bool(told.get("ready", told["inSync"])),
        held=_text(held.get("hash")),
        revision=_text(held.get("revision")),
        since=_text(held.get("since")),
        newest=_text(newest.get("hash")),
        accepted=bool(config["accepted"]),
        trouble=tuple(_trouble(told)),
        # Rows are told where something is in use, by agents that can count.
        ports=max(fills, default=0.0) if "ports" in told else None,
        source=str(config.get("source") or ""),
        heals=int(told.get("heals") or 0),
        healed=_text(healed[-1]["at"]) if healed else None,
        failed=int(told.get("failedPasses") or 0),
        # Malformed packets are dropped whatever the document says.
        dropped=sum(
            int(count)
            for counts in counters.values()
            for name, count in counts.items()
            if name.startswith("out_dropped_") and name != "out_dropped_malformed"
        ),
        overridden=len(told.get("overrides") or ()),
        filled=max((used / of for used, of in tables if of), default=None),
    )


def plain(text: str) -> str:
    """Return what a node says as a terminal may be shown it: without its control characters."""
    return "\n".join(
        "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
        for line in text.split("\n")
    )


def _text(value: Any) -> str | None:
    return None if value is None else plain(str(value))


def _trouble(told: Mapping[str, Any]) -> list[str]:
    found = [told.get("failure"), told["config"].get("error"), told.get("contested")]
    found += [f"{f}: {told[f]['error']}" for f in FAMILIES if told[f].get("error")]
    for kind in ("waiting", "leftBehind", "unanswered"):
        found += told.get(kind) or ()
    found += [fact["error"] for fact in told.get("facts") or () if fact.get("error")]
    if overrides := told.get("overrides"):
        found.append(f"{len(overrides)} rules of others decide before ours; see `doctor`")
    if not told["inSync"] and not any(found):
        found.append("the kernel does not hold what the document asks for")
    # A document's error has a line for each problem.
    return [plain(" ".join(str(each).split())) for each in found if each]


def trying(states: Sequence[NodeState], nodes: Collection[str], document: str) -> list[NodeState]:
    """Return nodes of which some are to try a document."""
    return [replace(each, tried=document) if each.node in nodes else each for each in states]


def table(states: Sequence[NodeState], document: str | None, *, head: bool = True) -> list[str]:
    """Return nodes as lines of a table."""
    rows = [(*_HEAD, "")] if head else []
    return aligned([*rows, *(each.cells(document) for each in states)])


def summary(states: Sequence[NodeState], document: str | None, place: str) -> str:
    """Return in one line how many are as they should be; ``place`` is where the document is."""
    good = sum(each.good(document) for each in states)
    silent = sum(each.silent is not None for each in states)
    words = [f"{good} of {len(states)} nodes in sync"]
    words += [f"with {place} ({document})"] if document else []
    return " ".join(words) + (f", of {silent} nothing was heard" if silent else "")


def named(nodes: Sequence[str]) -> str:
    """Return names of nodes in few words."""
    shown = ", ".join(nodes[:_NAMED])
    more = len(nodes) - _NAMED
    return f"{shown} and {more} more" if more > 0 else shown
