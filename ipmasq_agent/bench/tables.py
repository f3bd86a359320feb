"""Every figure, in tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ipmasq_agent.bench.results import LIMIT, REFERENCE, Measure
from ipmasq_agent.bench.statistics import Statistics
from ipmasq_agent.bench.wording import Scale

_RATIOS = (f"of {REFERENCE}", f"of {LIMIT}")
_HEAD = ("mode", "CIDRs", "median", "interval", *_RATIOS, "tie with", "rounds (coverage)")


@dataclass(frozen=True, slots=True)
class FigureTable:
    """A title, and rows of cells.

    Attributes:
        head: titles of the columns.
        rows: as many cells each.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tables(statistics: Statistics) -> Iterator[FigureTable]:
    """Yield a table a measure."""
    for measure in statistics.measures.values():
        rows = [
            _row(statistics, measure, mode, cidrs)
            for mode, cidrs in _rows_of(statistics, measure.name)
        ]
        # A column without any figure is left out, as are ratios where no NAT has no value.
        kept = [
            column
            for column, title in enumerate(_HEAD)
            if title not in _RATIOS or any(row[column] != "-" for row in rows)
        ]
        better = "more is better" if measure.more_is_better else "less is better"
        yield FigureTable(
            f"{measure.title} ({better})",
            tuple(_HEAD[column] for column in kept),
            tuple(tuple(row[column] for column in kept) for row in rows),
        )


def _rows_of(statistics: Statistics, measure: str) -> Iterator[tuple[str, int]]:
    """Yield where there should be a figure, by number of CIDRs: those without NAT first."""
    bare = [mode.name for mode in statistics.modes.values() if mode.backend is None]
    if any(statistics.value(measure, mode, 0) for mode in bare):
        yield from ((mode, 0) for mode in bare)
    for cidrs in statistics.sizes(measure):
        able = (mode for mode in statistics.modes if mode not in bare)
        yield from ((mode, cidrs) for mode in able if statistics.takes_part(measure, mode))


def _row(statistics: Statistics, measure: Measure, mode: str, cidrs: int) -> tuple[str, ...]:
    found = statistics.value(measure.name, mode, cidrs)
    scale, policy = Scale(measure), f"{cidrs:,}" if cidrs else "-"
    if found is None:
        reason = statistics.reason(measure.name, mode, cidrs)
        return mode, policy, "-", reason, "-", "-", "-", f"0 of {statistics.results.rounds}"
    return (
        mode,
        policy,
        scale.median(found),
        scale.interval(found),
        _ratio(statistics, measure, mode, cidrs, REFERENCE),
        _ratio(statistics, measure, mode, cidrs, LIMIT),
        _ties(statistics, measure, mode, cidrs),
        f"{found.count} of {statistics.results.rounds} ({100 * found.coverage:.0f} %)",
    )


def _ratio(statistics: Statistics, measure: Measure, mode: str, cidrs: int, to: str) -> str:
    found = statistics.ratio(measure.name, mode, cidrs, to)
    if found is None or mode == to:
        return "-"
    scale = Scale(measure, to)
    return f"{scale.median(found)} ({scale.interval(found)})"


def _ties(statistics: Statistics, measure: Measure, mode: str, cidrs: int) -> str:
    ranking = statistics.ranking(measure.name, cidrs)
    if mode not in ranking.order:
        return "-"
    if not ranking.summaries[mode].enough:
        return "too few rounds to tell"
    ties = ranking.ties(mode)
    if not ties or not cidrs:  # a mode without NAT would have to tie with one for each size
        return "-"
    if len(ties) == len(ranking.order) - 1 and len(ties) > 1:
        return "all others"
    return ", ".join(other for other in statistics.modes if other in ties)
