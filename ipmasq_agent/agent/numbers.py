"""What is counted: by one thread, and read by others."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

Sample = tuple[str, dict[str, str], float]
"""One number of a metric: what follows its name, its labels, and how much."""


class Numbers:
    """A gauge or a counter: a number for each combination of its labels' values.

    Args:
        kind: ``gauge`` or ``counter``.
        name: as Prometheus has it, without the ``_total`` of a counter.
        labels: their names; without any the number is 0 from the start.
    """

    def __init__(self, kind: str, name: str, about: str, labels: Sequence[str] = ()) -> None:
        self.kind, self.name, self.about = kind, name, about
        self.labels = labels
        self._numbers: dict[Sequence[str], float] = {}
        if not labels:
            self.set(0.0)

    def set(self, number: float, *labels: str) -> None:
        """Let the number be another one."""
        self._numbers[labels] = float(number)

    def inc(self, amount: float = 1.0, *labels: str) -> None:
        """Add to the number."""
        self.set(self._numbers.get(labels, 0.0) + amount, *labels)

    def clear(self) -> None:
        """Forget every number."""
        self._numbers.clear()

    def samples(self) -> Iterator[Sample]:
        """Yield what there is."""
        suffix = "_total" if self.kind == "counter" else ""
        for labels, number in list(self._numbers.items()):
            yield suffix, dict(zip(self.labels, labels, strict=True)), number


class Histogram:
    """How many observations were at most as large as each bound, and their sum."""

    kind = "histogram"
    labels: Sequence[str] = ()

    def __init__(self, name: str, about: str, bounds: Sequence[float]) -> None:
        self.name, self.about, self._bounds = name, about, bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, number: float) -> None:
        """Count an observation."""
        self._counts[bisect_left(self._bounds, number)] += 1
        self._sum += number

    def samples(self) -> Iterator[Sample]:
        """Yield what there is; each bucket counts those before it as well."""
        total = 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), list(self._counts), strict=True):
            total += count
            yield "_bucket", {"le": bound}, total
        yield "_count", {}, total
        yield "_sum", {}, self._sum
