"""Numbers in the text format that Prometheus reads, version 0.0.4.

https://prometheus.io/docs/instrumenting/exposition_formats/. The format is made here, as
the client library brings servers and TLS along, 4 MB of every node's memory. Numbers are
written by one thread and read by others.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metric:
    """A gauge or a counter: a number for each combination of its labels' values.

    Args:
        kind: ``gauge`` or ``counter``.
        name: of a counter with ``_total`` at its end.
        about: what is counted, in words.
        labels: their names; without any the number is 0 from the start.
        dated: tell as well since when each number is counted.
    """

    def __init__(
        self, kind: str, name: str, about: str, labels: Sequence[str] = (), *, dated: bool = False
    ) -> None:
        self._kind, self._name, self._about, self._labels = kind, name, about, labels
        self._numbers: dict[Sequence[str], float] = {}
        self._since: dict[Sequence[str], float] | None = {} if dated else None
        if not labels:
            self.set(0.0)

    def set(self, number: float, *labels: str) -> None:
        """Let the number be another one."""
        if self._since is not None:
            self._since.setdefault(labels, time.time())
        self._numbers[labels] = float(number)

    def inc(self, amount: float = 1.0, *labels: str) -> None:
        """Add to the number."""
        self.set(self._numbers.get(labels, 0.0) + amount, *labels)

    def clear(self) -> None:
        """Forget every number."""
        self._numbers.clear()

    def lines(self) -> Iterator[str]:
        """Yield what Prometheus reads."""
        yield from _heading(self._kind, self._name, self._about)
        for labels, number in list(self._numbers.items()):
            yield _sample(self._name, zip(self._labels, labels, strict=True), number)
        if self._since is not None:
            name = self._name.removesuffix("_total") + "_created"
            yield from _heading("gauge", name, self._about)
            for labels, number in list(self._since.items()):
                yield _sample(name, zip(self._labels, labels, strict=True), number)


class Histogram:
    """How many observations were at most as large as each bound, and their sum."""

    def __init__(self, name: str, about: str, bounds: Sequence[float]) -> None:
        self._name, self._about, self._bounds = name, about, bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._since = time.time()

    def observe(self, number: float) -> None:
        """Count an observation."""
        self._counts[bisect_left(self._bounds, number)] += 1
        self._sum += number

    def lines(self) -> Iterator[str]:
        """Yield what Prometheus reads."""
        yield from _heading("histogram", self._name, self._about)
        total = 0
        for bound, count in zip((*self._bounds, float("inf")), list(self._counts), strict=True):
            total += count
            least = "+Inf" if bound == float("inf") else str(bound)
            yield _sample(f"{self._name}_bucket", [("le", least)], total)
        yield _sample(f"{self._name}_count", (), total)
        yield _sample(f"{self._name}_sum", (), self._sum)
        yield from _heading("gauge", f"{self._name}_created", self._about)
        yield _sample(f"{self._name}_created", (), self._since)


def _heading(kind: str, name: str, about: str) -> Iterator[str]:
    yield f"# HELP {name} {about}"
    yield f"# TYPE {name} {kind}"


def _sample(name: str, labels: Iterable[tuple[str, str]], number: float) -> str:
    pairs = ",".join(f'{label}="{_escaped(value)}"' for label, value in labels)
    return f"{name}{{{pairs}}} {float(number)}" if pairs else f"{name} {float(number)}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
