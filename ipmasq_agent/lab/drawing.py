"""Drawings of the lab's page, as SVG that takes its colours from the page. Pure.

They are as wide as a phone; letters are of a size that is read there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from ipmasq_agent.lab.probes import Check
from ipmasq_agent.lab.topology import ENDPOINTS, FIRST_CLUSTER, PODS, ROUTER, SECOND_CLUSTER, Host
from ipmasq_agent.lab.trace import Way, stops

STYLE = """
svg { display: block; width: 100%; max-width: 30rem; height: auto; margin: 0 auto; }
svg text { font: 11px system-ui, sans-serif; fill: var(--ink); }
svg .a { font: 10.5px ui-monospace, monospace; paint-order: stroke; stroke: var(--paper);
  stroke-width: 3px; stroke-linejoin: round; }
svg .n { font-weight: 700; }
svg .f { fill: var(--faint); font-size: 10px; }
svg .own { fill: var(--own); } svg .node { fill: var(--node); } svg .bad { fill: var(--bad); }
svg .c, svg .bad { font-weight: 700; }
svg rect { fill: var(--tint); stroke: var(--line); }
svg .group { fill: none; stroke: var(--faint); stroke-dasharray: 2 3; }
svg path { fill: none; stroke: var(--faint); }
svg .way { stroke: var(--ink); stroke-width: 1.4px; } svg .back { stroke-dasharray: 4 3; }
svg .head { fill: var(--ink); stroke: none; }
svg .life { stroke: var(--line); stroke-width: 1.5px; } svg .mgmt { stroke-dasharray: 5 3; }
"""
_WIDTH = 344
_LETTER = 6.35  # across, of an address
_MIDDLE = 'text-anchor="middle"'


def _svg(height: float, label: str, parts: Iterable[str]) -> str:
    size = f'viewBox="0 0 {_WIDTH} {height:g}"'
    return f'<svg {size} role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def _text(x: float, y: float, said: str, kind: str, more: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{kind}" {more}>{escape(said)}</text>'


def _line(kind: str, *points: tuple[float, float]) -> str:
    return f'<path class="{kind}" d="M{" L".join(f"{x:g} {y:g}" for x, y in points)}"/>'


# -- who is there -----------------------------------------------------------------------------

_LAN, _MGMT = 8, 18  # where the two segments run down
_BOX, _BOX_WIDTH = 30, 177
_LEAF, _LEAF_WIDTH, _LEAF_HEIGHT, _APART = 219, 117, 34, 6
_NAMES = {address: name for name, (_, address) in ENDPOINTS.items()}


def topology(in_family: Callable[[str], str]) -> str:
    """Return a drawing of all hosts, their addresses and what joins them.

    Args:
        in_family: the address of the story's family that stands for an IPv4 one.
    """
    parts: list[str] = []
    top, nodes = 22.0, []
    for title, cluster in (("cluster", FIRST_CLUSTER), ("second cluster", SECOND_CLUSTER)):
        first = top
        parts.append(_text(_BOX, top - 8, title, "f"))
        for node in cluster:
            nodes.append(top + 14)
            leaves = [(pod.name, pod.links["eth0"]) for pod in PODS[node.name]]
            drawn, top = _box(node, _lines(node), leaves, top, in_family)
            parts += drawn
        height = top - first - _APART + 8
        size = f'x="{_BOX - 6}" y="{first - 4:g}" width="{_WIDTH - _BOX + 5}" height="{height:g}"'
        parts.append(f'<rect class="group" rx="8" {size}/>')
        top += 24
    leaves = [(name, ROUTER.links[name]) for name in ("loop1", "loop2", "internet")]
    drawn, end = _box(ROUTER, [("eth1", ROUTER.links["eth1"])], leaves, top, in_family)
    parts += drawn
    parts.append(_line("way", (_LAN, nodes[0]), (_LAN, top + 14)))
    parts.append(_line("mgmt", (_MGMT, nodes[0] + 8), (_MGMT, nodes[-1] + 8)))
    for at in (*nodes, top + 14):
        parts.append(_line("way", (_LAN, at), (_BOX, at)))
    parts += [_line("mgmt", (_MGMT, at + 8), (_BOX, at + 8)) for at in nodes]
    said = "solid: the nodes' network (eth1), dashed: management (eth0)"
    parts.append(_text(_LAN - 4, end + 10, said, "f"))
    return _svg(end + 18, "The hosts of the lab and what joins them", parts)


def _lines(node: Host) -> list[tuple[str, str]]:
    """Return what is said in a node's box: a name, and an address."""
    second = [(_NAMES[address.partition("/")[0]], address) for address in node.second.values()]
    return [("eth1", node.links["eth1"]), *second, ("eth0", node.links["eth0"])]


def _box(
    host: Host,
    lines: list[tuple[str, str]],
    leaves: list[tuple[str, str]],
    top: float,
    in_family: Callable[[str], str],
) -> tuple[list[str], float]:
    """Return a host with its pods or networks beside it, and where the next one can begin."""
    own, theirs = 24 + 14 * len(lines), (_LEAF_HEIGHT + _APART) * len(leaves) - _APART
    parts = [_rect(_BOX, top, _BOX_WIDTH, own), _text(_BOX + 7, top + 15, host.name, "n")]
    for row, (name, address) in enumerate(lines):
        y = top + 30 + 14 * row
        parts.append(_text(_BOX + 5, y, name, "f"))
        parts.append(_address(_BOX + _BOX_WIDTH - 5, y, in_family(address), 'text-anchor="end"'))
    trunk = (_BOX + _BOX_WIDTH + _LEAF) / 2
    for row, (name, address) in enumerate(leaves):
        y = top + (_LEAF_HEIGHT + _APART) * row
        parts.append(_line("", (trunk, top + 14), (trunk, y + 14), (_LEAF, y + 14)))
        parts.append(_rect(_LEAF, y, _LEAF_WIDTH, _LEAF_HEIGHT))
        parts.append(_text(_LEAF + 6, y + 13, name, "n"))
        parts.append(_address(_LEAF + 6, y + 27, in_family(address)))
    parts.append(_line("", (_BOX + _BOX_WIDTH, top + 14), (trunk, top + 14)))
    return parts, top + max(own, theirs) + _APART


def _rect(x: float, y: float, width: float, height: float) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="5"/>'


def _address(x: float, y: float, address: str, more: str = "") -> str:
    style = 'style="font-size:9.4px;stroke:none"'
    return _text(x, y, address.partition("/")[0], "a", f"{style} {more}")


# -- where a packet went ----------------------------------------------------------------------

_HEAD, _HEAD_WIDTH = 32, 76
_LEG, _NOTE = 27, 15


@dataclass(frozen=True, slots=True)
class Leg:
    """From one host to the next, or to nobody who would have captured it.

    Attributes:
        source: the packet's as it arrived, or as it left where it was captured nowhere after.
        destination: likewise.
    """

    leaves: str | None
    reaches: str | None
    source: str
    destination: str


def legs(way: Way) -> list[Leg]:
    """Return the legs of a packet's way; none where it was captured nowhere."""
    found = []
    for here, there in pairwise([None, *stops(way), None]):
        shown = (there.came if there else None) or (here.went if here else None)
        if shown is not None:
            ends = here.host if here else None, there.host if there else None
            found.append(Leg(*ends, shown.packet.source, shown.packet.destination))
    return found


def hosts(check: Check) -> list[str]:
    """Return the hosts that a check's packets passed, and those that they should have reached."""
    assert check.trace is not None
    passed = [captured.host for captured in (*check.trace.request, *check.trace.reply)]
    return list(dict.fromkeys([ENDPOINTS[check.sender][0], *passed, ENDPOINTS[check.to][0]]))


def in_words(check: Check) -> str:
    """Return what a drawing shows, for those who do not see it."""
    assert check.trace is not None
    said = []
    for what, way in (("request", check.trace.request), ("reply", check.trace.reply)):
        told = [
            f"{leg.leaves or 'somewhere'} to {leg.reaches or 'nowhere captured'}:"
            f" from {leg.source} to {leg.destination}"
            for leg in legs(way)
        ]
        said.append(f"{what}: " + ("; ".join(told) or "captured nowhere"))
    return ". ".join(said)


def sequence(check: Check) -> str:
    """Return a drawing of the first packet of a check and of its answer, host by host."""
    assert check.trace is not None
    names = hosts(check)
    room = _WIDTH - _HEAD_WIDTH - 2
    at = {name: 1 + _HEAD_WIDTH / 2 + room * n / (len(names) - 1) for n, name in enumerate(names)}
    rows = list(_rows(check, at))
    height = _HEAD + 4 + sum(row.height for row in rows) + 4
    parts = [_line("life", (x, _HEAD), (x, height)) for x in at.values()]
    for name, x in at.items():
        parts.append(_rect(x - _HEAD_WIDTH / 2, 1, _HEAD_WIDTH, _HEAD - 2))
        ends = (end for end in (check.sender, check.to) if ENDPOINTS[end][0] == name != end)
        below = next(ends, "")
        parts.append(_text(x, 14 if below else 20, name, "n", _MIDDLE))
        parts.append(_text(x, 27, below.rpartition("/")[2], "f", _MIDDLE))
    y = _HEAD + 4.0
    for row in rows:
        parts += row.draw(y)
        y += row.height
    return _svg(height, in_words(check), parts)


@dataclass(frozen=True, slots=True)
class _Row:
    height: int
    draw: Callable[[float], list[str]]


def _rows(check: Check, at: dict[str, float]) -> Iterator[_Row]:
    assert check.trace is not None
    for way, back in ((check.trace.request, False), (check.trace.reply, True)):
        before: str | None = None
        for leg in legs(way):
            translated = leg.destination if back else leg.source
            if before is not None and leg.leaves is not None and translated != before:
                said = "destination changed back" if back else "source changed"
                yield _note(at[leg.leaves], said, "node")
            before = translated
            yield _arrow(check, leg, at, back=back)
            if leg.reaches is None:
                yield _note(at[leg.leaves or check.sender], "captured nowhere after this", "bad")
        if not way:
            host = ENDPOINTS[check.to if back else check.sender][0]
            what = "no reply was captured" if back else "no request was captured"
            yield _note(at[host], what, "bad" if check.expected_reply or not back else "f")


def _note(x: float, said: str, kind: str) -> _Row:
    half = 3.1 * len(said)
    middle = min(max(x, half + 2), _WIDTH - half - 2)
    halo = f'{_MIDDLE} style="paint-order:stroke;stroke:var(--paper);stroke-width:4px"'
    return _Row(_NOTE, lambda y: [_text(middle, y + 11, said, f"f c {kind}", halo)])


def _arrow(check: Check, leg: Leg, at: dict[str, float], *, back: bool) -> _Row:
    left = -1 if back else 1
    start = at[leg.leaves] if leg.leaves else at[leg.reaches or check.to] - left * 40
    end = at[leg.reaches] if leg.reaches else start + left * 40
    toward = 1 if end > start else -1
    half = _LETTER * (len(leg.source) + len(leg.destination) + 3) / 2
    middle = min(max((start + end) / 2, half + 2), _WIDTH - half - 2)
    translated = leg.destination if back else leg.source
    kind = "own c" if translated == check.source else "node c"
    source, destination = (
        f'<tspan class="{kind}">{escape(end)}</tspan>' if end == translated else escape(end)
        for end in (leg.source, leg.destination)
    )

    def draw(y: float) -> list[str]:
        tip = y + 19
        label = f'<text x="{middle:g}" y="{y + 12:g}" class="a" {_MIDDLE}>{source} → {destination}'
        line = _line("way back" if back else "way", (start, tip), (end - toward * 5, tip))
        if leg.reaches is None:
            head = _line("way", (end - 4, tip - 4), (end + 4, tip + 4))
            head += _line("way", (end - 4, tip + 4), (end + 4, tip - 4))
        else:
            wings = (end - toward * 7, tip - 4), (end - toward * 7, tip + 4)
            head = _line("head", (end, tip), *wings)
        return [line, head, f"{label}</text>"]

    return _Row(_LEG, draw)
