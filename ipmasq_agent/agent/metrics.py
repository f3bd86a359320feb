"""The agent's metrics, in a registry of their own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client import generate_latest as _generate_latest
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from ipmasq_agent.agent.reconcile import Outcomes
from ipmasq_agent.agent.status import Status
from ipmasq_agent.errors import foreseen
from ipmasq_agent.logs import event
from ipmasq_agent.policy.addresses import Family

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class _Counted(Collector):
    """The counters of a data plane that has its own."""

    def __init__(self, read: Callable[[], Mapping[tuple[Family, str], int]]) -> None:
        self._read = read

    def describe(self) -> list[Metric]:
        """Return nothing: what there is depends on the data plane."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield packets and flows by what became of them."""
        packets = CounterMetricFamily(
            "ipmasq_agent_packets", "Packets, by what became of them.", labels=["family", "outcome"]
        )
        flows = CounterMetricFamily(
            "ipmasq_agent_flows", "New flows, by what was decided.", labels=["family", "outcome"]
        )
        try:
            counted = self._read()
        except Exception as error:
            told = foreseen(error, "reading counters")
            event(logging.WARNING, "counters cannot be read", error=str(told))
            return
        for (family, outcome), count in counted.items():
            kind, _, rest = outcome.partition("_")
            if kind == "flows":
                flows.add_metric([family.value, rest], count)
            else:
                packets.add_metric([family.value, outcome], count)
        if counted:
            yield packets
            yield flows


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
        self.undone = Counter(
            "ipmasq_agent_undone",
            "How often other rules were found in the place of what we had written.",
            registry=self.registry,
        )
        self.contested = Gauge(
            "ipmasq_agent_contested",
            "1 while somebody undoes what we write, again and again.",
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
        self.overridden = Gauge(
            "ipmasq_agent_overridden_ranges",
            "Ranges of destinations about which rules of others decide otherwise than the policy.",
            ["family"],
            registry=self.registry,
        )
        self.cidrs = Gauge(
            "ipmasq_agent_non_masquerade_cidrs",
            "Entries of the document in force.",
            registry=self.registry,
        )

    def count_packets(self, read: Callable[[], Mapping[tuple[Family, str], int]]) -> None:
        """Show what the data plane counts by itself, read at each scrape.

        Args:
            read: family and outcome → how many packets, or for outcomes that begin with
                ``flows_`` how many flows.
        """
        self.registry.register(_Counted(read))

    def passed(self, outcomes: Outcomes, seconds: float) -> None:
        """Count one pass."""
        self.seconds.observe(seconds)
        for family, outcome in outcomes.items():
            result = "error" if outcome.error else "changed" if outcome.changed else "unchanged"
            self.passes.labels(family.value, result).inc()

    def _show(self, status: Status) -> None:
        self.ready.set(status.ready)
        self.accepted.set(status.config.accepted)
        self.contested.set(status.contested is not None)
        for family in status.families:
            ranges = sum(item.count for item in status.overridden if item.family is family)
            self.overridden.labels(family.value).set(ranges)
        self.backend.clear()
        if status.mode is not None:
            self.backend.labels(status.mode).set(1)

    def text(self, status: Status) -> bytes:
        """Return the exposition format, in step with what ``status`` says at this moment."""
        self._show(status)
        return _generate_latest(self.registry)
