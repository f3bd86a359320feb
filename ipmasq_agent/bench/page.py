"""The report as one page that opens anywhere: ``report.html``, with its plots inside it."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping
from html import escape

from ipmasq_agent.bench.charts import Chart
from ipmasq_agent.bench.report import Report
from ipmasq_agent.bench.tables import FigureTable
from ipmasq_agent.lab.markup import beginning, table, text

_STYLE = """
.plots { display: grid; gap: 1rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 20.5rem), 1fr)); }
.first { grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); }
figure { background: #fff; }
img { display: block; width: 100%; max-width: 30rem; height: auto; margin: 0 auto; }
ul { padding-left: 1.25rem; }
"""


def page(report: Report, pictures: Mapping[str, bytes]) -> str:
    """Return the whole document.

    Args:
        report: what it says.
        pictures: of its charts, by their names.
    """
    return "\n".join(_document(report, pictures)) + "\n"


def _document(report: Report, pictures: Mapping[str, bytes]) -> Iterator[str]:
    first, rest = report.sentences[:1], report.sentences[1:]
    yield beginning(report.title, _STYLE)
    yield f'<p class="when">{text(report.when)}</p>'
    yield from (f'<p class="answer">{text(sentence)}</p>' for sentence in first)
    yield from (f'<p class="notice" role="note">{text(notice)}</p>' for notice in report.notices)
    yield "</header><main>"
    yield from _plots((one for one in report.charts if one.headline), pictures, "plots first")
    if rest:
        yield from ("<h2>What it says</h2>", _list(rest))
    others = [one for one in report.charts if not one.headline]
    if others:
        yield "<h2>All else</h2>"
        yield from _plots(others, pictures, "plots")
    for section in report.sections:
        yield f"<h2>{text(section.heading)}</h2>"
        if section.items:
            yield _list(section.items)
        for figures in section.tables:
            if figures.title:
                yield f"<details><summary>{text(figures.title)}</summary>"
                yield from ('<div class="wide" tabindex="0">', _table(figures), "</div></details>")
            else:
                yield _table(figures)
    yield "</main><footer></footer></body></html>"


def _plots(charts: Iterable[Chart], pictures: Mapping[str, bytes], kind: str) -> Iterator[str]:
    yield f'<div class="{kind}">'
    for chart in charts:
        data = base64.b64encode(pictures[chart.name]).decode()
        image = f'<img src="data:image/png;base64,{data}" alt="{escape(chart.alt)}">'
        yield f"<figure>{image}</figure>"
    yield "</div>"


def _list(sentences: Iterable[str]) -> str:
    return "".join(("<ul>", *(f"<li>{text(one)}</li>" for one in sentences), "</ul>"))


def _table(figures: FigureTable) -> str:
    return table(map(text, figures.head), (map(text, row) for row in figures.rows))
