"""What pages have in common that open anywhere, each one file. Pure.

They ask for nothing: no script, no letters, no picture from elsewhere, and say so to the
browser, which refuses them.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
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
figure { margin: 0; padding: .25rem; border: 1px solid var(--line); border-radius: .5rem; }
li { margin: .35rem 0; max-width: 52rem; }
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


def beginning(title: str, style: str) -> str:
    """Return a document up to its title, which is its first heading too; the header stays open.

    Args:
        title: of the page.
        style: what it looks like, beside what all pages do.
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>{text(title)}</title><style>{_STYLE}{style}</style></head><body>\n"
        f"<header><h1>{text(title)}</h1>"
    )


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table of cells, which are markup already; the first of a row is its heading."""
    heading = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = []
    for first, *cells in rows:
        others = "".join(f"<td>{cell}</td>" for cell in cells)
        body.append(f'<tr><th scope="row">{first}</th>{others}</tr>')
    return f"<table><thead><tr>{heading}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def text(said: str) -> str:
    """Return text that a browser takes for text, with no sign on a line of its own."""
    return escape(said).replace(" %", "&nbsp;%")
