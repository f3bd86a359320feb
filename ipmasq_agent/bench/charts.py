"""Which plots there are, in the order in which one looks at them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ipmasq_agent.bench import bars, lines
from ipmasq_agent.bench.results import Measure
from ipmasq_agent.bench.statistics import HEADLINES, Statistics, Summary
from ipmasq_agent.bench.wording import NO_NAT, told, told_span

_SIZES_OF_A_LINE = 3


@dataclass(frozen=True, slots=True)
class Chart:
    """A plot.

    Attributes:
        name: of its file, without what comes after the dot.
        alt: the same in words, for who does not see it.
        headline: it belongs to those that are looked at first.
        png: the picture.
    """

    name: str
    alt: str
    headline: bool
    png: bytes


def charts(statistics: Statistics) -> Iterator[Chart]:
    """Draw all that the results are good for.

    Raises:
        MissingTool: matplotlib is not installed.
    """
    measures = sorted(statistics.measures.values(), key=lambda one: one.name not in HEADLINES)
    for measure in measures:
        cidrs = statistics.headline_size(measure.name)
        if cidrs is not None:
            yield _bars(statistics, measure, cidrs)
    for measure in measures:
        if len(statistics.sizes(measure.name)) >= _SIZES_OF_A_LINE:
            yield _lines(statistics, measure)


def _bars(statistics: Statistics, measure: Measure, cidrs: int) -> Chart:
    to = statistics.basis(measure.name)
    shown = bars.rows(statistics, measure, cidrs)
    found = [row.found for row in shown if row.found]
    scale = f"{cidrs:,} CIDRs; {_scale(to, measure, 'bar')}"
    titles = (measure.title, scale, _how_sure(found, "line"))
    said = []
    for row in shown:
        interval = f" ({told_span(row.found, to, measure)})" if row.found else ""
        said.append(f"{row.mode}: {row.value}{interval}{', ' if row.note else ''}{row.note}")
    return Chart(
        f"{measure.name}-{cidrs}",
        f"{measure.title}. {titles[1]}. {'; '.join(said)}.",
        measure.name in HEADLINES,
        bars.draw(shown, to, _untracked(statistics), titles),
    )


def _lines(statistics: Statistics, measure: Measure) -> Chart:
    to, sizes = statistics.basis(measure.name), statistics.sizes(measure.name)
    shown = lines.points(statistics, measure)
    found = [one for of_mode in shown.values() for one in of_mode.values()]
    scale = f"by CIDRs; {_scale(to, measure, 'line')}"
    titles = (measure.title, scale, _how_sure(found, "band"))
    said = [
        f"{mode}: {told(of_mode[size], to, measure)} with {size:,} CIDRs"
        for mode, of_mode in shown.items()
        for size in (min(of_mode), max(of_mode))
    ]
    return Chart(
        f"{measure.name}-by-cidrs",
        f"{measure.title}. {titles[1]}. {'; '.join(said)}.",
        measure.name in HEADLINES,
        lines.draw(shown, sizes, measure, to, _untracked(statistics), titles),
    )


def _scale(to: str | None, measure: Measure, shape: str) -> str:
    """Return how to read what is drawn."""
    if shape == "bar":
        better = "longer is better" if measure.more_is_better else "shorter is better"
    else:
        better = "higher is better" if measure.more_is_better else "lower is better"
    if to is None:
        return better
    return f"{'share of' if measure.more_is_better else 'times that of'} {NO_NAT[to]}; {better}"


def _how_sure(found: list[Summary], shape: str) -> str:
    rounds = max((one.count for one in found), default=0)
    if rounds <= 1:
        return "One round: it tells nothing apart" if rounds else "Nothing was measured"
    covered = max(one.coverage for one in found)
    return f"Median of {rounds} rounds; {shape}: {100 * covered:.0f} % interval"


def _untracked(statistics: Statistics) -> list[str]:
    return [mode.name for mode in statistics.modes.values() if not mode.tracking]
