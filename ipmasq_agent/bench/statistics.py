"""What single runs say together: medians, how sure they are, and who ties with whom.

Nothing is assumed of how values are distributed: the interval of a median is a pair of order
statistics, and its coverage is what the binomial distribution says (Conover, *Practical
Nonparametric Statistics*, 3.2). Modes are compared by ratios within one round, so that what
slows the whole machine for a while slows both.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ipmasq_agent.bench.results import LIMIT, LOADING, REFERENCE, Measure, Mode, Results

ENOUGH = 3
"""Rounds below which nothing is told apart."""
COVERAGE = 0.90
"""Of an interval, where there are rounds enough for it: five."""
HEADLINES = ("flows", "connections")
"""Measures that come first."""
_HEADLINE_AT = 64  # CIDRs, about as many as the policy of a real cluster has
_STEADY = "bytes"  # a unit that a faster machine does not change: a ratio would hide the figure


@dataclass(frozen=True, slots=True)
class Summary:
    """The median of some rounds, and an interval for it.

    Attributes:
        low: lower end of the interval.
        high: its upper end.
        coverage: how probably such an interval holds the true median; 0 with one round.
        count: rounds that gave a value.
    """

    median: float
    low: float
    high: float
    coverage: float
    count: int

    @property
    def enough(self) -> bool:
        """Whether it can be told apart from anything."""
        return self.count >= ENOUGH

    def ties(self, other: Summary) -> bool:
        """Return whether both are sure enough to be told apart, and yet their intervals overlap."""
        overlap = self.low <= other.high and other.low <= self.high
        return self.enough and other.enough and overlap


@dataclass(frozen=True, slots=True)
class Ranking:
    """Modes by what they reach in one measure with one number of CIDRs.

    Attributes:
        to: the mode to which the summaries are ratios; None where they are the values.
        order: modes with a summary, the best median first.
        summaries: by mode.
    """

    to: str | None
    order: tuple[str, ...]
    summaries: Mapping[str, Summary]

    @property
    def first(self) -> tuple[str, ...]:
        """The best mode, and each that ties with it; none where too few rounds tell."""
        return self._end(self.order)

    @property
    def last(self) -> tuple[str, ...]:
        """The worst mode, and each that ties with it."""
        return self._end(self.order[::-1])

    def ties(self, mode: str) -> tuple[str, ...]:
        """Return every other mode whose interval overlaps; that is no transitive relation."""
        own = self.summaries[mode]
        return tuple(
            other for other in self.order if other != mode and own.ties(self.summaries[other])
        )

    def _end(self, order: Sequence[str]) -> tuple[str, ...]:
        sure = next((mode for mode in order if self.summaries[mode].enough), None)
        return (sure, *self.ties(sure)) if sure else ()


class Statistics:
    """Summaries of what a benchmark found, looked up by measure, mode and number of CIDRs.

    Modes without a backend have no CIDRs; they answer for every number.
    """

    def __init__(self, results: Results) -> None:
        self.results = results
        self.modes: dict[str, Mode] = {mode.name: mode for mode in results.modes}
        self.measures: dict[str, Measure] = {measure.name: measure for measure in results.measures}
        self._values: dict[tuple[str, str, int], dict[int, float]] = {}
        # To the reference, where a mode took turns with it within one run.
        self._shares: dict[tuple[str, str, int], dict[int, float]] = {}
        self._problems: dict[tuple[str, str, int], list[str]] = {}
        for run in results.runs:
            key = (run.measure, run.mode, run.cidrs)
            if run.value is None or run.problem is not None:
                said = f"round {run.round}: {run.problem or 'no value'}"
                self._problems.setdefault(key, []).append(said)
            else:
                self._values.setdefault(key, {})[run.round] = run.value
                if run.ratio is not None:
                    self._shares.setdefault(key, {})[run.round] = run.ratio

    def value(self, measure: str, mode: str, cidrs: int) -> Summary | None:
        """Return the summary of the values themselves; None where no round gave one."""
        return summary(self._values.get(self._key(measure, mode, cidrs), {}).values())

    def ratio(self, measure: str, mode: str, cidrs: int, to: str = REFERENCE) -> Summary | None:
        """Return the summary of value / value of another mode in the same round."""
        if self.measures[measure].unit == _STEADY:
            return None
        return self._paired(self._key(measure, mode, cidrs), self._key(measure, to, cidrs))

    def scaling(self, measure: str, mode: str, few: int, many: int) -> Summary | None:
        """Return the summary of value with many CIDRs / value with few in the same round."""
        return self._paired(self._key(measure, mode, many), self._key(measure, mode, few))

    def cells(self) -> list[tuple[str, str, int]]:
        """Return measure, mode and number of CIDRs of each value, in the order of the runs."""
        return list(self._values)

    def sizes(self, measure: str, mode: str | None = None) -> list[int]:
        """Return the numbers of CIDRs for which there are runs, failed ones too."""
        return sorted(
            {
                cidrs
                for of, name, cidrs in (*self._values, *self._problems)
                if of == measure and cidrs and name == (mode or name)
            }
        )

    def takes_part(self, measure: str, mode: str) -> bool:
        """Return whether a mode was measured so, or should have been: it has no other runs."""
        runs = {of for of, name, _ in (*self._values, *self._problems) if name == mode}
        return measure in runs or runs <= {LOADING}

    def headline_size(self, measure: str) -> int | None:
        """Return the number of CIDRs that stands for a measure; None where it has no runs."""
        sizes = self.sizes(measure)
        return min(sizes, key=lambda size: abs(size - _HEADLINE_AT), default=None)

    def basis(self, measure: str) -> str | None:
        """Return the mode to which ratios of a measure are told; None: values are."""
        for to in (REFERENCE, LIMIT):
            if to in self.modes and self.ratio(measure, to, 0, to):
                return to
        return None

    def ranking(self, measure: str, cidrs: int, modes: Iterable[str] | None = None) -> Ranking:
        """Return who is best.

        Args:
            measure: its name.
            cidrs: their number.
            modes: that take part; without, all.
        """
        to = self.basis(measure)
        found = {}
        for mode in self.modes if modes is None else modes:
            if to is None:
                of_mode = self.value(measure, mode, cidrs)
            else:
                of_mode = self.ratio(measure, mode, cidrs, to)
            if of_mode is not None:
                found[mode] = of_mode
        sign = -1 if self.measures[measure].more_is_better else 1
        return Ranking(to, tuple(sorted(found, key=lambda m: sign * found[m].median)), found)

    def contenders(self) -> tuple[str, ...]:
        """Return the modes that masquerade on a node as nodes are: with connection tracking.

        Where none such was measured, all that masquerade.
        """
        able = [mode for mode in self.modes.values() if mode.backend is not None]
        return tuple(mode.name for mode in [m for m in able if m.tracking] or able)

    def reason(self, measure: str, mode: str, cidrs: int) -> str:
        """Return why a mode has no value, in a few words or the sentence of the run."""
        key = self._key(measure, mode, cidrs)
        # A turn whose policy was not loaded says so once, and has nothing else.
        failed = self._problems.get(key) or self._problems.get((LOADING, *key[1:]))
        if failed:
            return failed[0]
        for one in self.results.equality:
            if (one.mode, one.cidrs) == key[1:] and one.wrong:
                return "it decides otherwise than the document says"
        return "stopped before" if self.results.stopped else "not measured"

    def _key(self, measure: str, mode: str, cidrs: int) -> tuple[str, str, int]:
        bare = mode in self.modes and self.modes[mode].backend is None
        return measure, mode, 0 if bare else cidrs

    def _paired(self, of: tuple[str, str, int], to: tuple[str, str, int]) -> Summary | None:
        # Shares of the same thing, where both are known, say more than values that were
        # measured minutes apart.
        kind = self._shares if of in self._shares and to in self._shares else self._values
        over, under = kind.get(of, {}), kind.get(to, {})
        ratios = [over[number] / under[number] for number in over if under.get(number, 0) > 0]
        return summary(ratios)


def summary(values: Iterable[float]) -> Summary | None:
    """Return median and interval; None of no values at all."""
    ordered = sorted(values)
    if not ordered:
        return None
    count = len(ordered)
    rank = _rank(count)
    return Summary(
        statistics.median(ordered),
        ordered[rank - 1],
        ordered[count - rank],
        coverage(count, rank),
        count,
    )


def coverage(count: int, rank: int) -> float:
    """Return how probably the true median is within the rank-th values from either end.

    It is below the rank-th of ``count`` values where fewer than ``rank`` of them are below
    it, each with a probability of one half.
    """
    outside = sum(math.comb(count, below) for below in range(rank)) / (1 << count)
    return 1 - 2 * outside


def _rank(count: int) -> int:
    """Return which value from either end makes the narrowest interval that covers enough.

    With too few values for that it is the first, and the coverage says how little it is.
    """
    ranks = range(1, count // 2 + 1)
    return max((rank for rank in ranks if coverage(count, rank) >= COVERAGE), default=1)
