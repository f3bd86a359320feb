"""Numbers as Prometheus reads them.

Loaded at the first scrape: the client library brings servers, TLS and mail along, 4 MB that a
node which nobody scrapes does not pay.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector
from prometheus_client import generate_latest as _generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from ipmasq_agent.agent.numbers import Histogram, Numbers

CONTENT_TYPE = CONTENT_TYPE_LATEST


class _Numbers(Collector):
    """What there is at one scrape."""

    def __init__(self, numbers: Iterable[Numbers | Histogram]) -> None:
        self._numbers = numbers

    def collect(self) -> Iterator[Metric]:
        """Yield each metric with its samples."""
        for one in self._numbers:
            metric = Metric(one.name, one.about, one.kind)
            for suffix, labels, number in one.samples():
                metric.add_sample(one.name + suffix, labels, number)
            yield metric


def exposed(numbers: Iterable[Numbers | Histogram]) -> bytes:
    """Return numbers, and what is to be said of this process, in the text format."""
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    registry.register(_Numbers(numbers))
    return _generate_latest(registry)
