"""``diff``: what ``apply`` would change, before it changes."""

from __future__ import annotations

from typing import Any

import click

from ipmasq_agent.cli.options import agent_options, settings_of
from ipmasq_agent.cli.output import colour, emit, output_option

_SHOWN = 50  # ranges; a screen's worth of what may be a hundred thousand


@click.command(
    "diff",
    epilog="""\b
Examples:
  ipmasq-agent diff --config config.yaml
  ipmasq-agent diff --configmap kube-system/ip-masq-agent -o json
""",
)
@agent_options
@output_option
def command(output: str, **options: Any) -> int:
    """Show what apply would change in the kernel, in rules and in decisions; change nothing.

    Exit status: 0 when nothing would change, 1 when something would, 2 on an error.
    """
    from ipmasq_agent.cli.questions import family_diff, left_diff
    from ipmasq_agent.cli.wiring import backend_choice, read_intent, warn_of_replies
    from ipmasq_agent.policy.addresses import Family

    settings = settings_of(options)
    intent = read_intent(settings)
    warn_of_replies(intent.config)
    choice = backend_choice(settings)
    try:
        backend, left_behind = choice.current(large=intent.is_large)
        diffs = {family: family_diff(backend, family, intent, left_behind) for family in Family}
        for family in intent.config.families:
            advice = backend.dialect.advice(intent.desired(backend, family))
            if advice:
                click.echo(f"warning: {family.value}: {advice}", err=True)
        cleaned = {other.name: left_diff(other) for other in left_behind}
    finally:
        choice.close()
    cleaned = {name: removed for name, removed in cleaned.items() if removed}
    changed = any(diff.changed for diff in diffs.values()) or bool(cleaned)
    answer = {
        "backend": backend.name,
        "changed": changed,
        "families": {family.value: diff.as_data() for family, diff in diffs.items()},
        "leaves": cleaned,
    }

    def as_text() -> str:
        lines: list[str] = []
        for family, diff in diffs.items():
            where = f"{backend.name} {family.value}"
            lines += (colour(line) for line in diff.unified(f"{where} now", f"{where} then"))
            if diff.decisions:
                lines.append(f"decisions that change ({family.value}):")
                shown = [(str(change), change) for change in diff.decisions[:_SHOWN]]
                width = max(len(range_) for range_, _ in shown)
                lines += (
                    f"  {range_:{width}}  {change.before} → {change.after}"
                    for range_, change in shown
                )
                if len(diff.decisions) > _SHOWN:
                    more = len(diff.decisions) - _SHOWN
                    lines.append(f"  ... and {more} more ranges; -o json shows them all")
            elif diff.changed or (cleaned and family in intent.config.families):
                lines.append(f"no decision changes ({family.value})")
        for name, removed in cleaned.items():
            lines.append(f"the agent moves to {backend.name}; it would remove from {name}:")
            lines += (colour(f"-{line}") for line in removed)
        return "\n".join(lines) or f"nothing would change ({backend.name})"

    emit(answer, output, as_text)
    for line in choice.unseen:
        click.echo(f"error: {line}", err=True)
    if choice.unseen:
        return 2
    return 1 if changed else 0
