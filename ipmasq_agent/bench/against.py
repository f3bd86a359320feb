"""What became of the figures since an earlier benchmark: slower, faster, or within the noise.

Ratios to no NAT in the same round are compared, for they travel from machine to machine;
values only where no NAT has none, and only on a machine of the same processor.

Two intervals that do not overlap are not enough to fail somebody's change. There are
hundreds of pairs, and by chance alone one in 250 is apart in the bad direction with five
rounds, one in 20 with three; and a machine differs from day to day by more than from round to
round. So there has to be a gap as wide as the intervals are, which noise of a normal
distribution makes of one pair in 24,000 with five rounds and of one in 150 with three; and a
change of five percent at least. What is apart by less is told, and fails nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

from ipmasq_agent.bench.results import LIMIT, REFERENCE, Measure, Results
from ipmasq_agent.bench.statistics import ENOUGH, Statistics, Summary
from ipmasq_agent.bench.wording import Scale, in_words, with_cidrs
from ipmasq_agent.errors import BenchError

_DRIFT = 0.05  # as a share; from day to day, without any cause in what is measured
_PROCESSOR = "processor"
_TELLING = ("kernel", _PROCESSOR, "offloads")  # of the machine, what changes figures
_SHOWN = 12  # of what is on one side only


class Trend(Enum):
    """What became of a figure."""

    WORSE = "worse"
    BETTER = "better"
    MOVED = "apart, but by no more than chance or another day does"
    SAME = "within the noise"
    UNKNOWN = "too few rounds to tell"


@dataclass(frozen=True, slots=True)
class Finding:
    """One figure, then and now.

    Attributes:
        where: the mode and the number of CIDRs, in words.
        to: the mode that the figures are ratios to; None where they are values.
    """

    measure: Measure
    where: str
    to: str | None
    before: Summary
    after: Summary
    trend: Trend


@dataclass(frozen=True, slots=True)
class ResultsComparison:
    """The answer.

    Attributes:
        findings: of what both sides have.
        gone: measure, mode and number of CIDRs that only the earlier one has, in words.
        new: those that only the later one has.
        notes: what to know when reading the answer.
    """

    findings: tuple[Finding, ...]
    gone: tuple[str, ...]
    new: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def regressed(self) -> bool:
        """Whether anything is worse, beyond the noise."""
        return bool(self.of(Trend.WORSE))

    def of(self, trend: Trend) -> list[Finding]:
        """Return the findings of one kind."""
        return [finding for finding in self.findings if finding.trend is trend]


def compare(old: Results, new: Results) -> ResultsComparison:
    """Return what became of the figures.

    Raises:
        BenchError: the two have nothing in common.
    """
    if old.family != new.family:
        raise BenchError(
            f"one benchmark is of {old.family}, the other of {new.family}",
            remedy="compare two of the same family",
        )
    before, after = Statistics(old), Statistics(new)
    there, here = dict.fromkeys(before.cells()), dict.fromkeys(after.cells())
    if not there.keys() & here.keys():
        raise BenchError("the two benchmarks have no figure in common")
    notes = list(_notes(old, new))
    findings, left_out = [], set()
    for cell in here:
        pair = _pair(before, after, cell)
        if pair is None or cell[1] == pair[0]:
            continue
        if pair[0] is None and old.machine.get(_PROCESSOR) != new.machine.get(_PROCESSOR):
            left_out.add(cell[0])
            continue
        measure, where = after.measures[cell[0]], with_cidrs(after.modes[cell[1]], cell[2])
        findings.append(Finding(measure, where, *pair, _trend(*pair[1:], measure)))
    if left_out:
        names = ", ".join(sorted(left_out))
        notes.append(f"without a ratio, figures of other processors are not compared: {names}")
    return ResultsComparison(
        tuple(findings),
        tuple(_where(before, cell) for cell in there if cell not in here),
        tuple(_where(after, cell) for cell in here if cell not in there),
        tuple(notes),
    )


def describe(comparison: ResultsComparison) -> Iterator[str]:
    """Yield the answer in lines, what matters first."""
    worse, better = comparison.of(Trend.WORSE), comparison.of(Trend.BETTER)
    for trend, findings in (("Worse", worse), ("Better", better)):
        for finding in findings:
            yield f"{trend}: {_told(finding)}"
    unknown = comparison.of(Trend.UNKNOWN)
    same = comparison.of(Trend.SAME)
    if unknown:
        yield (
            f"{len(unknown)} figures cannot be told apart: that takes {in_words(ENOUGH)} rounds "
            "on both sides"
        )
    if same:
        yield f"{len(same)} figures are the same within the noise: their intervals overlap"
    for finding in comparison.of(Trend.MOVED):
        yield f"Moved, by no more than chance or another day does: {_told(finding)}"
    if not worse and not unknown:
        yield "Nothing is worse than before"
    yield from _listed("No longer measured", comparison.gone)
    yield from _listed("Measured for the first time", comparison.new)
    yield from (f"Note: {note}" for note in comparison.notes)


def _notes(old: Results, new: Results) -> Iterator[str]:
    for what in _TELLING:
        sides = [results.machine.get(what, "unknown") for results in (old, new)]
        if sides[0] != sides[1]:
            yield f"the {what} was {sides[0]}, now it is {sides[1]}; ratios compare nevertheless"
    for side, results in (("the earlier", old), ("this", new)):
        if results.stopped:
            yield f"{side} benchmark stopped early ({results.stopped})"


def _pair(
    before: Statistics, after: Statistics, cell: tuple[str, str, int]
) -> tuple[str | None, Summary, Summary] | None:
    """Return what both sides have: ratios, and to what, or else values; None for neither."""
    if cell[0] not in before.measures:
        return None
    for to in (REFERENCE, LIMIT, None):
        then, now = (
            side.value(*cell) if to is None else side.ratio(*cell, to) for side in (before, after)
        )
        if then and now:
            return to, then, now
    return None


def _trend(then: Summary, now: Summary, measure: Measure) -> Trend:
    if not (then.enough and now.enough):
        return Trend.UNKNOWN
    gap = max(now.low - then.high, then.low - now.high)
    width = ((then.high - then.low) + (now.high - now.low)) / 2
    change = now.median - then.median
    if gap <= 0:
        return Trend.SAME
    if gap < width or abs(change) < _DRIFT * abs(then.median):
        return Trend.MOVED
    return Trend.BETTER if (change > 0) == measure.more_is_better else Trend.WORSE


def _told(finding: Finding) -> str:
    scale = Scale(finding.measure, finding.to)
    sides = [f"{scale.median(s)} ({scale.interval(s)})" for s in (finding.before, finding.after)]
    of = f", of {finding.to}" if finding.to else ""
    return f"{finding.measure.title}, {finding.where}: {sides[0]}, now {sides[1]}{of}"


def _where(statistics: Statistics, cell: tuple[str, str, int]) -> str:
    measure, mode, cidrs = cell
    return f"{measure} of {with_cidrs(statistics.modes[mode], cidrs)}"


def _listed(what: str, cells: Iterable[str]) -> Iterator[str]:
    names = list(cells)
    if names:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        yield f"{what}: {', '.join(names[:_SHOWN])}{more}"
