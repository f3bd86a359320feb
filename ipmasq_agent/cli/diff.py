"""``diff``: what ``apply`` would change, before it changes."""

from __future__ import annotations

import functools
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from ipmasq_agent.cli.options import OWN, SOCKET, hiding, settings_of, shared
from ipmasq_agent.cli.output import colour, emit, output_option, remark
from ipmasq_agent.errors import UsageError
from ipmasq_agent.policy.addresses import Family

if TYPE_CHECKING:
    from ipmasq_agent.answers.impact import Impact
    from ipmasq_agent.cli.questions import FamilyChange
    from ipmasq_agent.planes.plane import AnyPlane
    from ipmasq_agent.policy.flows import Flow

_SHOWN = 50  # ranges; a screen's worth of what may be a hundred thousand
_SILENT, _OFTEN = 2.0, 1024  # seconds without a word, and connections between looks at the clock


@hiding("bpf_flows")
@click.command(
    "diff",
    epilog="""\b
Examples:
  ipmasq-agent diff --config config.yaml
  ipmasq-agent diff --configmap kube-system/ip-masq-agent -o json
  ipmasq-agent diff --config config.yaml --live
""",
)
@click.option("--live", is_flag=True, help="Count the connections that would leave otherwise.")
@click.option(
    "--flows",
    metavar="FILE",
    help="The same of recorded ones: lines of `observe -o json` or `conntrack -L`, or a capture; "
    "- for a pipe.",
)
@shared(*OWN, SOCKET)
@output_option
def command(live: bool, flows: str | None, output: str, **options: Any) -> int:
    """Show what apply would change in the kernel, in rules and in decisions; change nothing.

    With --live or --flows also which connections that concerns: those whose next one would leave
    with another source address. What is open goes on as it began.

    Exit status: 0 when nothing would change, 1 when something would, 2 on an error.
    """
    from ipmasq_agent.answers.table import aligned
    from ipmasq_agent.answers.unified import unified
    from ipmasq_agent.cli.questions import FamilyChange, here
    from ipmasq_agent.cli.wiring import read_intent, warn_of_replies

    if live and flows is not None:
        raise UsageError("--live and --flows ask about two sets of connections; give one of them")
    settings = settings_of(options)
    intent = read_intent(settings)
    warn_of_replies(intent.config)
    with here(settings, intent) as node:
        backend, left_behind = node.plane, node.others
        changes = {family: FamilyChange(node, family, intent) for family in Family}
        diffs = {family: change.diff() for family, change in changes.items()}
        for family in intent.config.families:
            if advice := backend.dialect.advice(intent.desired(backend, family)):
                remark("warning", [f"{family.value}: {advice}"])
        cleaned = {other.name: node.leaving(other) for other in left_behind}
        touched = None
        if live or flows is not None:
            touched = _impact(flows, {f: changes[f] for f in intent.config.families}, left_behind)
        unseen = node.unread
    cleaned = {name: removed for name, removed in cleaned.items() if removed}
    changed = any(diff.changed for diff in diffs.values()) or bool(cleaned)
    answer: dict[str, Any] = {
        "backend": backend.name,
        "changed": changed,
        "families": {family.value: diff.as_data() for family, diff in diffs.items()},
        "leaves": cleaned,
    }
    if touched is not None:
        answer["impact"] = touched.as_data()

    def as_text() -> str:
        lines: list[str] = []
        for family, diff in diffs.items():
            names = (f"{backend.name} {family.value} {when}" for when in ("now", "then"))
            lines += map(colour, unified(diff.before, diff.after, *names))
            if diff.decisions:
                lines.append(f"decisions that change ({family.value}):")
                shown = ((str(c), f"{c.before} → {c.after}") for c in diff.decisions[:_SHOWN])
                lines += (f"  {line}" for line in aligned(list(shown)))
                if len(diff.decisions) > _SHOWN:
                    more = len(diff.decisions) - _SHOWN
                    lines.append(f"  ... and {more} more ranges; -o json shows them all")
            elif diff.changed or (cleaned and family in intent.config.families):
                lines.append(f"no decision changes ({family.value})")
        for name, removed in cleaned.items():
            lines.append(f"the agent moves to {backend.name}; it would remove from {name}:")
            lines += (colour(f"-{line}") for line in removed)
        lines = lines or [f"nothing would change ({backend.name})"]
        if touched is not None:
            lines += touched.as_lines("live connections" if live else "recorded connections")
        return "\n".join(lines)

    emit(answer, output, as_text)
    remark("error", unseen)
    return 2 if unseen else int(changed)


def _impact(
    recorded: str | None, changes: Mapping[Family, FamilyChange], left: Collection[AnyPlane]
) -> Impact:
    """Return what becomes of live connections, or of those in a file."""
    from ipmasq_agent.answers.impact import impact
    from ipmasq_agent.host.routes import WaysOut
    from ipmasq_agent.planes.live import live_flows
    from ipmasq_agent.planes.plane import Translator

    both = {family: change.rulings() for family, change in changes.items()}
    # The families may be decided in two places; one that translates by itself knows of both.
    now = max((now for now, _ in both.values()), key=lambda one: isinstance(one, Translator))
    flows = live_flows(now, left=left) if recorded is None else _recorded(recorded)
    sides = {family: ruled for family, (_, ruled) in both.items()}
    return impact(_told(flows), sides, functools.cache(WaysOut().look_up))


def _recorded(path: str) -> Iterator[Flow]:
    """Yield the connections in a file; ``-`` is standard input."""
    from ipmasq_agent.answers.recorded import recorded

    piped = path == "-"
    try:
        with open(0 if piped else path, "rb", closefd=not piped) as file:
            yield from recorded(file, "standard input" if piped else path)
    except OSError as cause:
        raise UsageError(f"{path} cannot be read: {cause.strerror}") from cause


def _told(flows: Iterable[Flow]) -> Iterator[Flow]:
    """Yield connections, and say on standard error how far it is where that takes its time."""
    told = time.monotonic()
    for number, flow in enumerate(flows):
        if number % _OFTEN == 0 and time.monotonic() - told > _SILENT:
            told = time.monotonic()
            click.echo(f"{number} connections so far ...", err=True)
        yield flow
