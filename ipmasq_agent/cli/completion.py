"""``completion``: what a shell needs to complete verbs, flags and their values."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")


@click.command(
    "completion",
    epilog="""\b
Examples:
  source <(ipmasq-agent completion bash)
  ipmasq-agent completion bash > /etc/bash_completion.d/ipmasq-agent
  ipmasq-agent completion zsh > "${fpath[1]}/_ipmasq-agent"
  ipmasq-agent completion fish > ~/.config/fish/completions/ipmasq-agent.fish
""",
)
@click.argument("shell", type=click.Choice(SHELLS))
def command(shell: str) -> None:
    """Print a script that lets a shell complete verbs, flags and their values."""
    from ipmasq_agent.cli.entry import COMPLETE, cli

    made_for = get_completion_class(shell)
    assert made_for is not None
    click.echo(made_for(cli, {}, "ipmasq-agent", COMPLETE).source())
