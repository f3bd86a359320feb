"""``kubectl ipmasq status``: what is in force on each node?"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from ipmasq_agent.cli.fleet import (
    FleetProgress,
    document_option,
    fleet_of,
    fleet_options,
    publisher_of,
    standing,
)
from ipmasq_agent.cli.output import emit, output_option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ipmasq_agent.fleet.canary import Canary
    from ipmasq_agent.fleet.cluster import Fleet
    from ipmasq_agent.fleet.nodes import NodeState
    from ipmasq_agent.fleet.published import Published, Publisher


@click.command(
    "status",
    epilog="""\b
Examples:
  kubectl ipmasq status
  kubectl ipmasq status --node node-17 -o json
  kubectl ipmasq status --watch
""",
)
@click.option("-w", "--watch", is_flag=True, help="Go on, and show each node that changes.")
@click.option(
    "--every",
    metavar="SECONDS",
    type=click.FloatRange(min=0.1),
    default=5.0,
    help="How often --watch asks.",
)
@fleet_options
@document_option
@output_option
def command(watch: bool, every: float, configmap: str, output: str, **options: Any) -> int:
    """Say of each node which data plane masquerades there, and whether it is in sync.

    In sync is a node whose kernel holds the cluster's document, with nothing else before it. HASH
    and REVISION are of the document in force there, SINCE is when it came; PORTS is how full the
    fullest pool of source ports is, DRIFT how often the agent undid what others had done. A node
    that does not answer in time is listed with the reason, and not waited for.

    Exit status: 0 all in sync, 1 not, 2 when the cluster cannot be asked.
    """
    from ipmasq_agent.fleet.nodes import table

    fleet = fleet_of(options)
    publisher = publisher_of(fleet, configmap)
    document, canary, states = _look(fleet, publisher)
    expected = document and document.digest
    lines = table(states, expected)
    data = _data(document, canary, states)
    below = "", *_below(publisher, document, canary, states)
    emit(data, output, lambda: "\n".join([*lines, *below]))
    while watch:
        time.sleep(every)
        before = dict(zip((each.node for each in states), states, strict=True)), expected
        document, canary, states = _look(fleet, publisher)
        expected = document and document.digest
        known = before[0] if before[1] == expected else {}
        changed = [each for each in states if known.get(each.node) != each]
        if changed:
            data = _data(document, canary, changed)
            emit(data, output, partial("\n".join, table(changed, expected, head=False)))
    return 0 if all(each.good(expected) for each in states) else 1


def _look(
    fleet: Fleet, publisher: Publisher
) -> tuple[Published | None, Canary | None, list[NodeState]]:
    """Return the cluster's document, if we may read it, a canary, and what all agents say."""
    from ipmasq_agent.errors import AccessDenied
    from ipmasq_agent.fleet.nodes import trying

    try:
        document = publisher.read()
    except AccessDenied as error:
        click.echo(f"warning: {error}", err=True)
        document = None
    canary = standing(publisher)
    agents = fleet.agents()
    progress = FleetProgress("asking nodes", len(agents))
    try:
        states = fleet.states(agents, progress)
    finally:
        progress.end()
    if canary is not None:
        states = trying(states, canary.among(each.node for each in states), canary.digest)
    return document, canary, states


def _data(
    document: Published | None, canary: Canary | None, states: Sequence[NodeState]
) -> dict[str, Any]:
    expected = document and document.digest
    return {
        "inSync": all(each.good(expected) for each in states),
        "document": document and {"revision": document.version, "hash": document.digest},
        "canary": canary and canary.as_data([each.node for each in states]),
        "nodes": [each.as_data(expected) for each in states],
    }


def _below(
    publisher: Publisher,
    document: Published | None,
    canary: Canary | None,
    states: Sequence[NodeState],
) -> list[str]:
    """Return what there is to say of all nodes together, and how to go on."""
    from ipmasq_agent.fleet.nodes import summary

    lines = [summary(states, document and document.digest, publisher.place)]
    if canary is not None:
        lines.append(canary.line([each.node for each in states]))
    if document is None:
        return lines
    if not all(each.good(document.digest) for each in states):
        kept = publisher.kept()
        if kept is not None and kept.replaced_by == document.digest != kept.digest:
            lines.append(
                f"`kubectl ipmasq rollback` goes back to the document before it ({kept.digest})"
            )
    return lines
