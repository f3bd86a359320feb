"""What ``apply --canary`` does before a document is for all: a few nodes hold it, watched."""

from __future__ import annotations

import getpass
import math
import socket
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from ipmasq_agent.cli.fleet import FleetProgress
from ipmasq_agent.cli.fleet_rolling import PAUSE, Ending, roll, told, withdrawn
from ipmasq_agent.cli.options import shared

if TYPE_CHECKING:
    from ipmasq_agent.fleet.agents import AgentPod
    from ipmasq_agent.fleet.canary import Canary, Meant
    from ipmasq_agent.fleet.cluster import Fleet
    from ipmasq_agent.fleet.findings import Findings
    from ipmasq_agent.fleet.nodes import NodeState
    from ipmasq_agent.fleet.published import Published, Publisher
    from ipmasq_agent.fleet.trial import Trial

HOW_ON = (
    "`kubectl ipmasq canary status` tells how it is, `canary promote` gives it to all nodes, "
    "`canary withdraw` to none; until then it stays as it is"
)
_EVERY = 10.0  # seconds between looks at nodes that are watched, at the most
_LOOKS = 10  # at the least
_DOCTOR = 60.0  # seconds between two visits of the doctor


class Span(click.ParamType["float"]):
    """A duration as Go writes it, in seconds."""

    name = "DURATION"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Return the seconds of a text."""
        from ipmasq_agent.config.durations import parse_duration

        if isinstance(value, float):
            return value
        try:
            return max(0.0, parse_duration(value) / 1e9)
        except ValueError as error:
            self.fail(str(error), param, ctx)


_OPTIONS = (
    click.option(
        "--canary",
        metavar="NODES",
        help="Which nodes try it first: 5%, label=KEY=VALUE, or node=NAME,NAME.",
    ),
    click.option(
        "--for",
        "span",
        type=Span(),
        default="10m",
        show_default=True,
        help="How long those are watched, once they hold it.",
    ),
    click.option(
        "--no-promote",
        is_flag=True,
        help="Leave it with them then, until `canary promote` or `canary withdraw`.",
    ),
)

canary_options = shared(*_OPTIONS)
"""Those that say which nodes try a document first, and how long."""


class CanaryTrial:
    """A document that some nodes are to hold first.

    Args:
        fleet: whom to ask.
        publisher: of the document of all nodes.
        meant: who is to try it.
        agents: those that there are.
        states: what they say, before.
        terms: the values of ``rollout_options`` and ``canary_options``.

    Raises:
        UsageError: no node is meant, or one that would not try it.
        SourceError: nodes cannot be listed.
    """

    def __init__(
        self,
        fleet: Fleet,
        publisher: Publisher,
        meant: Meant,
        agents: Sequence[AgentPod],
        states: Sequence[NodeState],
        terms: Mapping[str, Any],
    ) -> None:
        from ipmasq_agent.fleet.trial import few_of, tried_on

        self._fleet, self._publisher, self._place = fleet, publisher, publisher.canary
        self._agents, self._states, self._terms = agents, states, terms
        nodes = {each.node for each in states}
        labelled = fleet.labelled(meant.label) if meant.label else frozenset()
        self._nodes = meant.among(nodes, labelled)
        self._annotation = meant.share or ", ".join(self._nodes)
        self._refuse_who_would_not_try()
        self._tried = [each for each in states if each.node in self._nodes and each.ready]
        self._others = few_of(nodes - set(self._nodes))
        self.question = f"{self._place.place}, for {tried_on(self._nodes)}"

    def _refuse_who_would_not_try(self) -> None:
        from ipmasq_agent.errors import UsageError
        from ipmasq_agent.fleet.preview import grouped

        place = self._publisher.place
        deaf = {
            each.node: each.source
            for each in self._states
            if each.node in self._nodes and each.silent is None and not each.watches_canary(place)
        }
        if deaf:
            raise UsageError(
                "; ".join(grouped("read no canary", deaf)),
                remedy=f"run agents with --canary-configmap naming {self._place.place}; "
                "docs/install.md says how",
            )
        if not any(each.ready for each in self._states if each.node in self._nodes):
            raise UsageError("none of the nodes that are to try it is ready")

    def run(self, document: bytes, stands: Canary | None, before: Published) -> Ending | None:
        """Give it to them and watch; return what came of it, or None where it is for all.

        Args:
            document: to be tried.
            stands: a canary of it that is there already.
            before: the document of all nodes.

        Raises:
            Changed: somebody else has written another one since.
            SourceError: it cannot be written, or nobody can be asked.
        """
        from ipmasq_agent.errors import SourceUnavailable
        from ipmasq_agent.fleet.canary import BEFORE, BEGUN, BY, Canary
        from ipmasq_agent.sources.canary import NODES

        if stands is None:
            healthy = self._doctor()
            about = {
                NODES: self._annotation,
                BEGUN: _time(),
                BY: _who(),
                BEFORE: before.digest,
            }
            canary = Canary(self._place.write(document, self._place.read(), about=about))
        else:
            click.echo(f"{self._place.place} holds {stands.digest} already", err=True)
            self._nodes = stands.among(each.node for each in self._states)
            self._tried = [each for each in self._states if each.node in self._nodes and each.ready]
            healthy, canary = self._doctor(), stands
        try:
            canary, facts, reason = self._tried_out(document, canary, healthy)
        except (KeyboardInterrupt, SourceUnavailable):
            click.echo(f"\n{canary.digest} stays with those nodes: {HOW_ON}", err=True)
            raise
        if reason is not None:
            everyone, back = withdrawn(
                *(self._fleet, self._publisher, canary, self._states, self._agents, self._terms)
            )
            facts |= {"reason": reason, "notBack": back.troubled}
            text = f"withdrawn, as {reason}: {everyone} is in force on {len(back.holding)} nodes"
            return Ending("withdrawn", text, 1, facts)
        if self._terms["no_promote"]:
            text = f"{canary.digest} is good on {len(self._tried)} nodes; {HOW_ON}"
            return Ending("tried", text, 0, facts)
        return None

    def _tried_out(
        self, document: bytes, canary: Canary, healthy: Findings | None
    ) -> tuple[Canary, dict[str, Any], str | None]:
        """Wait for those nodes, and watch them.

        Returns:
            What stands then, more for programs, and why it is to be withdrawn.
        """
        from ipmasq_agent.fleet.canary import UNTIL, Canary
        from ipmasq_agent.fleet.rollout import NextStep

        target = canary.digest
        rollout = roll(
            *(self._fleet, self._place, target, self._tried, self._agents, self._terms, None)
        )
        told("failed", rollout)
        facts: dict[str, Any] = {"canary": self._nodes, "failed": rollout.troubled}
        if rollout.step is not NextStep.DONE:
            reasons = [f"{node}: {why}" for node, why in rollout.troubled.items()]
            return canary, facts, "; ".join(reasons)
        seconds = canary.left(datetime.now(UTC))
        if seconds is None:
            seconds = self._terms["span"]
            about = {**canary.about, UNTIL: _time(seconds)}
            canary = Canary(self._place.write(document, canary.document, about=about))
        return canary, facts, self._watched(target, seconds, healthy).reason

    def _watched(self, target: str, seconds: float, healthy: Findings | None) -> Trial:
        """Return what has become of it after some seconds, or when it is to be withdrawn."""
        from ipmasq_agent.fleet.rollout import NextStep, Rollout
        from ipmasq_agent.fleet.trial import Trial

        terms, nodes = self._terms, frozenset(each.node for each in self._tried)
        looked = nodes | frozenset(self._others)
        rollout = Rollout(target, nodes, terms["grace"], math.inf, terms["tolerate"])
        trial = Trial(rollout, seconds)
        trial = trial.begun(each for each in self._states if each.node in looked)
        pause = min(_EVERY, max(PAUSE / 5, seconds / _LOOKS))
        progress = FleetProgress(f"seconds of {target} on {len(nodes)} nodes", int(seconds))
        begun = visited = time.monotonic()
        try:
            while True:
                self._place.insist(target)
                asked = [each for each in self._agents if each.node in looked]
                states = self._fleet.states(asked)
                if any(each.silent is not None for each in states):
                    self._agents = self._fleet.agents()
                findings: Sequence[str] = ()
                moment = time.monotonic() - begun
                if healthy and (moment >= seconds or time.monotonic() - visited >= _DOCTOR):
                    visited, seen = time.monotonic(), self._doctor()
                    findings = seen.since(healthy) if seen else ()
                present = [each.node for each in self._agents]
                trial = trial.after(states, moment, present, findings)
                progress(min(int(moment), int(seconds)))
                if trial.step is not NextStep.WAIT:
                    return trial
                time.sleep(pause)
        finally:
            progress.end()

    def _doctor(self) -> Findings | None:
        """Return what bites on canaries; None where we may not ask."""
        from ipmasq_agent.cli.fleet_doctor import looked_at
        from ipmasq_agent.errors import AccessDenied

        nodes = {each.node for each in self._tried}
        try:
            return looked_at(self._fleet, [each for each in self._agents if each.node in nodes])[0]
        except AccessDenied as error:
            click.echo(f"warning: what doctor finds is not told: {error}", err=True)
            return None


def _time(later: float = 0.0) -> str:
    return f"{datetime.now(UTC) + timedelta(seconds=later):%FT%TZ}"


def _who() -> str:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # no name for our number
        user = "somebody"
    return f"{user}@{socket.gethostname()}"
