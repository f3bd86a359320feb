"""The report as one page that opens anywhere: ``report.html``, with its plots inside it.

It asks for nothing: no script, no letters, no picture from elsewhere, and says so to the
browser, which refuses them.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping
from html import escape

from ipmasq_agent.bench.charts import Chart
from ipmasq_agent.bench.report import Report
from ipmasq_agent.bench.tables import FigureTable

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1b1b; --faint: #5f5f5f;
  --line: #ddd; --tint: #f4f4f2; --notice: #fff3cd; }
@media (prefers-color-scheme: dark) { :root { --paper: #17181a; --ink: #ececec;
  --faint: #a8a8a8; --line: #3a3b3e; --tint: #222427; --notice: #4a3b0c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
header, main { max-width: 72rem; margin: 0 auto; padding: 0 1rem; }
h1 { font-size: 1rem; margin: 1rem 0 0; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; }
.when { margin: 0; color: var(--faint); font-size: .875rem; }
.answer { font-size: clamp(1.2rem, 3.2vw, 1.75rem); line-height: 1.3; font-weight: 600;
  margin: .75rem 0 1rem; max-width: 60rem; }
.notice { background: var(--notice); border-radius: .5rem; margin: .75rem 0; padding: .5rem 1rem; }
.plots { display: grid; gap: 1rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 20.5rem), 1fr)); }
.first { grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); }
figure { margin: 0; padding: .25rem; background: #fff; border: 1px solid var(--line);
  border-radius: .5rem; }
img { display: block; width: 100%; max-width: 30rem; height: auto; margin: 0 auto; }
li { margin: .35rem 0; max-width: 52rem; }
ul { padding-left: 1.25rem; }
details { border-top: 1px solid var(--line); }
summary { padding: .6rem 0; cursor: pointer; font-weight: 600; }
.wide { overflow-x: auto; margin-bottom: 1rem; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .3rem .9rem .3rem 0;
  border-bottom: 1px solid var(--line); }
.wide th, .wide td { white-space: nowrap; }
tbody th { font-weight: 600; }
footer { height: 3rem; }
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
    yield "<!doctype html>"
    yield '<html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    yield f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    yield f"<title>{_text(report.title)}</title><style>{_STYLE}</style></head><body>"
    yield f"<header><h1>{_text(report.title)}</h1>"
    yield f'<p class="when">{_text(report.when)}</p>'
    yield from (f'<p class="answer">{_text(sentence)}</p>' for sentence in first)
    yield from (f'<p class="notice" role="note">{_text(notice)}</p>' for notice in report.notices)
    yield "</header><main>"
    yield from _plots((one for one in report.charts if one.headline), pictures, "plots first")
    if rest:
        yield from ("<h2>What it says</h2>", _list(rest))
    others = [one for one in report.charts if not one.headline]
    if others:
        yield "<h2>All else</h2>"
        yield from _plots(others, pictures, "plots")
    for section in report.sections:
        yield f"<h2>{_text(section.heading)}</h2>"
        if section.items:
            yield _list(section.items)
        for table in section.tables:
            if table.title:
                yield f"<details><summary>{_text(table.title)}</summary>"
                yield from ('<div class="wide" tabindex="0">', _table(table), "</div></details>")
            else:
                yield _table(table)
    yield "</main><footer></footer></body></html>"


def _plots(charts: Iterable[Chart], pictures: Mapping[str, bytes], kind: str) -> Iterator[str]:
    yield f'<div class="{kind}">'
    for chart in charts:
        data = base64.b64encode(pictures[chart.name]).decode()
        image = f'<img src="data:image/png;base64,{data}" alt="{escape(chart.alt)}">'
        yield f"<figure>{image}</figure>"
    yield "</div>"


def _list(sentences: Iterable[str]) -> str:
    return "".join(("<ul>", *(f"<li>{_text(one)}</li>" for one in sentences), "</ul>"))


def _table(table: FigureTable) -> str:
    head = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in table.head)
    rows = [
        f'<tr><th scope="row">{_text(row[0])}</th>'
        + "".join(f"<td>{_text(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in table.rows
    ]
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _text(text: str) -> str:
    """Return text that a browser takes for text, with no sign on a line of its own."""
    return escape(text).replace(" %", "&nbsp;%")
