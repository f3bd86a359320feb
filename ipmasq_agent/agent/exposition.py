"""Numbers as Prometheus reads them.

Loaded at the first scrape: the client library brings servers, TLS and mail along, 4 MB that a
node which nobody scrapes does not pay.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from ipmasq_agent.agent.numbers import Histogram, Numbers


class _Numbers(Collector):
    """What there is at one scrape."""

    def __init__(self, numbers: Iterable[Numbers | Histogram]) -> None:
        self._numbers = numbers

    def collect(self) -> Iterator[Metric]:
        """Yield each metric with its samples."""
        for one in self._numbers:
            # What nobody counts here: a name alone is no series.
            if not any(True for _ in one.samples()):
                continue
            metric = Metric(one.name, one.about, one.kind)
            for suffix, labels, number in one.samples():
                metric.add_sample(one.name + suffix, labels, number)
            yield metric


def exposed(numbers: Iterable[Numbers | Histogram], accept: str = "") -> tuple[str, bytes]:
    """Return numbers, and what is to be said of this process: content type and body.

    Args:
        numbers: the metrics.
        accept: what the reader takes, as HTTP's header says; OpenMetrics, else the text format.
    """
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    registry.register(_Numbers(numbers))
    encode, kind = choose_encoder(accept)
    return kind, encode(registry)
