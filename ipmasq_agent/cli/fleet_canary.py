"""``kubectl ipmasq canary``: a document that a few nodes try, from whichever machine that began."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ipmasq_agent.cli.fleet import document_option, fleet_options, publisher_of, standing
from ipmasq_agent.cli.fleet_rolling import (
    confirmed,
    heard,
    rollout_options,
    spread,
    whole_fleet,
    withdrawn,
)
from ipmasq_agent.cli.output import emit, output_option, remark

if TYPE_CHECKING:
    from ipmasq_agent.fleet.canary import Canary
    from ipmasq_agent.fleet.published import Publisher


@click.group(
    "canary",
    epilog="""\b
Examples:
  kubectl ipmasq apply -f new.yaml --canary 5% --no-promote
  kubectl ipmasq canary status
  kubectl ipmasq canary promote
  kubectl ipmasq canary withdraw
""",
)
def command() -> None:
    """Say how a document stands that a few nodes try, give it to all nodes, or to none.

    It is in the ConfigMap NAME-canary, with who wrote it and when, and stays until somebody ends
    it. `kubectl delete configmap NAME-canary` withdraws it without this program.
    """


@command.command(
    "status",
    epilog="""\b
Examples:
  kubectl ipmasq canary status
  kubectl ipmasq canary status -o json
""",
)
@fleet_options
@document_option
@output_option
def status(configmap: str, output: str, **options: Any) -> int:
    """Say which nodes try which document, since when, and how they are.

    Exit status: 0 all of them hold it, or there is none, 1 some do not, 2 on an error.
    """
    from ipmasq_agent.fleet.nodes import table, trying

    fleet = whole_fleet(options)
    publisher = publisher_of(fleet, configmap)
    canary = standing(publisher)
    if canary is None:
        emit({"canary": None, "nodes": []}, output, lambda: "no node tries another document")
        return 0
    states = heard(fleet)[1]
    names = [each.node for each in states]
    tried = trying(states, canary.among(names), canary.digest)
    shown = [each for each in tried if each.tried]
    data = {"canary": canary.as_data(names), "nodes": [each.as_data(None) for each in shown]}
    lines = [*table(shown, None), "", canary.line(names)]
    emit(data, output, lambda: "\n".join(lines))
    return 0 if all(each.good(None) for each in shown) else 1


@command.command(
    "promote",
    epilog="""\b
Examples:
  kubectl ipmasq canary promote
  kubectl ipmasq canary promote --yes -o json
""",
)
@rollout_options
@fleet_options
@document_option
@output_option
def promote(yes: bool, force: bool, configmap: str, output: str, **options: Any) -> int:
    """Give the document that a few nodes try to all, as `apply` does, and end the trial.

    Where nodes fail, the document before is for all nodes again, also for those that tried.

    Exit status: 0 the nodes hold it, 1 it was not written or was taken back, 2 on an error.
    """
    from ipmasq_agent.errors import SourceError
    from ipmasq_agent.fleet.canary import BEFORE
    from ipmasq_agent.fleet.nodes import trying
    from ipmasq_agent.fleet.preview import grouped

    fleet = whole_fleet(options)
    publisher = publisher_of(fleet, configmap, force=force)
    canary, now = _there(publisher), publisher.read()
    target, before = canary.digest, now
    agents, states = heard(fleet)
    if now.digest == target:
        kept = publisher.kept()
        before = kept if kept is not None and kept.replaced_by == target else now
        waited = [each for each in states if each.silent is None]
    else:
        publisher.write(canary.document.content, now, dry=True)
        over = canary.about.get(BEFORE, now.digest)
        if over != now.digest:
            held = f"it holds {now.digest}, and {over} when the canary was begun"
            remark("warning", [f"{publisher.place} was written since: {held}"])
        names = [each.node for each in states]
        tried = trying(states, canary.among(names), target)
        ill = {each.node: each.why_not(None) for each in tried if each.tried}
        ill = {node: why for node, why in ill.items() if why}
        if ill:
            raise SourceError(
                "; ".join(grouped("not in sync with it", ill)),
                remedy="`kubectl ipmasq canary withdraw`, or see to those nodes first",
            )
        question = f"{canary.line(names)}\nPut it in the place of {now.digest}, for all nodes?"
        if not yes and not confirmed(question):
            return 1
        waited = [each for each in states if each.ready]
        others = {each.node: each.why_not(None) for each in states if not each.ready}
        remark("warning", grouped("not waited for", others))
        publisher.keep(before, target)
        now = publisher.write(canary.document.content, before)
    outcome = spread(fleet, publisher, target, before, now, waited, agents, options)
    answer = {"hash": target, "before": before.digest, **outcome.facts, "outcome": outcome.word}
    emit(answer, output, lambda: outcome.text)
    return outcome.code


@command.command(
    "withdraw",
    epilog="""\b
Examples:
  kubectl ipmasq canary withdraw
""",
)
@rollout_options
@fleet_options
@document_option
@output_option
def withdraw(yes: bool, force: bool, configmap: str, output: str, **options: Any) -> int:
    """Take the document away from the nodes that try it: they go by that of all nodes again.

    Exit status: 0 they hold that, 1 some do not, or it was not withdrawn, 2 on an error.
    """
    fleet = whole_fleet(options)
    publisher = publisher_of(fleet, configmap, force=force)
    canary = _there(publisher)
    agents, states = heard(fleet)
    names = [each.node for each in states]
    if not yes and not confirmed(f"{canary.line(names)}\nWithdraw it?"):
        return 1
    everyone, back = withdrawn(fleet, publisher, canary, states, agents, options)
    answer = {"withdrawn": canary.digest, "hash": everyone, "notBack": back.troubled}
    emit(answer, output, lambda: f"{everyone} is in force on {len(back.holding)} nodes")
    return 1 if back.troubled else 0


def _there(publisher: Publisher) -> Canary:
    from ipmasq_agent.errors import SourceError

    canary = standing(publisher)
    if canary is None:
        raise SourceError(
            f"no node tries another document: {publisher.canary.place} does not exist",
            remedy="`kubectl ipmasq apply -f FILE --canary NODES` begins it",
        )
    return canary
