"""``kubectl ipmasq rollback``: the document before, for all nodes."""

from __future__ import annotations

from typing import Any

import click

from ipmasq_agent.cli.fleet import document_option, fleet_options, publisher_of, standing
from ipmasq_agent.cli.fleet_rolling import confirmed, heard, roll, rollout_options, whole_fleet
from ipmasq_agent.cli.output import emit, output_option, remark


@click.command(
    "rollback",
    epilog="""\b
Examples:
  kubectl ipmasq rollback
  kubectl ipmasq rollback --yes -o json
""",
)
@rollout_options
@fleet_options
@document_option
@output_option
def command(yes: bool, force: bool, configmap: str, output: str, **options: Any) -> int:
    """Put the document back that `apply` replaced, from whichever machine that was.

    It is kept in the ConfigMap NAME-previous. Once it is back, this waits until all nodes that
    answer hold it; begun again, it goes on with that.

    Exit status: 0 the nodes hold it, 1 some do not, or it was not written, 2 on an error.
    """
    from ipmasq_agent.errors import SourceError
    from ipmasq_agent.fleet.preview import grouped
    from ipmasq_agent.fleet.rollout import NextStep
    from ipmasq_agent.fleet.trial import tried_on

    fleet = whole_fleet(options)
    publisher = publisher_of(fleet, configmap, force=force)
    kept, now = publisher.kept(), publisher.read()
    if kept is None:
        raise SourceError(
            f"no document is kept that was before that of {publisher.place}",
            remedy="`kubectl ipmasq apply` keeps it; give it the document that you want",
        )
    agents, states = heard(fleet)
    if kept.digest == now.digest:
        click.echo(f"{publisher.place} holds {kept.digest} already", err=True)
    else:
        publisher.write(kept.content, now, dry=True)
        if kept.replaced_by != now.digest:
            click.echo(
                f"warning: {publisher.place} was written by somebody else since: it holds "
                f"{now.digest}, and {kept.digest} was replaced by {kept.replaced_by}",
                err=True,
            )
        question = f"Put {kept.digest} in the place of {now.digest}, in {publisher.place}?"
        if not yes and not confirmed(question):
            return 1
        publisher.write(kept.content, now)
    waited = [each for each in states if each.silent is None]
    if (canary := standing(publisher)) is not None:
        trying = canary.among(each.node for each in states)
        waited = [each for each in waited if each.node not in trying]
        click.echo(
            f"warning: {tried_on(trying)} not waited for: they try another document "
            f"({canary.digest}), and `kubectl ipmasq canary withdraw` ends that",
            err=True,
        )
    rollout = roll(fleet, publisher, kept.digest, waited, agents, options)
    remark("error", grouped("failed", rollout.troubled))
    answer = {"hash": kept.digest, "before": now.digest, "failed": rollout.troubled}
    text = f"{kept.digest} is in force on {len(rollout.holding)} of {len(waited)} nodes"
    emit(answer, output, lambda: text)
    return 0 if rollout.step is NextStep.DONE else 1
