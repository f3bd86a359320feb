"""``kubectl ipmasq apply``: a document for all nodes, watched until they hold it, or taken back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ipmasq_agent.cli.fleet import document_option, fleet_options, publisher_of, standing
from ipmasq_agent.cli.fleet_documents import file_option, new_document, previewed
from ipmasq_agent.cli.fleet_rolling import (
    Ending,
    confirmed,
    heard,
    rollout_options,
    spread,
    whole_fleet,
)
from ipmasq_agent.cli.fleet_trial import CanaryTrial, canary_options
from ipmasq_agent.cli.output import emit, output_option, remark

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ipmasq_agent.fleet.agents import AgentPod
    from ipmasq_agent.fleet.cluster import Fleet
    from ipmasq_agent.fleet.preview import Preview


@click.command(
    "apply",
    epilog="""\b
Examples:
  kubectl ipmasq apply -f new.yaml
  kubectl ipmasq apply -f new.yaml --yes --timeout 120
  kubectl ipmasq apply -f new.yaml --canary 5% --for 30m
  kubectl ipmasq apply -f new.yaml --canary label=pool=edge --no-promote
  kubectl ipmasq apply -f - --yes --tolerate 3 -o json < new.yaml
""",
)
@file_option
@canary_options
@rollout_options
@fleet_options
@document_option
@output_option
def command(
    filename: str, yes: bool, force: bool, configmap: str, output: str, **options: Any
) -> int:
    """Give all nodes a new document, and take it back where it does not take.

    Shows which decisions would change where, and how many live connections that concerns; asks;
    keeps the document that there is in the ConfigMap NAME-previous; writes the new one, by
    server-side apply; and waits until every node that was ready holds it and is ready again. Where
    one refuses it, or is unready or silent for longer than --grace, the document before is put
    back.

    With --canary a few nodes hold it first, in the ConfigMap NAME-canary. It is for all once
    nothing has got worse there for as long as --for says, and else it is withdrawn.

    Whoever ends this in the middle leaves the old document or the new one: `status` says which,
    `apply` again goes on, and `rollback` goes back.

    Exit status: 0 the nodes hold it, 1 it was not written or was taken back, 2 on an error.
    """
    from ipmasq_agent.errors import UsageError
    from ipmasq_agent.fleet.canary import Meant
    from ipmasq_agent.fleet.preview import grouped
    from ipmasq_agent.fleet.published import digest_of

    meant = Meant.of(options["canary"]) if options["canary"] else None
    document = new_document(filename)
    fleet = whole_fleet(options)
    publisher = publisher_of(fleet, configmap, force=force)
    target, before = digest_of(document), publisher.read()
    answer: dict[str, Any] = {"hash": target, "before": before.digest, "failed": {}}

    def left(outcome: Ending) -> int:
        data = {**answer, **outcome.facts, "outcome": outcome.word}
        emit(data, output, lambda: outcome.text)
        return outcome.code

    canary = standing(publisher)
    if canary is not None and canary.digest != target:
        raise UsageError(
            f"some nodes try another document ({canary.digest}, {publisher.canary.place})",
            remedy="`kubectl ipmasq canary promote` or `withdraw` first",
        )
    if before.digest == target:
        click.echo(f"{publisher.place} holds {target} already", err=True)
        kept = publisher.kept()
        known = kept is not None and kept.replaced_by == target
        now, before = before, kept if kept is not None and known else before
        agents, states = heard(fleet)
        waited = [each for each in states if each.silent is None]
    else:
        publisher.write(document, before, dry=True)
        agents, states = heard(fleet)
        elsewhere = {
            each.node: each.source for each in states if not each.reads(publisher.place, before.key)
        }
        if elsewhere:
            raise UsageError(
                "; ".join(grouped("read another document", elsewhere)),
                remedy="name it with --configmap; one merged of several cannot be rolled out",
            )
        trial = None
        if meant is not None:
            trial = CanaryTrial(fleet, publisher, meant, agents, states, options)
        waited = [each for each in states if each.ready]
        others = {each.node: each.why_not(None) for each in states if not each.ready}
        preview = _shown(fleet, agents, document)
        remark("warning", grouped("not waited for", others))
        if preview is not None and len(preview.refused) > options["tolerate"]:
            answer["failed"] = preview.refused
            return left(Ending("refused", f"nothing was written to {publisher.place}", 1))
        where = trial.question if trial else publisher.place
        if not yes and not confirmed(f"Write it to {where}?"):
            return left(Ending("declined", "nothing was written", 1))
        if trial is not None:
            outcome = trial.run(document, canary, before)
            if outcome is not None:
                return left(outcome)
        publisher.keep(before, target)
        now = publisher.write(document, before)
    return left(spread(fleet, publisher, target, before, now, waited, agents, options))


def _shown(fleet: Fleet, agents: Sequence[AgentPod], document: bytes) -> Preview | None:
    """Show what would change; None where we may not ask."""
    from ipmasq_agent.errors import AccessDenied

    try:
        preview = previewed(fleet, agents, document)
    except AccessDenied as error:
        click.echo(f"warning: what would change cannot be told: {error}", err=True)
        return None
    for line in preview.as_lines(rules=False):
        click.echo(line, err=True)
    return preview
