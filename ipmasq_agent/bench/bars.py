"""One bar a mode: what it reaches in one measure with one number of CIDRs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ipmasq_agent.bench import canvas
from ipmasq_agent.bench.results import Measure
from ipmasq_agent.bench.statistics import Ranking, Statistics, Summary
from ipmasq_agent.bench.wording import NO_NAT, listed, told, too_few

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ROW, _BAR = 0.52, 0.4  # inches; share of a row
_CAP = 0.11  # half the height of the end of an interval, in rows
_LEGEND = 0.4  # rows, to say what the dashed line is
_NAMED = 2  # so many modes fit beside a bar's own name
_LETTERS = 44  # of a reason
_PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}  # behind letters, on lines


@dataclass(frozen=True, slots=True)
class Row:
    """One mode.

    Attributes:
        found: None where there is no figure.
        value: what is written beside its name.
        note: how it stands among the others, or why there is no figure.
    """

    mode: str
    found: Summary | None
    value: str
    note: str


def rows(statistics: Statistics, measure: Measure, cidrs: int) -> list[Row]:
    """Return what to show: the contenders, the best first, then what they are held against."""
    contenders = statistics.contenders()
    ranking = statistics.ranking(measure.name, cidrs, contenders)
    everyone = statistics.ranking(measure.name, cidrs)
    shown = []
    for mode in ranking.order:
        found = ranking.summaries[mode]
        value = told(found, ranking.to, measure)
        shown.append(Row(mode, found, value, _standing(ranking, mode)))
    for mode in contenders:
        if mode not in ranking.order:
            reason = statistics.reason(measure.name, mode, cidrs)
            shown.append(Row(mode, None, "no figure", reason))
    for mode in everyone.order:
        # A ratio to itself is the line that the bars are held against.
        if mode not in contenders and mode != everyone.to:
            found = everyone.summaries[mode]
            note = "with conntrack" if statistics.modes[mode].tracking else "without conntrack"
            shown.append(Row(mode, found, told(found, everyone.to, measure), note))
    return shown


def draw(
    shown: Sequence[Row], to: str | None, untracked: Sequence[str], titles: tuple[str, str, str]
) -> bytes:
    """Return the picture.

    Args:
        shown: from top to bottom.
        to: the mode that the ratios are to; None where values are shown.
        untracked: modes whose bars are hatched.
        titles: the title, what is below it, and what is below the bars.
    """
    figure, axes = canvas.blank(_ROW * (len(shown) + _LEGEND * bool(to)))
    axes.set_axis_off()
    axes.set_ylim(len(shown) - 1 + _BAR + 0.1, -0.5 - _LEGEND * bool(to))
    ends = [row.found.high for row in shown if row.found]
    axes.set_xlim(0, 1.03 * max([*ends, 1.0] if to else ends, default=1.0))
    if to:
        axes.axvline(1, color=canvas.INK, linewidth=1, linestyle=(0, (4, 2)), zorder=0)
        axes.text(
            1,
            -0.5 - _LEGEND,
            NO_NAT[to],
            ha="center",
            size=canvas.SMALL,
            color=canvas.INK,
            bbox=_PAPER,
        )
    _band(axes, shown)
    for place, row in enumerate(shown):
        _write(axes, place, row)
        if row.found:
            _bar(axes, place, row.mode, row.found, hatched=row.mode in untracked)
    canvas.write_around(figure, *titles)
    return canvas.png(figure)


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


def _band(axes: Axes, shown: Sequence[Row]) -> None:
    """Have the interval of the best run through all rows: who reaches into it ties."""
    best = shown[0] if shown else None
    if best and best.found and best.note in ("first", "tie for first"):
        axes.axvspan(
            best.found.low,
            best.found.high,
            color=canvas.colour(best.mode),
            alpha=0.2,
            linewidth=0,
            zorder=0,
        )


def _write(axes: Axes, place: int, row: Row) -> None:
    """Write above the bar, where no bar is in the way however long it is."""
    line = place - 0.06
    name = axes.annotate(
        row.mode,
        (0, line),
        va="bottom",
        size=canvas.TEXT,
        weight="bold",
        color=canvas.INK,
        bbox=_PAPER,
    )
    axes.annotate(
        f"  {row.value}",
        (1, 0),
        xycoords=name,
        va="bottom",
        size=canvas.TEXT,
        color=canvas.INK,
        bbox=_PAPER,
    )
    if row.found is None:
        short = row.note if len(row.note) <= _LETTERS else row.note[: _LETTERS - 3] + "..."
        axes.text(0, place + _BAR / 2, short, va="center", size=canvas.SMALL, color=canvas.FAINT)
        return
    axes.text(
        1,
        line,
        row.note,
        transform=axes.get_yaxis_transform(),
        ha="right",
        va="bottom",
        size=canvas.SMALL,
        color=canvas.INK,
        bbox=_PAPER,
    )


def _bar(axes: Axes, place: int, mode: str, found: Summary, *, hatched: bool) -> None:
    colour, middle = canvas.colour(mode), place + _BAR / 2
    axes.barh(
        middle,
        max(found.median, 0),
        height=_BAR,
        color="white" if hatched else colour,
        edgecolor=colour,
        hatch="/////" if hatched else None,
        linewidth=1,
    )
    if found.count > 1:
        ends = [found.low, found.high]
        axes.hlines(middle, found.low, found.high, color=canvas.INK, linewidth=1.4)
        axes.vlines(ends, middle - _CAP, middle + _CAP, color=canvas.INK, linewidth=1.4)
