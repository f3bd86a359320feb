"""The report as markdown: ``report.md``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ipmasq_agent.bench.report import Report
from ipmasq_agent.bench.tables import FigureTable


def markdown(report: Report, *, plots: bool) -> str:
    """Return the whole text.

    Args:
        report: what it says.
        plots: refer to the pictures beside it.
    """
    return "\n".join(_lines(report, plots)) + "\n"


def _lines(report: Report, plots: bool) -> Iterator[str]:
    yield f"# {report.title}"
    yield from ("", report.when, "")
    yield from (f"> **{_escaped(notice)}**\n>" for notice in report.notices)
    yield from ("", "## What it says", "")
    yield from _items(report.sentences or ["Nothing, for want of figures."])
    for chart in report.charts if plots else ():
        yield from ("", f"![{_escaped(chart.alt)}]({chart.name}.png)")
    for section in report.sections:
        yield from ("", f"## {section.heading}")
        if section.items:
            yield from ("", *_items(section.items))
        for table in section.tables:
            if table.title:
                yield from ("", f"### {table.title}")
            yield from ("", *_table(table))


def _items(sentences: Iterable[str]) -> list[str]:
    return [f"- {_escaped(sentence)}" for sentence in sentences]


def _table(table: FigureTable) -> Iterator[str]:
    for row in (table.head, ("---",) * len(table.head), *table.rows):
        yield f"| {' | '.join(_escaped(cell) for cell in row)} |"


def _escaped(text: str) -> str:
    """Return text that markdown takes for letters, on one line."""
    for special in "\\|<>[]*`_":
        text = text.replace(special, f"\\{special}")
    return " ".join(text.split())
