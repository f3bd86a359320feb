"""The story of a lab as one page that opens anywhere. Pure.

What it says of addresses on the way comes from packets that were captured there; where none
was, it says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from ipmasq_agent.lab import drawing, telling
from ipmasq_agent.lab.markup import beginning, table, text
from ipmasq_agent.lab.mirror import mirrored
from ipmasq_agent.lab.probes import Check
from ipmasq_agent.lab.scene import shown
from ipmasq_agent.lab.story import PlayedScene
from ipmasq_agent.lab.topology import ENDPOINTS, SECOND_CLUSTER
from ipmasq_agent.lab.trace import Way

# At the beginning of a line they are where it is indented, and not where it can be broken.
_BLANKS = re.compile("^[ \t]+")
_STYLE = """
:root { --own: #0b5cad; --node: #a04400; --bad: #b00020; --good: #0a6b2f; }
@media (prefers-color-scheme: dark) { :root { --own: #7ab8ff; --node: #ffb066; --bad: #ff8a9a;
  --good: #6fd08c; } }
header, main { max-width: 84rem; }
a { color: inherit; }
h3 { font-size: .875rem; margin: 1rem 0 .25rem; }
p { max-width: 52rem; }
.own { color: var(--own); } .node { color: var(--node); } .bad { color: var(--bad); }
.good { color: var(--good); }
.start { display: grid; gap: 1rem 2rem; align-items: start; }
.beside { display: grid; gap: 1rem 2rem; align-items: start;
  grid-template-columns: minmax(0, 1fr); }
.flows { display: grid; gap: 1rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 20.5rem), 1fr)); }
@media (min-width: 60rem) {
  .start { grid-template-columns: minmax(0, 28rem) minmax(0, 1fr); }
  .beside { grid-template-columns: minmax(0, 20rem) minmax(0, 1fr); }
  .beside > :first-child { position: sticky; top: .5rem; } }
figure:target { outline: 3px solid var(--node); }
figcaption { padding: .25rem .4rem; font-size: .875rem; line-height: 1.4; }
figcaption b { font-size: 1rem; }
figure details { margin: .25rem .4rem 0; font-size: .875rem; }
figure summary { padding: .35rem 0; font-weight: 400; color: var(--faint); }
figure h3 { font-weight: 600; }
code, pre { font: .8125rem/1.5 ui-monospace, monospace; }
pre { margin: .25rem 0 .75rem; padding: .5rem; background: var(--tint); border-radius: .5rem;
  white-space: pre-wrap; overflow-wrap: anywhere; }
pre span { display: block; padding-left: 4ch; text-indent: -4ch; }
ins { text-decoration: none; font-weight: 700; color: var(--good); }
del { color: var(--bad); }
.steps li { margin: .15rem 0; }
.overview td, .overview th + th { text-align: center; padding: .3rem .35rem; }
.overview tbody th { position: sticky; left: 0; background: var(--paper); }
.overview td a { display: block; min-width: 1.2rem; }
"""


def page(steps: Sequence[PlayedScene], when: str, *, ipv6: bool) -> str:
    """Return the whole document.

    Args:
        steps: as they were played, with what was captured.
        when: and with what it was told: a line.
        ipv6: the story was told in IPv6.
    """
    return "\n".join(_document(steps, when, mirrored if ipv6 else str)) + "\n"


def _document(
    steps: Sequence[PlayedScene], when: str, in_family: Callable[[str], str]
) -> Iterator[str]:
    checks = [check for step in steps for check in step.checks]
    ok = all(step.ok for step in steps)
    failures = sum(len(step.failures) for step in steps)
    said = telling.verdict(checks, failures)
    yield beginning(_TITLE, drawing.STYLE + _STYLE)
    yield f'<p class="when">{text(when)}</p>'
    yield f'<p class="answer {"good" if ok else "bad"}">{text(said[0].upper() + said[1:])}.</p>'
    yield from _wrong(steps)
    yield f"<p>{text(_HOW)}</p></header><main>"
    yield '<div class="start"><figure>'
    yield drawing.topology(in_family)
    yield '</figure><nav aria-label="Steps"><ol class="steps">'
    for number, step in enumerate(steps, start=1):
        yield f'<li><a href="#s{number}">{text(step.scene.title)}</a></li>'
    yield f"</ol></nav></div><h2>{text(telling.QUESTION)}</h2>"
    yield f"<p>{text(telling.MARKS)}. Each leads to its packets.</p>"
    yield f'<div class="wide overview" tabindex="0">{_overview(steps)}</div>'
    before: PlayedScene | None = None
    for number, step in enumerate(steps, start=1):
        yield from _step(number, step, before)
        before = step
    yield "</main><footer></footer></body></html>"


_TITLE = "What destinations see: the story of a lab"
_HOW = (
    "Each drawing shows the first packet of a check and its answer, host by host, with the source "
    "and destination that it had there. All of it was captured at the hosts' devices while the "
    "story was told; what each destination saw it told by itself."
)


def _wrong(steps: Sequence[PlayedScene]) -> Iterator[str]:
    """Say in which steps something is wrong, and where packets went past the capture."""
    wrong = (number for number, step in enumerate(steps, start=1) if not step.ok)
    links = ", ".join(f'<a href="#s{number}">step {number}</a>' for number in wrong)
    if links:
        yield f'<p class="notice" role="note">Not as it should be: {links}.</p>'
    lost = {host for step in steps for c in step.checks if c.trace for host in c.trace.lost}
    if lost:
        said = f"The capture lost packets at {', '.join(sorted(lost))}: some hops may be missing."
        yield f'<p class="notice" role="note">{text(said)}</p>'


def _overview(steps: Sequence[PlayedScene]) -> str:
    places = {
        (number, row[0].sender, row[0].to): f"s{number}-{place}"
        for number, step in enumerate(steps, start=1)
        for place, row in reversed(list(enumerate(_figures(step), start=1)))
    }
    head = ["from → to", *map(str, range(1, len(steps) + 1))]
    rows = []
    for (sender, to), cells in telling.overview([step.checks for step in steps]).items():
        linked = (
            f'<a class="{"own" if cell.startswith("o") else "node"}"'
            f' href="#{places[number, sender, to]}">{text(cell)}</a>'
            if cell
            else ""
            for number, cell in enumerate(cells, start=1)
        )
        rows.append([text(f"{sender} → {to}"), *linked])
    return table(head, rows)


def _figures(step: PlayedScene) -> list[list[Check]]:
    """Return checks whose packets went the same way with the same addresses together."""

    def path(check: Check) -> tuple[object, ...]:
        trace = check.trace
        return tuple(map(tuple, map(drawing.legs, (trace.request, trace.reply)))) if trace else ()

    return telling.rows(step.checks, path)


# -- one step ---------------------------------------------------------------------------------


def _step(number: int, step: PlayedScene, before: PlayedScene | None) -> Iterator[str]:
    scene = step.scene
    yield f'<section id="s{number}"><h2>{number}. {text(scene.title)}</h2><p>{text(scene.why)}</p>'
    for failure in step.failures:
        yield f'<p class="notice" role="note">Not as it should be: {text(failure)}</p>'
    yield '<div class="beside"><div>'
    yield f"<h3>The document of {text(' and '.join(scene.nodes))}</h3>"
    yield _marked(telling.compared(before.config if before else step.config, step.config))
    if scene.second is not None:
        second = " and ".join(node.name for node in SECOND_CLUSTER)
        yield f"<h3>The document of {text(second)}</h3>"
        yield _marked(f"  {line}" for line in shown(scene.second).splitlines())
    if step.error:
        said = telling.after_path(step.error)
        yield f'<p class="notice">The one before stays, as the agent says: {text(said)}</p>'
    yield from (f"<p><code>{text(line)}</code></p>" for line in step.explained)
    yield from _rules(step, before)
    yield '</div><div class="flows">'
    for place, row in enumerate(_figures(step), start=1):
        yield from _figure(f"s{number}-{place}", row)
    yield "</div></div></section>"


def _marked(lines: Iterable[str]) -> str:
    """Return lines, those with a sign in front as what came or went."""
    kinds = {"+": "ins", "-": "del"}
    told = []
    for line in lines:
        said, kind = _BLANKS.sub(_hard, text(line[2:])), kinds.get(line[0])
        told.append(f"{line[0]} <{kind}>{said}</{kind}>" if kind else f"\u00a0 {said}")
    return f"<pre>{''.join(f'<span>{line}</span>' for line in told)}</pre>"


def _hard(blanks: re.Match[str]) -> str:
    return "\u00a0" * len(blanks[0])


def _rules(step: PlayedScene, before: PlayedScene | None) -> Iterator[str]:
    """Show the rules of nodes, those that have the same ones together; new lines stand out."""
    shared: dict[tuple[str, ...], list[str]] = {}
    for node, rules in step.rules.items():
        old = set(before.rules[node].splitlines()) if before and node in before.rules else None
        lines = [
            f"{'+' if old is not None and line not in old else ' '} {line}"
            for line in rules.strip().splitlines()
        ]
        shared.setdefault(tuple(lines), []).append(node)
    for same, nodes in shared.items():
        yield f"<h3>In force on {text(' and '.join(nodes))}</h3>{_marked(same)}"


def _figure(place: str, row: Sequence[Check]) -> Iterator[str]:
    check = row[0]
    yield f'<figure id="{place}"><figcaption><b>{text(f"{check.sender} → {check.to}")}</b> '
    yield text(telling.protocols(row) + (" (opened before)" if check.kept else "")) + "<br>"
    kind = "own" if check.verdict == "non-masquerade" else "node"
    seen = f'<span class="{kind}">{text(check.seen or "nothing")}</span>'
    found = "; ".join(filter(None, (telling.owner(check), _reply(check.reply))))
    yield f"{text(check.to)} saw {seen}, {text(found)}<br>"
    expected = f"expected: {check.expected}; {_reply(check.expected_reply)}"
    kind, sign = ("good", "✓") if check.ok else ("bad", "✗")
    yield f'<span class="{kind}">{sign} {text(expected)}</span>'
    yield "</figcaption>"
    if check.trace is not None:
        arrived = check.trace.arrived(ENDPOINTS[check.to][0])
        if arrived != check.seen:
            said = f"captured there: {arrived or 'nothing'}"
            yield f'<p class="notice" role="note">{text(said)}</p>'
        yield drawing.sequence(check)
        yield f"<details><summary>{text(_count(row))}</summary>"
        yield from _packets(row)
        yield "</details>"
    yield "</figure>"


def _reply(reply: bool) -> str:
    return "a reply" if reply else "no reply"


def _count(row: Sequence[Check]) -> str:
    ways = [way for c in row if c.trace for way in (c.trace.request, c.trace.reply) if way]
    return f"{len(ways)} packets, captured {sum(map(len, ways))} times"


def _packets(row: Sequence[Check]) -> Iterator[str]:
    """Yield a table of each packet: where it was captured, when, and with which ends."""
    for check in row:
        assert check.trace is not None
        for way in (check.trace.request, check.trace.reply):
            if way:
                yield f"<h3>{text(f'{check.protocol}: {way[0].packet.name}')}</h3>"
                began = check.trace.request[0].time
                yield f'<div class="wide" tabindex="0">{_captured(way, began)}</div>'


def _captured(way: Way, began: int) -> str:
    rows = (
        [
            f"{(one.time - began) / 1e6:.3f}",
            one.host,
            f"{one.device} {'out' if one.out else 'in'}",
            f"<code>{text(_end(one.packet.source, one.packet.source_port))}</code>",
            f"<code>{text(_end(one.packet.destination, one.packet.destination_port))}</code>",
        ]
        for one in way
    )
    return table(("ms", "host", "device", "source", "destination"), rows)


def _end(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
