"""Which plots there are, in the order in which one looks at them, and what each shows.

One bar a mode for one number of CIDRs, and one line a mode as the policy grows. Here is what
they say; ``drawing.py`` makes pictures of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ipmasq_agent.bench.results import Measure, Mode
from ipmasq_agent.bench.statistics import HEADLINES, Ranking, Statistics, Summary
from ipmasq_agent.bench.wording import NO_NAT, Scale, listed, too_few

_SIZES_OF_A_LINE = 3
_NAMED = 2  # so many modes fit beside a bar's own name

Points = Mapping[int, Summary]
"""What one mode reaches, by the number of CIDRs."""


@dataclass(frozen=True, slots=True)
class Bar:
    """What one mode reaches.

    Attributes:
        found: None where there is no figure.
        value: what is written beside its name.
        note: how it stands among the others, or why there is no figure.
    """

    mode: str
    found: Summary | None
    value: str
    note: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A plot: of bars, from top to bottom, or of lines.

    Attributes:
        name: of its file, without what comes after the dot.
        scale: of what is shown.
        subtitle: how to read it.
        below: how sure it is.
        alt: the same in words, for who does not see it.
        modes: all that there are, by name.
        lines: mode → points; modes that have none, and what the ratios are to, are left out.
        sizes: the numbers of CIDRs of the lines, rising.
    """

    name: str
    scale: Scale
    subtitle: str
    below: str
    alt: str
    modes: Mapping[str, Mode]
    bars: Sequence[Bar] = ()
    lines: Mapping[str, Points] = field(default_factory=dict)
    sizes: Sequence[int] = ()

    @property
    def headline(self) -> bool:
        """Whether it belongs to those that are looked at first."""
        return self.scale.measure.name in HEADLINES


def charts(statistics: Statistics) -> Iterator[Chart]:
    """Yield all that the results are good for."""
    measures = sorted(statistics.measures.values(), key=lambda one: one.name not in HEADLINES)
    for measure in measures:
        cidrs = statistics.headline_size(measure.name)
        able = [m for m in statistics.contenders() if statistics.takes_part(measure.name, m)]
        if cidrs is not None and able:
            yield _of_bars(statistics, measure, cidrs)
    for measure in measures:
        if len(statistics.sizes(measure.name)) >= _SIZES_OF_A_LINE:
            yield _of_lines(statistics, measure)


def _of_bars(statistics: Statistics, measure: Measure, cidrs: int) -> Chart:
    scale = Scale(measure, statistics.basis(measure.name))
    shown = bars(statistics, scale, cidrs)
    subtitle = f"{cidrs:,} CIDRs; {_better(scale, 'longer', 'shorter')}"
    said = []
    for bar in shown:
        interval = f" ({scale.interval(bar.found)})" if bar.found else ""
        said.append(f"{bar.mode}: {bar.value}{interval}{', ' if bar.note else ''}{bar.note}")
    return Chart(
        f"{measure.name}-{cidrs}",
        scale,
        subtitle,
        _how_sure([bar.found for bar in shown if bar.found], "line"),
        f"{measure.title}. {subtitle}. {'; '.join(said)}.",
        statistics.modes,
        bars=shown,
    )


def _of_lines(statistics: Statistics, measure: Measure) -> Chart:
    scale = Scale(measure, statistics.basis(measure.name))
    lines = points(statistics, scale)
    subtitle = f"by CIDRs; {_better(scale, 'higher', 'lower')}"
    said = [
        f"{mode}: {scale.median(line[size])} with {size:,} CIDRs"
        for mode, line in lines.items()
        for size in (min(line), max(line))
    ]
    return Chart(
        f"{measure.name}-by-cidrs",
        scale,
        subtitle,
        _how_sure([found for line in lines.values() for found in line.values()], "band"),
        f"{measure.title}. {subtitle}. {'; '.join(said)}.",
        statistics.modes,
        lines=lines,
        sizes=statistics.sizes(measure.name),
    )


def bars(statistics: Statistics, scale: Scale, cidrs: int) -> list[Bar]:
    """Return what to show: the contenders, the best first, then what they are held against."""
    name, contenders = scale.measure.name, statistics.contenders()
    ranking = statistics.ranking(name, cidrs, contenders)
    shown = []
    for mode in ranking.order:
        found = ranking.summaries[mode]
        shown.append(Bar(mode, found, scale.median(found), _standing(ranking, mode)))
    for mode in contenders:
        if mode not in ranking.order and statistics.takes_part(name, mode):
            shown.append(Bar(mode, None, "no figure", statistics.reason(name, mode, cidrs)))
    everyone = statistics.ranking(name, cidrs)
    for mode in everyone.order:
        # A ratio to itself is the line that the bars are held against.
        if mode not in contenders and mode != everyone.to:
            found = everyone.summaries[mode]
            note = "with conntrack" if statistics.modes[mode].tracking else "without conntrack"
            shown.append(Bar(mode, found, scale.median(found), note))
    return shown


def points(statistics: Statistics, scale: Scale) -> dict[str, Points]:
    """Return mode → points."""
    found: dict[str, dict[int, Summary]] = {}
    for cidrs in statistics.sizes(scale.measure.name):
        for mode, reached in statistics.ranking(scale.measure.name, cidrs).summaries.items():
            if mode != scale.to:
                found.setdefault(mode, {})[cidrs] = reached
    return {mode: found[mode] for mode in statistics.modes if mode in found}


def _standing(ranking: Ranking, mode: str) -> str:
    found, first, ties = ranking.summaries[mode], ranking.first, ranking.ties(mode)
    if not found.enough:
        return too_few(found.count).partition(",")[0]
    if mode in first and len(first) > 1:
        return "tie for first"
    if mode in first:
        return "first" if len(ranking.order) > 1 else ""
    if len(ties) > _NAMED:
        return f"tie with {len(ties)} others"
    return f"tie with {listed(ties)}" if ties else ""


def _better(scale: Scale, more: str, less: str) -> str:
    """Return how to read what is drawn."""
    better = f"{more if scale.measure.more_is_better else less} is better"
    if scale.to is None:
        return better
    return f"{'share of' if scale.is_share else 'times that of'} {NO_NAT[scale.to]}; {better}"


def _how_sure(found: list[Summary], shape: str) -> str:
    rounds = max((one.count for one in found), default=0)
    if rounds <= 1:
        return "One round: it tells nothing apart" if rounds else "Nothing was measured"
    covered = max(one.coverage for one in found)
    return f"Median of {rounds} rounds; {shape}: {100 * covered:.0f} % interval"
