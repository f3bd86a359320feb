"""``kubectl ipmasq explain``: why does what this pod sends there leave as it does?"""

from __future__ import annotations

from typing import Any

import click

from ipmasq_agent.cli.fleet import fleet_of, fleet_options
from ipmasq_agent.cli.output import output_option


@click.command(
    "explain",
    epilog="""\b
Examples:
  kubectl ipmasq explain default/client 10.10.1.200
  kubectl ipmasq explain client 10.10.0.0/16 -o json
""",
)
@click.argument("pod", metavar="[NAMESPACE/]POD")
@click.argument("destination", metavar="DST")
@fleet_options
@output_option
def command(pod: str, destination: str, output: str, **options: Any) -> int:
    """Say whether what a pod sends to DST is masqueraded, and why.

    Finds the pod's node and asks there, as `ipmasq-agent explain DST --src ADDRESS` does. DST is an
    address, a prefix, or a name as the node resolves it. Without a namespace it is `default`.

    Exit status: that of `ipmasq-agent explain`.
    """
    from ipmasq_agent.errors import SourceError
    from ipmasq_agent.fleet.nodes import plain

    fleet = fleet_of(options)
    node, addresses = fleet.whereabouts(*_split(pod))
    agents = [each for each in fleet.agents() if each.node == node]
    if not agents:
        raise SourceError(f"{pod} is on {node}, and no agent is there")
    alike = [each for each in addresses if (":" in each) == (":" in destination)]
    # Of a pod of the host's network the node itself is what sends.
    source = ["--src", (alike or addresses)[0]] if addresses else []
    ran = fleet.run(
        agents[0], ["explain", destination, *source, "-o", output], seconds=max(30, fleet.seconds)
    )
    click.echo(f"note: {pod} is on {node}", err=True)
    click.echo(plain(ran.err.decode(errors="replace")), err=True, nl=False)
    click.echo(plain(ran.out.decode(errors="replace")), nl=False)
    return ran.status


def _split(pod: str) -> tuple[str, str]:
    namespace, slash, name = pod.partition("/")
    return (namespace, name) if slash else ("default", pod)
