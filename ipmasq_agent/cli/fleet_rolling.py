"""What the verbs share that bring a document to nodes: waiting, and telling what came of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from ipmasq_agent.cli.fleet import FleetProgress, fleet_of, standing
from ipmasq_agent.cli.options import shared
from ipmasq_agent.cli.output import remark

if TYPE_CHECKING:
    from ipmasq_agent.fleet.agents import AgentPod
    from ipmasq_agent.fleet.canary import Canary
    from ipmasq_agent.fleet.cluster import Fleet
    from ipmasq_agent.fleet.nodes import NodeState
    from ipmasq_agent.fleet.published import Published, Publisher
    from ipmasq_agent.fleet.rollout import Rollout

F = TypeVar("F", bound=Callable[..., Any])

PAUSE = 1.0
"""Seconds between looks at nodes."""
HOW_ON = "`kubectl ipmasq status` tells how far it is, and `kubectl ipmasq rollback` takes it back"
_WITHDRAWN = "`kubectl ipmasq status` tells how far it is, and nothing more is to be done"

_OPTIONS = (
    click.option("-y", "--yes", is_flag=True, help="Do not ask."),
    click.option(
        "--force-conflicts",
        "force",
        is_flag=True,
        help="Take the document over from another field manager, as kubectl apply or Helm.",
    ),
    click.option(
        "--tolerate",
        metavar="COUNT",
        type=click.IntRange(min=0),
        default=0,
        help="How many nodes may fail.",
    ),
    click.option(
        "--grace",
        metavar="SECONDS",
        type=click.FloatRange(min=0),
        default=30.0,
        help="How long a node may be unready or silent before it has failed.",
    ),
    click.option(
        "--timeout",
        metavar="SECONDS",
        type=click.FloatRange(min=0),
        default=600.0,
        help="How long a node has to take the document in.",
    ),
)


rollout_options = shared(*_OPTIONS)
"""Those that say how long nodes are waited for, and how many may fail."""


class Ending(NamedTuple):
    """What became of a document.

    Attributes:
        word: for programs.
        text: for people.
        code: the exit status.
        facts: more for programs.
    """

    word: str
    text: str
    code: int
    facts: Mapping[str, Any] = {}


def confirmed(question: str) -> bool:
    """Ask; true for a yes.

    Raises:
        UsageError: there is nobody to ask.
    """
    from ipmasq_agent.errors import UsageError

    if not sys.stdin.isatty():
        raise UsageError("standard input is no terminal on which to ask", remedy="give --yes")
    try:
        return click.confirm(question, err=True)
    except click.Abort as cause:
        raise KeyboardInterrupt from cause


def whole_fleet(options: Mapping[str, Any]) -> Fleet:
    """Return the fleet that options mean, which is all of one.

    Raises:
        UsageError: a node is named.
    """
    from ipmasq_agent.errors import UsageError

    if options["nodes"]:
        raise UsageError("a document is for all nodes of the cluster", remedy="leave --node out")
    return fleet_of(options)


def heard(fleet: Fleet) -> tuple[list[AgentPod], list[NodeState]]:
    """Return the agents that there are, and what they say.

    Raises:
        SourceError: none can be asked.
    """
    from ipmasq_agent.errors import SourceUnavailable

    agents = fleet.agents()
    progress = FleetProgress("asking nodes", len(agents))
    try:
        states = fleet.states(agents, progress)
    finally:
        progress.end()
    if all(each.silent is not None for each in states):
        raise SourceUnavailable(f"no node answers; {states[0].node}: {states[0].silent}")
    return agents, states


def roll(
    fleet: Fleet,
    publisher: Publisher,
    target: str,
    nodes: Sequence[NodeState],
    agents: Sequence[AgentPod],
    terms: Mapping[str, Any],
    how_on: str | None = HOW_ON,
) -> Rollout:
    """Wait until nodes hold a document that was written, or have failed.

    Args:
        fleet: whom to ask.
        publisher: where the document was written.
        target: hash of the document.
        nodes: who is waited for.
        agents: those that there are.
        terms: the values of ``rollout_options``.
        how_on: what to tell whoever ends this; None where the caller does.

    Raises:
        Changed: somebody else has written another document since.
    """
    from ipmasq_agent.fleet.rollout import NextStep, Rollout

    rollout = Rollout(
        target,
        frozenset(each.node for each in nodes),
        grace=terms["grace"],
        limit=terms["timeout"],
        tolerated=terms["tolerate"],
    )
    progress = FleetProgress(f"nodes that hold {target}", len(rollout.nodes))
    begun = time.monotonic()
    try:
        while True:
            publisher.insist(target)
            pending = rollout.pending
            states = fleet.states([each for each in agents if each.node in pending])
            if any(each.silent is not None for each in states):
                agents = fleet.agents()
            present = [each.node for each in agents]
            rollout = rollout.after(states, time.monotonic() - begun, present)
            trouble = len(rollout.troubled)
            progress(len(rollout.holding), f", {trouble} in trouble" if trouble else "")
            if rollout.step is not NextStep.WAIT:
                return rollout
            if pending <= rollout.holding:
                continue  # all are asked once more, at once
            time.sleep(PAUSE)
    except KeyboardInterrupt:
        if how_on is not None:
            click.echo(f"\n{target} stays written: {how_on}", err=True)
        raise
    finally:
        progress.end()


def spread(
    fleet: Fleet,
    publisher: Publisher,
    target: str,
    before: Published,
    now: Published,
    waited: Sequence[NodeState],
    agents: Sequence[AgentPod],
    terms: Mapping[str, Any],
) -> Ending:
    """Wait until all nodes hold a document that was written, or put the one before back.

    A canary of it has done its part then, either way, and is taken away.

    The arguments are those of ``roll``, and ``before``, what it replaced, and ``now``, it as it
    was written; ``waited`` is who is waited for.

    Raises:
        Changed: somebody else has written another document since.
    """
    from ipmasq_agent.fleet.rollout import NextStep

    rollout = roll(fleet, publisher, target, waited, agents, terms)
    facts: dict[str, Any] = {"failed": rollout.troubled}
    told("failed", rollout)
    canary = standing(publisher)
    if canary is not None and canary.digest != target:
        canary = None
    if rollout.step is NextStep.DONE:
        if canary is not None:
            publisher.canary.write(None, canary.document)
        text = f"{target} is in force on {len(rollout.holding)} nodes"
        return Ending("rolled out", text, 0, facts)
    if before.digest == target:
        text = f"{target} stays: which document was before it is not known"
        return Ending("failed", text, 1, facts)
    publisher.write(before.content, now)
    if canary is not None:
        publisher.canary.write(None, canary.document)
    click.echo(f"{before.digest} is written again", err=True)
    back = roll(fleet, publisher, before.digest, waited, agents, terms)
    told("not back", back)
    text = f"taken back: {before.digest} is in force on {len(back.holding)} of {len(waited)} nodes"
    return Ending("rolled back", text, 1, {**facts, "notBack": back.troubled})


def withdrawn(
    fleet: Fleet,
    publisher: Publisher,
    canary: Canary,
    states: Sequence[NodeState],
    agents: Sequence[AgentPod],
    terms: Mapping[str, Any],
) -> tuple[str, Rollout]:
    """Take a document away from those that try it, and return what they hold, and who does.

    The arguments are those of ``roll``; ``states`` are of all nodes.

    Raises:
        Changed: it is not there as it was any more.
    """
    nodes, place = set(canary.among(each.node for each in states)), publisher.canary
    place.insist(canary.digest)
    place.write(None, place.read())  # who tries it may have been changed since
    everyone = publisher.read().digest
    click.echo(f"the canary is withdrawn; {everyone} is for all nodes", err=True)
    waited = [each for each in states if each.node in nodes and each.silent is None]
    back = roll(fleet, publisher, everyone, waited, agents, terms, _WITHDRAWN)
    told("not back", back)
    return everyone, back


def told(kind: str, rollout: Rollout) -> None:
    """Say which nodes have failed, and why."""
    from ipmasq_agent.fleet.preview import grouped

    remark("error", grouped(kind, rollout.troubled))
