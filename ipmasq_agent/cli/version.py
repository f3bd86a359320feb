"""``version``: which program this is."""

from __future__ import annotations

import click

from ipmasq_agent import __version__
from ipmasq_agent.cli.output import emit, output_option


@click.command(
    "version",
    epilog="""\b
Examples:
  ipmasq-agent version
  ipmasq-agent version -o json
""",
)
@output_option
def command(output: str) -> None:
    """Show the version of this program."""
    emit({"version": __version__}, output, lambda: f"ipmasq-agent, version {__version__}")
