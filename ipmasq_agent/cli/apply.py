"""``apply``: one reconcile, then leave."""

from __future__ import annotations

from typing import Any

import click

from ipmasq_agent.cli.options import OWN, settings_of, shared
from ipmasq_agent.cli.output import emit, output_option


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
    from ipmasq_agent.cli.wiring import (
        backend_choice,
        read_intent,
        refuse_beside_agent,
        warn_of_replies,
    )
    from ipmasq_agent.planes import registry
    from ipmasq_agent.policy.addresses import Family

    settings = settings_of(options)
    if not beside_agent:
        refuse_beside_agent(registry.claims(settings.placement))
    intent = read_intent(settings)
    warn_of_replies(intent.config)
    choice = backend_choice(settings)
    try:
        backend, left_behind = choice.current(large=intent.is_large)
        outcomes = reconcile(backend, intent)
        failed = {f: outcome.error for f, outcome in outcomes.items() if outcome.error}
        cleaned = {} if failed else {other.name: clean(other, Family) for other in left_behind}
    finally:
        choice.close()
    errors = [*choice.unseen, *(f"{family.value}: {error}" for family, error in failed.items())]
    leaves: dict[str, list[str]] = {}
    for name, gone in cleaned.items():
        for family, outcome in gone.items():
            if outcome.error:
                errors.append(f"{name} {family.value}: {outcome.error}")
            elif outcome.change:
                leaves.setdefault(name, []).extend(outcome.change.removed)
    answer = {
        "backend": backend.name,
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
                lines.append(f"{family.value} ({backend.name}): {done}")
        for name, gone_lines in leaves.items():
            lines.append(f"{name}: {len(gone_lines)} removed, as {backend.name} decides now")
        return "\n".join(lines)

    emit(answer, output, as_text)
    for error in errors:
        click.echo(f"error: {error}", err=True)
    return 2 if errors else 0
