"""One line a mode: what it reaches in one measure as the policy grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ipmasq_agent.bench import canvas
from ipmasq_agent.bench.results import Measure
from ipmasq_agent.bench.statistics import Statistics, Summary
from ipmasq_agent.bench.wording import NO_NAT, quantity, share

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_HEIGHT = 3.3  # inches
_LEFT, _RIGHT, _UNDER = 0.62, 1.22, 0.42  # inches, for what is written around the lines
_APART = 0.062  # between two names, as a share of the height
_COLUMN = 1.09  # where they begin, as a share of the width
_DECADE = 10

Points = Mapping[int, Summary]
"""What one mode reaches, by the number of CIDRs."""


def points(statistics: Statistics, measure: Measure) -> dict[str, Points]:
    """Return mode → points; modes that have none, and what the ratios are to, are left out."""
    to = statistics.basis(measure.name)
    found: dict[str, dict[int, Summary]] = {}
    for cidrs in statistics.sizes(measure.name):
        ranking = statistics.ranking(measure.name, cidrs)
        for mode, of_mode in ranking.summaries.items():
            if mode != to:
                found.setdefault(mode, {})[cidrs] = of_mode
    return {mode: found[mode] for mode in statistics.modes if mode in found}


def draw(
    lines: Mapping[str, Points],
    sizes: Sequence[int],
    measure: Measure,
    to: str | None,
    untracked: Sequence[str],
    titles: tuple[str, str, str],
) -> bytes:
    """Return the picture.

    Args:
        lines: by mode.
        sizes: the numbers of CIDRs, rising.
        measure: what is shown.
        to: the mode that the ratios are to; None where values are shown.
        untracked: modes whose lines are dashed.
        titles: the title, what is below it, and what is below the lines.
    """
    figure, axes = canvas.blank(_HEIGHT)
    width, height = figure.get_size_inches()
    bottom = canvas.BOTTOM + _UNDER
    axes.set_position(
        (
            _LEFT / width,
            bottom / height,
            (width - _LEFT - _RIGHT) / width,
            (height - canvas.TOP - bottom) / height,
        )
    )
    for mode, of_mode in lines.items():
        _line(axes, mode, of_mode, sizes, dashed=mode in untracked)
    ends = {mode: (max(of_mode), of_mode[max(of_mode)].median) for mode, of_mode in lines.items()}
    if to:
        axes.axhline(1, color=canvas.INK, linewidth=1, linestyle=(0, (4, 2)), zorder=0)
        ends[NO_NAT[to]] = (max(sizes), 1.0)
    _scales(axes, lines, sizes, measure, to)
    _name(axes, ends)
    canvas.write_around(figure, *titles)
    return canvas.png(figure)


def _line(axes: Axes, mode: str, of_mode: Points, sizes: Sequence[int], *, dashed: bool) -> None:
    # Where a figure is missing there is a gap: nobody knows what would be there.
    missing = float("nan")
    middle = [of_mode[size].median if size in of_mode else missing for size in sizes]
    low = [of_mode[size].low if size in of_mode else missing for size in sizes]
    high = [of_mode[size].high if size in of_mode else missing for size in sizes]
    colour = canvas.colour(mode)
    axes.fill_between(sizes, low, high, color=colour, alpha=0.25, linewidth=0)
    axes.plot(
        sizes,
        middle,
        color=colour,
        marker=canvas.marker(mode),
        markersize=5,
        markerfacecolor="white" if dashed else colour,
        linewidth=1.8,
        linestyle="--" if dashed else "-",
    )


def _scales(
    axes: Axes, lines: Mapping[str, Points], sizes: Sequence[int], measure: Measure, to: str | None
) -> None:
    """Choose the scales, and write what they say."""
    from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

    def reached(value: float, _: object) -> str:
        if to is None:
            return quantity(value, measure.unit, 1)
        return share(value, measure, 1)

    # Shares are compared at a glance where the scale begins at nothing. What has no upper end,
    # such as times, has to be seen from microseconds to minutes.
    heights = [found.median for of_mode in lines.values() for found in of_mode.values()]
    is_share = to is not None and measure.more_is_better
    if is_share or not heights or max(heights) < _DECADE * min(heights):
        axes.set_ylim(bottom=0)
    else:
        axes.set_yscale("log")
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size // 1000}k" if size >= 1000 else str(size) for size in sizes])
    axes.set_xlabel("CIDRs in the policy", size=canvas.SMALL, color=canvas.FAINT)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(reached))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(labelsize=canvas.SMALL, labelcolor=canvas.INK, color=canvas.GRID, which="both")
    axes.grid(color=canvas.GRID, linewidth=0.6, axis="y")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(canvas.GRID)


def _name(axes: Axes, ends: Mapping[str, tuple[float, float]]) -> None:
    """Write names in a column on the right, each led to the end of its line."""
    across = axes.transData + axes.transAxes.inverted()
    heights = {name: float(across.transform(end)[1]) for name, end in ends.items()}
    order = sorted(heights, key=lambda name: heights[name])
    for name, at in zip(order, spread([heights[name] for name in order], _APART), strict=True):
        axes.annotate(
            name,
            ends[name],
            (_COLUMN, at),
            textcoords="axes fraction",
            va="center",
            size=canvas.SMALL,
            color=canvas.INK,
            arrowprops={
                "arrowstyle": "-",
                "color": canvas.colour(name),
                "linewidth": 0.8,
                "shrinkA": 0,
                "shrinkB": 3,
            },
            annotation_clip=False,
        )


def spread(heights: Sequence[float], apart: float) -> list[float]:
    """Return rising heights that are so far apart at least, within 0 and 1 where they fit."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + apart if placed else 0.0))
    limit = 1.0
    for index in range(len(placed) - 1, -1, -1):
        placed[index] = min(placed[index], limit)
        limit = placed[index] - apart
    return placed
