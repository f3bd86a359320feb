"""``kubectl ipmasq observe``: connections of all nodes as they are made."""

from __future__ import annotations

import json
from typing import Any

import click

from ipmasq_agent.cli.fleet import FleetProgress, fleet_of, fleet_options
from ipmasq_agent.cli.output import remark


@click.command(
    "observe",
    epilog="""\b
Examples:
  kubectl ipmasq observe
  kubectl ipmasq observe --node node-1 --node node-2 -- --to 10.10.0.0/16 --verdict masquerade
  kubectl ipmasq observe -o json -- --pod default/client
""",
)
@click.argument("flags", metavar="[-- FLAGS...]", nargs=-1)
@fleet_options
@click.option(
    "-o",
    "--output",
    type=click.Choice(["text", "json"]),
    default="text",
    help="As columns, or as one object a line.",
)
def command(flags: tuple[str, ...], output: str, **options: Any) -> int:
    """Show connections of all nodes as they are made, by their time.

    FLAGS are those of `ipmasq-agent observe`, which runs on each node until this ends. Times are of
    the nodes' own clocks; a line is held for a second for an earlier one.

    Exit status: 0, or 2 where no node can be observed.
    """
    from ipmasq_agent.errors import MALFORMED, AgentError, SourceUnavailable
    from ipmasq_agent.fleet.nodes import plain
    from ipmasq_agent.fleet.preview import grouped
    from ipmasq_agent.fleet.streams import Merged

    fleet = fleet_of(options)
    agents = fleet.agents()
    words = ["observe", *flags, "-o", "json"]
    progress = FleetProgress("beginning on nodes", len(agents))
    try:
        begun = fleet.each(agents, lambda agent: fleet.follow(agent, words), progress)
    finally:
        progress.end()
    silent = {node: each.message for node, each in begun.items() if isinstance(each, AgentError)}
    remark("error", grouped("cannot be observed", silent))
    programs = {n: each for n, each in begun.items() if not isinstance(each, AgentError)}
    if not programs:
        raise SourceUnavailable("no node can be observed")

    def moment(line: bytes) -> str:
        try:
            return str(json.loads(line)["time"] or "")
        except MALFORMED:
            return ""

    def ended(node: str, why: str) -> None:
        click.echo(f"error: {node}: {why or 'it ended'}", err=True)

    merged = Merged(programs, moment, ended)
    width = max(map(len, programs))
    try:
        for node, line in merged.lines():
            try:
                seen = json.loads(line)
                shown = f"{node:{width}}  {plain(in_words(seen))}"
                shown = json.dumps({"node": node, **seen}) if output == "json" else shown
            except MALFORMED:
                click.echo(f"error: {node} tells of no connection: {plain(repr(line))}", err=True)
            else:
                click.echo(shown)
    finally:
        merged.close()
    return 0


def in_words(seen: dict[str, Any]) -> str:
    """Return a connection in a line, from what ``observe -o json`` says of it.

    Raises:
        one of MALFORMED: it says something else.
    """
    ((protocol, ports),) = seen["l4"].items()
    ends = []
    for side in ("source", "destination"):
        pod = seen[side]
        name = f"{pod['namespace']}/{pod['pod_name']}" if pod else seen["IP"][side]
        port = ports.get(f"{side}_port")
        ends.append(f"{name}:{port}" if port is not None else name)
    left = seen["left_as"]
    as_what = f"{left['address']}:{left['port']}" if "source_xlated" in seen["IP"] else "itself"
    row = (seen["time"], protocol, ends[0], "→", ends[1], "as", as_what, seen["verdict"])
    return "  ".join(map(str, (*row, seen["reason"])))
