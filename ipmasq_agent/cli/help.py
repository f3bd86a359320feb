"""``help``: what a verb does and takes."""

from __future__ import annotations

import click


@click.command(
    "help",
    epilog="""\b
Examples:
  ipmasq-agent help
  ipmasq-agent help diff
  ipmasq-agent help lab run
""",
)
@click.argument(
    "words",
    metavar="[VERB]...",
    nargs=-1,
    shell_complete=lambda ctx, _, typed: [
        verb for verb in ctx.find_root().command.list_commands(ctx) if verb.startswith(typed)
    ],
)
@click.pass_context
def command(context: click.Context, words: tuple[str, ...]) -> None:
    """Show the help of the program, or of one of its verbs, as --help does."""
    program = context.find_root().command
    with program.make_context("ipmasq-agent", [*words, "--help"]) as asked:
        program.invoke(asked)
