"""The agent's metrics, in a registry of their own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client import generate_latest as _generate_latest

from ipmasq_agent.agent.reconcile import Outcomes
from ipmasq_agent.agent.status import Status

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class Metrics:
    """What a pass and a document leave behind in numbers."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.ready = Gauge(
            "ipmasq_agent_ready",
            "1 while the newest document is in force and the kernel matches it.",
            registry=self.registry,
        )
        self.accepted = Gauge(
            "ipmasq_agent_config_accepted",
            "1 while the newest document seen is the one in force.",
            registry=self.registry,
        )
        self.documents = Counter(
            "ipmasq_agent_documents",
            "Documents seen, by whether they could be used.",
            ["result"],
            registry=self.registry,
        )
        self.passes = Counter(
            "ipmasq_agent_passes",
            "Passes over a family's rules, by what they led to.",
            ["family", "result"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "ipmasq_agent_pass_seconds",
            "Duration of a pass over all families.",
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.lag = Histogram(
            "ipmasq_agent_change_seconds",
            "From noticing a changed document until the kernel holds its rules.",
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.backend = Gauge(
            "ipmasq_agent_backend",
            "1 for the backend in use.",
            ["backend"],
            registry=self.registry,
        )
        self.cidrs = Gauge(
            "ipmasq_agent_non_masquerade_cidrs",
            "Entries of the document in force.",
            registry=self.registry,
        )

    def passed(self, outcomes: Outcomes, seconds: float) -> None:
        """Count one pass."""
        self.seconds.observe(seconds)
        for family, outcome in outcomes.items():
            result = "error" if outcome.error else "changed" if outcome.changed else "unchanged"
            self.passes.labels(family.value, result).inc()

    def show(self, status: Status) -> None:
        """Bring the gauges to ``status``."""
        self.ready.set(status.ready)
        self.accepted.set(status.config.accepted)
        self.backend.clear()
        if status.mode is not None:
            self.backend.labels(status.mode).set(1)

    def text(self) -> bytes:
        """Return the exposition format."""
        return _generate_latest(self.registry)
