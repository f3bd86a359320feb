"""What all plots have in common: their size, their letters, and one colour a mode.

They are narrow, so that they are read on a phone. The colours are those that Okabe and Ito
made for every kind of colour vision; what does without connection tracking is hatched or
dashed. Nothing else imports matplotlib, and this only when something is drawn.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from ipmasq_agent.host.extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 3.9  # inches; across a phone, letters of 10 points are about 10 pixels high
TITLE, TEXT, SMALL = 11.5, 10.0, 8.5  # points
INK, FAINT, GRID = "#1b1b1b", "#5f5f5f", "#dddddd"
SIDE = 0.12  # inches, left and right of everything
TOP, BOTTOM = 0.72, 0.32  # inches, for the title and for what is said below
_LETTER = 0.0086  # inches across, of a bold letter, for each point of its size
_DPI = 200
_COLOURS = {
    "none": "#888888",
    "none+ct": "#444444",
    "iptables-legacy": "#D55E00",
    "iptables-nft": "#E69F00",
    "ipset": "#009E73",
    "nftables": "#0072B2",
    "bpf": "#CC79A7",
    "bpf+ct": "#CC79A7",
}
_MARKERS = {
    "iptables-legacy": "v",
    "iptables-nft": "^",
    "ipset": "s",
    "nftables": "D",
    "bpf": "o",
    "bpf+ct": "o",
}


def colour(mode: str) -> str:
    """Return the colour of a mode."""
    return _COLOURS.get(mode, FAINT)


def marker(mode: str) -> str:
    """Return the mark of a mode's points."""
    return _MARKERS.get(mode, ".")


def blank(height: float) -> tuple[Figure, Axes]:
    """Return a plot with nothing on it.

    Args:
        height: in inches, of what is between the titles and what is said below.

    Raises:
        MissingTool: matplotlib is not installed.
    """
    require("bench", "matplotlib")
    # Not pyplot: its figures outlive their use, and it looks for a screen.
    from matplotlib.figure import Figure

    whole = TOP + height + BOTTOM
    figure = Figure(figsize=(WIDTH, whole), facecolor="white")
    across = SIDE / WIDTH
    return figure, figure.add_axes((across, BOTTOM / whole, 1 - 2 * across, height / whole))


def write_around(figure: Figure, title: str, subtitle: str, below: str) -> None:
    """Write what is shown above a plot, and how to read it below."""
    height = figure.get_figheight()
    for text, inches, size, side, colour in (
        (title, height - 0.1, TITLE, "top", INK),
        (subtitle, height - 0.36, SMALL, "top", FAINT),
        (below, 0.1, SMALL, "bottom", FAINT),
    ):
        figure.text(
            SIDE / WIDTH,
            inches / height,
            text,
            va=side,
            size=size * min(1, (WIDTH - 2 * SIDE) / (_LETTER * size * len(text))),
            weight="bold" if text is title else "normal",
            color=colour,
        )


def png(figure: Figure) -> bytes:
    """Return a plot as a picture."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=_DPI)
    return picture.getvalue()
