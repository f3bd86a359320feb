"""Writes the pages of docs/ that the program says itself: its commands and its metrics.

``reference.py`` writes them; ``reference.py man FOLDER`` writes man pages instead.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import click

from ipmasq_agent.agent.metrics import Metrics
from ipmasq_agent.agent.status import ConfigStatus, Status
from ipmasq_agent.cli import fleet
from ipmasq_agent.cli.entry import VERBS, cli

DOCS = Path(__file__).parents[1] / "docs"
_WIDTH = 88
_HEAD = """\
# Commands

`ipmasq-agent VERB`; flags without a verb mean `run`. Each flag of `run` has a name in the
environment too, which every verb in the same container goes by. Of every verb: 2 is an error, 130 a
Ctrl-C, and 141 a reader of the answer that left; what else there is stands with the verb.

<!-- Written by scripts/reference.py from what the program says of itself. -->
"""


def commands(
    command: click.Command, context: click.Context
) -> Iterator[tuple[click.Context, click.Command]]:
    """Yield a command and those below it, each with its context."""
    yield context, command
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            inner = click.Context(below, info_name=name, parent=context, terminal_width=_WIDTH)
            yield from commands(below, inner)


_PROGRAMS = (("ipmasq-agent", cli, VERBS), ("kubectl ipmasq", fleet.program, fleet.VERBS))


def _all() -> Iterator[tuple[str, Mapping[str, str], click.Context, click.Command]]:
    """Yield each command of each program: its words after the program's name, and that's verbs."""
    for name, program, verbs in _PROGRAMS:
        root = program.make_context(name, [], resilient_parsing=True)
        for context, command in commands(program, root):
            yield context.command_path.removeprefix(name).strip(), verbs, context, command


def commands_page() -> str:
    """Return the page of commands."""
    parts = [_HEAD]
    for verb, verbs, context, command in _all():
        words = verb.split()
        if verbs is VERBS and (not words or words[0] in ("help", "version")):
            continue
        about = f"{verbs[verb]}\n\n" if len(words) == 1 else ""
        told = command.get_help(context).rstrip()
        title = verb if verbs is VERBS else context.command_path
        level = "#" * (len(words) + (1 if verbs is VERBS else 2))
        parts.append(f"{level} {title}\n\n{about}```text\n{told}\n```\n")
    return "\n".join(parts)


_METRICS = """\
# Metrics

`/metrics` on the agent's port ([install.md](install.md#the-port)), in Prometheus' text format, or
as OpenMetrics where that is asked for. Every series is there from the start, at 0, but for those of
documents, devices or destinations that there are not.

<!-- Written by scripts/reference.py from what the program says of itself. -->

| name | kind | labels | |
|---|---|---|---|
"""


def metrics_page() -> str:
    """Return the page of metrics."""
    rows = []
    for one in sorted(Metrics().all(Status(ConfigStatus(""))), key=lambda each: each.name):
        name = f"{one.name}_total" if one.kind == "counter" else one.name
        labels = ", ".join(f"`{label}`" for label in one.labels)
        rows.append(f"| `{name}` | {one.kind} | {labels} | {one.about} |\n")
    process = "`process_*` | | | of the process: CPU, memory, descriptors, start |"
    return "".join([_METRICS, *rows, f"| {process}\n"])


PAGES = {"commands.md": commands_page, "metrics.md": metrics_page}


def main(words: list[str]) -> None:
    """Write what the arguments ask for."""
    if words[:1] == ["man"]:
        from click_man.core import generate_man_page

        from ipmasq_agent import __version__

        folder = Path(words[1])
        folder.mkdir(parents=True, exist_ok=True)
        for _, _, context, command in _all():
            about = (command.help or "").partition("\n")[0]
            command.short_help = about  # else cut to the width of a list
            name = context.command_path.replace(" ", "-")
            (folder / f"{name}.1").write_text(generate_man_page(context, __version__))
    else:
        for name, page in PAGES.items():
            (DOCS / name).write_text(page())


if __name__ == "__main__":
    main(sys.argv[1:])
