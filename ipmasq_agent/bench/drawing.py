"""Pictures of charts, narrow ones that are read on a phone.

The colours are those that Okabe and Ito made for every kind of colour vision, one a data plane;
what does without connection tracking is hatched or dashed. Nothing else imports matplotlib, and
this only when something is drawn.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ipmasq_agent.bench.charts import Bar, Chart, Points
from ipmasq_agent.bench.modes import BACKENDS
from ipmasq_agent.bench.results import Mode
from ipmasq_agent.bench.statistics import Summary
from ipmasq_agent.bench.wording import NO_NAT, Scale
from ipmasq_agent.host.extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH = 3.9  # inches; across a phone, letters of 10 points are about 10 pixels high
_TITLE, _TEXT, _SMALL = 11.5, 10.0, 8.5  # points
_INK, _FAINT, _GRID = "#1b1b1b", "#5f5f5f", "#dddddd"
_SIDE = 0.12  # inches, left and right of everything
_TOP, _BOTTOM = 0.72, 0.32  # inches, for the title and for what is said below
_LETTER = 0.0086  # inches across, of a bold letter, for each point of its size
_DPI = 200
# By the position of the data plane in the registry.
_LOOKS = (
    ("#D55E00", "v"),
    ("#E69F00", "^"),
    ("#009E73", "s"),
    ("#0072B2", "D"),
    ("#CC79A7", "o"),
    ("#56B4E9", "P"),
    ("#F0E442", "X"),
)
_NO_NAT = {True: ("#444444", "."), False: ("#888888", ".")}  # with and without conntrack
# Letters: in a plot of bars they stand on white, as lines run behind them.
_PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
_ON_PAPER: dict[str, Any] = {"color": _INK, "bbox": _PAPER}
# Not dashed, as the lines of what does without connection tracking are.
_DOTTED: dict[str, Any] = {"color": _INK, "linewidth": 1, "linestyle": (0, (1, 2)), "zorder": 0}

_ROW, _BAR = 0.52, 0.4  # inches; share of a row
_CAP = 0.11  # half the height of the end of an interval, in rows
_LEGEND = 0.4  # rows, to say what the dotted line is
_LETTERS = 44  # of a reason

_HEIGHT = 3.3  # inches, of a plot of lines
_LEFT, _RIGHT, _UNDER = 0.62, 1.22, 0.42  # inches, for what is written around the lines
_APART = 0.062  # between two names, as a share of the height
_COLUMN = 1.09  # where they begin, as a share of the width
_DECADE = 10


def draw(chart: Chart) -> bytes:
    """Return a picture of a chart, as PNG.

    Raises:
        MissingTool: matplotlib is not installed.
    """
    require("bench", "matplotlib")
    # Not pyplot: its figures outlive their use, and it looks for a screen.
    from matplotlib.figure import Figure

    legend = _LEGEND * bool(chart.scale.to)
    between = _HEIGHT if chart.lines else _ROW * (len(chart.bars) + legend)
    whole = _TOP + between + _BOTTOM
    figure = Figure(figsize=(_WIDTH, whole), facecolor="white")
    across = _SIDE / _WIDTH
    axes = figure.add_axes((across, _BOTTOM / whole, 1 - 2 * across, between / whole))
    if chart.lines:
        _draw_lines(axes, chart, whole)
    else:
        _draw_bars(axes, chart, legend)
    _write_around(figure, chart)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=_DPI)
    return picture.getvalue()


def colour(mode: Mode) -> str:
    """Return the colour of a mode."""
    return _look(mode)[0]


def _look(mode: Mode) -> tuple[str, str]:
    """Return the colour of a mode, and the mark of its points."""
    if mode.backend is None:
        return _NO_NAT[mode.tracking]
    if mode.backend not in BACKENDS:  # of an earlier version's results
        return _FAINT, "."
    return _LOOKS[BACKENDS.index(mode.backend) % len(_LOOKS)]


def _write_around(figure: Figure, chart: Chart) -> None:
    """Write what is shown above a plot, and how to read it below."""
    height = figure.get_figheight()
    title = chart.scale.measure.title
    for text, inches, size, side, ink, weight in (
        (title, height - 0.1, _TITLE, "top", _INK, "bold"),
        (chart.subtitle, height - 0.36, _SMALL, "top", _FAINT, "normal"),
        (chart.below, 0.1, _SMALL, "bottom", _FAINT, "normal"),
    ):
        fitting = size * min(1, (_WIDTH - 2 * _SIDE) / (_LETTER * size * len(text)))
        at = _SIDE / _WIDTH, inches / height
        figure.text(*at, text, va=side, size=fitting, weight=weight, color=ink)


# -- bars -------------------------------------------------------------------------------------


def _draw_bars(axes: Axes, chart: Chart, legend: float) -> None:
    shown, to = chart.bars, chart.scale.to
    axes.set_axis_off()
    axes.set_ylim(len(shown) - 1 + _BAR + 0.1, -0.5 - legend)
    ends = [bar.found.high for bar in shown if bar.found]
    axes.set_xlim(0, 1.03 * max([*ends, 1.0] if to else ends, default=1.0))
    if to:
        axes.axvline(1, **_DOTTED)
        axes.text(1, -0.5 - legend, NO_NAT[to], ha="center", size=_SMALL, **_ON_PAPER)
    best = shown[0] if shown else None
    if best and best.found and best.note in ("first", "tie for first"):
        # Its interval runs through all rows: who reaches into it ties.
        band: dict[str, Any] = {"alpha": 0.2, "linewidth": 0, "zorder": 0}
        axes.axvspan(best.found.low, best.found.high, color=colour(chart.modes[best.mode]), **band)
    for row, bar in enumerate(shown):
        _write(axes, row, bar)
        if bar.found:
            _bar(axes, row + _BAR / 2, chart.modes[bar.mode], bar.found)


def _write(axes: Axes, row: int, bar: Bar) -> None:
    """Write above the bar, where no bar is in the way however long it is."""
    line = row - 0.06
    above: dict[str, Any] = {"va": "bottom", **_ON_PAPER}
    name = axes.annotate(bar.mode, (0, line), size=_TEXT, weight="bold", **above)
    axes.annotate(f"  {bar.value}", (1, 0), xycoords=name, size=_TEXT, **above)
    if bar.found is None:
        short = bar.note if len(bar.note) <= _LETTERS else bar.note[: _LETTERS - 3] + "..."
        axes.text(0, row + _BAR / 2, short, va="center", size=_SMALL, color=_FAINT)
    else:
        right = axes.get_yaxis_transform()
        axes.text(1, line, bar.note, transform=right, ha="right", size=_SMALL, **above)


def _bar(axes: Axes, middle: float, mode: Mode, found: Summary) -> None:
    hue, whole = colour(mode), mode.tracking
    fill: dict[str, Any] = {"color": hue if whole else "white", "hatch": None if whole else "/////"}
    axes.barh(middle, max(found.median, 0), height=_BAR, edgecolor=hue, linewidth=1, **fill)
    if found.count > 1:
        ends = [found.low, found.high]
        axes.hlines(middle, found.low, found.high, color=_INK, linewidth=1.4)
        axes.vlines(ends, middle - _CAP, middle + _CAP, color=_INK, linewidth=1.4)


# -- lines ------------------------------------------------------------------------------------


def _draw_lines(axes: Axes, chart: Chart, height: float) -> None:
    bottom = _BOTTOM + _UNDER
    wide, high = (_WIDTH - _LEFT - _RIGHT) / _WIDTH, (height - _TOP - bottom) / height
    axes.set_position((_LEFT / _WIDTH, bottom / height, wide, high))
    for mode, line in chart.lines.items():
        _line(axes, chart.modes[mode], line, chart.sizes)
    _scales(axes, chart.scale, chart.lines, chart.sizes)
    ends = {
        mode: (max(line), line[max(line)].median, colour(chart.modes[mode]))
        for mode, line in chart.lines.items()
    }
    if chart.scale.to:
        axes.axhline(1, **_DOTTED)
        ends[chart.scale.to] = (max(chart.sizes), 1.0, _FAINT)
    _name(axes, ends)


def _line(axes: Axes, mode: Mode, line: Points, sizes: Sequence[int]) -> None:
    # Where a figure is missing there is a gap: nobody knows what would be there.
    missing = float("nan")
    found = [line.get(size) for size in sizes]
    low, middle, high = (
        [getattr(one, end) if one else missing for one in found]
        for end in ("low", "median", "high")
    )
    hue, mark = _look(mode)
    axes.fill_between(sizes, low, high, color=hue, alpha=0.25, linewidth=0)
    drawn = axes.plot(sizes, middle, color=hue, marker=mark, markersize=5, linewidth=1.8)
    if not mode.tracking:
        drawn[0].set(markerfacecolor="white", linestyle="--")


def _scales(axes: Axes, scale: Scale, lines: Mapping[str, Points], sizes: Sequence[int]) -> None:
    """Choose the scales, and write what they say."""
    from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

    # Shares are compared at a glance where the scale begins at nothing. What has no upper end,
    # such as times, has to be seen from microseconds to minutes.
    heights = [found.median for line in lines.values() for found in line.values()]
    if scale.is_share or not heights or max(heights) < _DECADE * min(heights):
        axes.set_ylim(bottom=0)
    else:
        axes.set_yscale("log")
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size // 1000}k" if size >= 1000 else str(size) for size in sizes])
    axes.set_xlabel("CIDRs in the policy", size=_SMALL, color=_FAINT)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: scale.figure(value, digits=1)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(labelsize=_SMALL, labelcolor=_INK, color=_GRID, which="both")
    axes.grid(color=_GRID, linewidth=0.6, axis="y")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)


def _name(axes: Axes, ends: Mapping[str, tuple[float, float, str]]) -> None:
    """Write names in a column on the right, each led to the end of its line."""
    across = axes.transData + axes.transAxes.inverted()
    heights = {name: float(across.transform(end[:2])[1]) for name, end in ends.items()}
    order = sorted(heights, key=lambda name: heights[name])
    lead: dict[str, Any] = {"arrowstyle": "-", "linewidth": 0.8, "shrinkA": 0, "shrinkB": 3}
    for name, at in zip(order, spread([heights[name] for name in order], _APART), strict=True):
        *end, hue = ends[name]
        axes.annotate(
            name,
            (end[0], end[1]),
            (_COLUMN, at),
            textcoords="axes fraction",
            va="center",
            size=_SMALL,
            color=_INK,
            arrowprops={"color": hue, **lead},
            annotation_clip=False,
        )


def spread(heights: Sequence[float], apart: float) -> list[float]:
    """Return rising heights that are so far apart at least, within 0 and 1 where they fit."""
    spaced: list[float] = []
    for height in heights:
        spaced.append(max(height, spaced[-1] + apart if spaced else 0.0))
    limit = 1.0
    for index in range(len(spaced) - 1, -1, -1):
        spaced[index] = min(spaced[index], limit)
        limit = spaced[index] - apart
    return spaced
