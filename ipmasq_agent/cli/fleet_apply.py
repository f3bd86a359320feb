"""``kubectl ipmasq apply``: a document for all nodes, watched until they hold it, or taken back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ipmasq_agent.cli.fleet import document_option, fleet_options, publisher_of
from ipmasq_agent.cli.fleet_documents import file_option, new_document, previewed
from ipmasq_agent.cli.fleet_rolling import confirmed, heard, roll, rollout_options, whole_fleet
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
  kubectl ipmasq apply -f - --yes --tolerate 3 -o json < new.yaml
""",
)
@file_option
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

    Whoever ends this in the middle leaves the old document or the new one: `status` says which,
    `apply` again goes on, and `rollback` goes back.

    Exit status: 0 the nodes hold it, 1 it was not written or was taken back, 2 on an error.
    """
    from ipmasq_agent.errors import UsageError
    from ipmasq_agent.fleet.preview import grouped
    from ipmasq_agent.fleet.published import digest_of
    from ipmasq_agent.fleet.rollout import NextStep

    document = new_document(filename)
    fleet = whole_fleet(options)
    publisher = publisher_of(fleet, configmap, force=force)
    target, before = digest_of(document), publisher.read()
    answer: dict[str, Any] = {"hash": target, "before": before.digest, "failed": {}}

    def left(outcome: str, text: str, code: int) -> int:
        emit({**answer, "outcome": outcome}, output, lambda: text)
        return code

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
        waited = [each for each in states if each.ready]
        others = {each.node: each.why_not(None) for each in states if not each.ready}
        preview = _shown(fleet, agents, document)
        remark("warning", grouped("not waited for", others))
        if preview is not None and len(preview.refused) > options["tolerate"]:
            answer["failed"] = preview.refused
            return left("refused", f"nothing was written to {publisher.place}", 1)
        if not yes and not confirmed(f"Write it to {publisher.place}?"):
            return left("declined", "nothing was written", 1)
        publisher.keep(before, target)
        now = publisher.write(document, before)
    rollout = roll(fleet, publisher, target, waited, agents, options)
    answer["failed"] = rollout.troubled
    remark("error", grouped("failed", rollout.troubled))
    if rollout.step is NextStep.DONE:
        return left("rolled out", f"{target} is in force on {len(rollout.holding)} nodes", 0)
    if before.digest == target:
        return left("failed", f"{target} stays: which document was before it is not known", 1)
    publisher.write(before.content, now)
    click.echo(f"{before.digest} is written again", err=True)
    back = roll(fleet, publisher, before.digest, waited, agents, options)
    answer["notBack"] = back.troubled
    remark("error", grouped("not back", back.troubled))
    text = f"taken back: {before.digest} is in force on {len(back.holding)} of {len(waited)} nodes"
    return left("rolled back", text, 1)


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
