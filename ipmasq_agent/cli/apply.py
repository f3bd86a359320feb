"""``apply``: one reconcile, then leave."""

from __future__ import annotations

from typing import Any

import click

from ipmasq_agent.cli.options import OWN, settings_of, shared
from ipmasq_agent.cli.output import emit, output_option, remark
from ipmasq_agent.planes import registry
from ipmasq_agent.policy.addresses import Family


@click.command(
    "apply",
    epilog="""\b
Examples:
  ipmasq-agent apply
  ipmasq-agent apply --config config.yaml --enable-ipv6 -o json
""",
)
@shared(*OWN)
@click.option(
    "--beside-agent",
    is_flag=True,
    help="Write although an agent is at work here, which may undo it at once.",
)
@output_option
def command(output: str, beside_agent: bool, **options: Any) -> int:
    """Bring the kernel to what the document asks for, once, and leave.

    Refused where an agent keeps the same chain: a change goes into its document.

    Exit status: 0 when the kernel holds it, 2 when the document or the kernel refuses.
    """
    from ipmasq_agent.agent.reconcile import clean, reconcile
    from ipmasq_agent.cli.questions import here
    from ipmasq_agent.cli.wiring import read_intent, refuse_beside_agent, warn_of_replies

    settings = settings_of(options)
    if not beside_agent:
        refuse_beside_agent(registry.claims(settings.placement))
    intent = read_intent(settings)
    warn_of_replies(intent.config)
    with here(settings, intent) as node:
        name = node.plane.name
        outcomes = reconcile(node.plane, intent)
        failed = {f: outcome.error for f, outcome in outcomes.items() if outcome.error}
        cleaned = {} if failed else {other.name: clean(other, Family) for other in node.others}
        errors = [*node.unseen, *(f"{family.value}: {error}" for family, error in failed.items())]
    leaves: dict[str, list[str]] = {}
    for other, gone in cleaned.items():
        for family, outcome in gone.items():
            if outcome.error:
                errors.append(f"{other} {family.value}: {outcome.error}")
            elif outcome.change:
                leaves.setdefault(other, []).extend(outcome.change.removed)
    answer = {
        "backend": name,
        "changed": any(outcome.change for outcome in outcomes.values()) or bool(leaves),
        "families": {
            family.value: {
                "added": list(outcome.change.added) if outcome.change else [],
                "removed": list(outcome.change.removed) if outcome.change else [],
                "error": str(outcome.error) if outcome.error else None,
            }
            for family, outcome in outcomes.items()
        },
        "leaves": leaves,
    }

    def as_text() -> str:
        lines = []
        for family, outcome in outcomes.items():
            if outcome.error is None and outcome.change is not None:
                added, removed = outcome.change.counts
                counts = f"{added} added, {removed} removed"
                done = counts if outcome.change else "nothing to change"
                lines.append(f"{family.value} ({name}): {done}")
        for other, lost in leaves.items():
            lines.append(f"{other}: {len(lost)} removed, as {name} decides now")
        return "\n".join(lines)

    emit(answer, output, as_text)
    remark("error", errors)
    return 2 if errors else 0
