"""``ports``: how many source ports translated connections have left, by destination."""

from __future__ import annotations

import os
import time
from typing import Any

import click

from ipmasq_agent.answers.ports import PortLook, looked
from ipmasq_agent.answers.table import aligned
from ipmasq_agent.cli.options import (
    BACKEND,
    ONLY_WRITTEN,
    RULES,
    SOCKET,
    hiding,
    settings_of,
    shared,
    state_option,
)
from ipmasq_agent.cli.output import emit, output_option, remark
from ipmasq_agent.policy.ports import MOST

_KEPT = "ports"


@hiding(*ONLY_WRITTEN)
@click.command(
    "ports",
    epilog="""\b
Examples:
  ipmasq-agent ports
  ipmasq-agent ports --top 50 -o json
""",
)
@click.option(
    "--top",
    type=click.IntRange(1, MOST),
    default=10,
    metavar="COUNT",
    help="How many destinations to show, the fullest first.",
)
@shared(BACKEND, *RULES, SOCKET)
@state_option("Where it is kept what was counted, to tell growth the next time; empty for nowhere.")
@output_option
def command(top: int, state_dir: str, output: str, **options: Any) -> None:
    """Show how many source ports translated connections use toward each destination.

    Of the connections to one destination (address, port and protocol) that leave with one address
    no two have the same port: once all are in use, new ones fail. Growth is since this was last
    asked.
    """
    from ipmasq_agent.cli.questions import here
    from ipmasq_agent.host.sysctl import connections
    from ipmasq_agent.planes.live import ports_taken

    with here(settings_of(options), at_work=True) as node:
        name, found = node.plane.name, ports_taken(node.plane, node.ports())
    look, note = _compared(looked(found)._replace(tracked=connections()), state_dir)
    rows = look.rows[:top]
    answer = {
        "backend": name,
        "ports": [row.as_data() for row in rows],
        "uncounted": look.missed,
        "secondsSince": None if look.seconds is None else round(look.seconds, 1),
        "warnings": list(look.warnings),
    }
    emit(answer, output, lambda: "\n".join(_lines(look, top)))
    remark("warning", (*look.warnings, *([note] if note else [])))


def _lines(look: PortLook, top: int) -> list[str]:
    if not look.rows:
        return ["no connection is translated"]
    since = "" if look.seconds is None else f" in {look.seconds:.0f} s"
    table = [
        ("destination", "protocol", "leaves as", "ports", "used", "of", "left", f"grown{since}")
    ]
    for row in look.rows[:top]:
        grown = "-" if row.grown is None else f"{row.grown:+}"
        numbers = f"{row.used} ({row.fill:.0%})", str(row.of), str(row.left), grown
        table.append((*row.labels, *numbers))
    lines = aligned(table)
    if len(look.rows) > top:
        lines.append("... and more destinations; --top shows them")
    if look.missed:
        lines.append(f"There are very many destinations: each may use up to {look.missed} more.")
    return lines


def _compared(look: PortLook, state_dir: str) -> tuple[PortLook, str | None]:
    """Return the look beside the one before, for which it is kept; and why it is not, if so."""
    from ipmasq_agent.errors import SourceError
    from ipmasq_agent.sources.state_dir import StateDir

    if not state_dir:
        return look, None
    namespace = os.stat("/proc/self/ns/net").st_ino
    kept, now = StateDir(state_dir, f"ports; {namespace}"), time.clock_gettime(time.CLOCK_BOOTTIME)
    try:
        before = kept.read(_KEPT)
        if before is not None:
            look = look.since(before["counted"], now - before["at"])
        kept.write(_KEPT, {"at": now, "counted": look.counted()})
    except SourceError as error:
        return look, f"growth cannot be told the next time: {error.message}"
    return look, None
