"""The agent's metrics: what passes and documents leave behind, and what is read at a scrape."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ipmasq_agent import __version__
from ipmasq_agent.agent.numbers import Histogram, Numbers
from ipmasq_agent.agent.reconcile import Outcomes
from ipmasq_agent.agent.status import ConfigStatus, Status
from ipmasq_agent.answers.ports import PortLook
from ipmasq_agent.host import threads
from ipmasq_agent.planes.usage import FlowTable
from ipmasq_agent.policy.addresses import Family

_FULLEST, _NOTABLE = 5, 0.05  # destinations, and the part of their ports from which they count
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class Metrics:
    """What a pass and a document leave behind in numbers."""

    def __init__(self) -> None:
        self.ready = _gauge(
            "ready", "1 while the newest document is in force and the kernel matches it."
        )
        self.accepted = _gauge(
            "config_accepted", "1 while the newest document seen is the one in force."
        )
        self.in_sync = _gauge(
            "in_sync", "1 while the kernel holds what the policy in force asks for."
        )
        self.documents = _counter(
            "documents", "Documents seen, by whether they could be used.", "result"
        )
        self.passes = _counter(
            "passes",
            "Passes over a family's rules, by what they led to.",
            *("family", "result"),
        )
        self.undone = _counter(
            "undone",
            "How often other rules were found in the place of what we had written.",
        )
        self.contested = _gauge(
            "contested", "1 while somebody undoes what we write, again and again."
        )
        self.seconds = Histogram(
            "ipmasq_agent_pass_seconds", "Duration of a pass over all families.", _BUCKETS
        )
        self.lag = Histogram(
            "ipmasq_agent_change_seconds",
            "From noticing a changed document until the kernel holds its rules.",
            _BUCKETS,
        )
        self.backend = _gauge("backend", "1 for the backend in use.", "backend")
        self.overridden = _gauge(
            "overridden_ranges",
            "Ranges of destinations about which rules of others decide otherwise than the policy.",
            "family",
        )
        self.cidrs = _gauge("non_masquerade_cidrs", "Entries of the document in force.")
        self.drift = _counter(
            "drift",
            "How often a pass undid what others had done to what is ours: removed, added, replaced "
            "(both), or other where rules were moved or very many are concerned.",
            *("family", "cause"),
        )
        self.success = _gauge(
            "last_success_timestamp_seconds", "When a pass last went well; 0 before the first."
        )
        self.change = _gauge(
            "last_change_timestamp_seconds", "When a pass last changed the kernel; 0 before."
        )
        # A counter that appears with its first event is no increase to Prometheus.
        for result in ("accepted", "refused"):
            self.documents.set(0, result)
        for family in Family:
            for result in ("changed", "unchanged", "healed", "error"):
                self.passes.set(0, family.value, result)
            for cause in ("removed", "added", "replaced", "other"):
                self.drift.set(0, family.value, cause)

    def passed(self, outcomes: Outcomes, seconds: float) -> None:
        """Count one pass."""
        self.seconds.observe(seconds)
        for family, outcome in outcomes.items():
            result = "error" if outcome.error else "changed" if outcome.change else "unchanged"
            result = "healed" if outcome.healed else result
            self.passes.inc(1, family.value, result)
            if outcome.healed:
                self.drift.inc(1, family.value, outcome.healed.cause)
        now = time.time()
        if not any(outcome.error for outcome in outcomes.values()):
            self.success.set(now)
        if any(outcome.change for outcome in outcomes.values()):
            self.change.set(now)

    def all(self, status: Status) -> list[Numbers | Histogram]:
        """Return all of it, in step with what ``status`` says at this moment."""
        self.ready.set(status.ready)
        self.accepted.set(status.config.accepted)
        self.in_sync.set(status.in_sync)
        self.contested.set(status.look.contested is not None)
        for family in status.look.families:
            ranges = sum(item.count for item in status.overridden if item.family is family)
            self.overridden.set(ranges, family.value)
        self.backend.clear()
        if status.look.mode is not None:
            self.backend.set(1, status.look.mode)
        return [
            *vars(self).values(),
            *_of_document(status.config),
            _of_threads(),
            *_counted(status),
            *_in_use(status.usage.tables),
            *_ports(status.ports),
        ]


def _gauge(name: str, about: str, *labels: str) -> Numbers:
    return Numbers("gauge", f"ipmasq_agent_{name}", about, labels)


def _counter(name: str, about: str, *labels: str) -> Numbers:
    return Numbers("counter", f"ipmasq_agent_{name}", about, labels)


def _of_threads() -> Numbers:
    failures = _counter(
        "thread_failures",
        "How often something that nobody foresaw interrupted a thread, which then went on.",
        "thread",
    )
    for thread, count in threads.failures().items():
        failures.set(count, thread)
    return failures


def _of_document(config: ConfigStatus) -> list[Numbers]:
    """Return which document is in force, which is the newest seen, and since when."""
    build = _gauge("build_info", "1 for the version of this agent.", "version")
    build.set(1, __version__)
    info = _gauge(
        "document_info",
        "1 for the document in force and for the newest one seen, by hash of the content.",
        *("state", "hash", "revision"),
    )
    since = _gauge(
        "document_timestamp_seconds",
        "Since when a document is in force, or the newest was seen; 0 before the first.",
        "state",
    )
    for state, sighting in (("in_force", config.in_force), ("newest", config.newest)):
        since.set(sighting.since if sighting else 0.0, state)
        if sighting:
            info.set(1, state, sighting.digest, sighting.revision)
    age = _gauge(
        "source_age_seconds",
        "How long ago the API gave a sign of life; 0 where the document is a file.",
    )
    age.set(config.age or 0.0)
    return [build, info, since, age]


def _counted(status: Status) -> list[Numbers]:
    """Return packets and flows by what became of them, as far as the data plane counts them."""
    labels = ("family", "outcome")
    packets = _counter(
        "packets", "Packets, by what became of them; of eBPF, which sees each of them.", *labels
    )
    flows = _counter(
        "flows",
        "New flows by what was decided: of eBPF since its maps were made, with how many were "
        "removed from its tables; of rules since the first scrape.",
        *labels,
    )
    for family in status.look.families:
        for outcome in ("translated", "kept"):
            flows.set(0, family.value, outcome)
    for (family, outcome), count in status.counters.items():
        kind, _, rest = outcome.partition("_")
        if kind == "flows":
            flows.set(count, family.value, rest)
        else:
            packets.set(count, family.value, outcome)
    return [packets, flows]


def _in_use(tables: Sequence[FlowTable]) -> list[Numbers]:
    """Return how full a data plane's own tables are."""
    held = _gauge(
        "table_flows", "Flows in a table of the data plane, at the latest sweep.", "table", "family"
    )
    capacity = _gauge(
        "table_capacity", "How many flows a table of the data plane can hold.", "table"
    )
    for table in tables:
        capacity.set(table.capacity, table.name)
        for family, count in table.held.items():
            held.set(count, table.name, family.value)
    return [held, capacity]


def _ports(look: PortLook) -> list[Numbers]:
    """Return how many source ports are in use toward the few fullest destinations.

    Destinations come and go: those of which hardly a port is in use are none of a dashboard's.
    """
    labels = ("destination", "protocol", "address", "ports")
    used = _gauge(
        "ports_used", "Source ports in use toward one of the fullest destinations.", *labels
    )
    size = _gauge("ports_available", "How many there are, of those of ports_used.", *labels)
    fill = _gauge(
        "ports_used_ratio", "Which part is in use of them where it is the largest, 0 to 1."
    )
    fill.set(max((row.fill for row in look.rows), default=0.0))
    for row in look.rows[:_FULLEST]:
        if row.fill >= _NOTABLE:
            used.set(row.used, *row.labels)
            size.set(row.of, *row.labels)
    tracked = _gauge("conntrack_entries", "Connections that are tracked here.")
    most = _gauge(
        "conntrack_entries_limit", "How many may be: packets of new ones are dropped past that."
    )
    for number, one in zip(look.tracked or (0, 0), (tracked, most), strict=True):
        one.set(number)
    return [used, size, fill, tracked, most]
