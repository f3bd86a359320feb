"""``observe``: connections as they are made, and who had an address and port."""

from __future__ import annotations

from typing import Any

import click

from ipmasq_agent.cli.options import (
    API,
    BACKEND,
    ONLY_WRITTEN,
    RECORD,
    RULES,
    SOCKET,
    hiding,
    parsed,
    settings_of,
    shared,
)
from ipmasq_agent.errors import UsageError
from ipmasq_agent.policy.cidrs import parse_listed

_PROTOCOLS = ("tcp", "udp", "sctp", "icmp", "icmpv6")


@hiding(*ONLY_WRITTEN)
@click.command(
    "observe",
    epilog="""\b
Examples:
  ipmasq-agent observe
  ipmasq-agent observe --verdict masquerade --to 8.8.8.0/24 --protocol udp -o json
  ipmasq-agent observe --last 20 --pod default/client
  ipmasq-agent observe --was 192.168.10.100:40254
  ipmasq-agent observe --was 192.168.10.100:40254 --record /var/log/ipmasq --at 14:03:11
""",
)
@click.option(
    "-f", "--follow", is_flag=True, help="Go on with new ones after --last.  [default without it]"
)
@click.option(
    "--last",
    type=click.IntRange(0),
    metavar="N",
    help="Show up to N that were made before: of the record, else of those that there are now.",
)
@click.option("--pod", metavar="[NAMESPACE/]NAME", help="Only those of this pod, or address.")
@click.option("--to", metavar="CIDR", help="Only those whose destination lies there.")
@click.option("--verdict", type=click.Choice(["masquerade", "keep"]), help="Only those.")
@click.option("--protocol", type=click.Choice(_PROTOCOLS), help="Only those.")
@click.option("--port", type=click.IntRange(1, 65535), help="Only those to this port.")
@click.option(
    "--pods",
    metavar="FILE",
    help="Names of pods: what `kubectl get pods -A -o json` prints, or lines `IP NAMESPACE/NAME`. "
    "Without it the API is asked about this node's, where there are credentials.",
)
@click.option(
    "--was", metavar="ADDRESS:PORT", help="Tell which pod has this address and port of the node."
)
@click.option(
    "--at", metavar="TIME", help="Which one had it then, by the record: 14:03:11, or with a date."
)
@shared(RECORD, *API, BACKEND, *RULES, SOCKET)
@click.option(
    "-o",
    "--output",
    type=click.Choice(["text", "json"]),
    default="text",
    help="As columns, or as one object a line.",
)
def command(
    follow: bool,
    last: int | None,
    pod: str | None,
    to: str | None,
    verdict: str | None,
    protocol: str | None,
    port: int | None,
    pods: str | None,
    was: str | None,
    at: str | None,
    output: str,
    **options: Any,
) -> int:
    """Show connections as they are made, with their source before and after.

    With each the pod, the destination, as which address and port it left the node, the verdict
    and what decides. Ctrl-C ends it and tells how many there were, and how many were missed.
    --was ends with 1 where nobody has, or had, that address and port.
    """
    from ipmasq_agent.answers.observed import Wanted
    from ipmasq_agent.cli.observing import About, Columns, Names, as_json, earlier, follow_new, who
    from ipmasq_agent.cli.questions import here

    settings = settings_of(options)
    destinations = None if to is None else parsed("--to", parse_listed, to)
    wanted = Wanted(pod, destinations, verdict, protocol, port)
    if at is not None and (was is None or settings.record is None):
        raise UsageError(
            "--at is about the record, and about one address and port",
            remedy="give --was ADDRESS:PORT and --record FILE with it",
        )
    show = as_json if output == "json" else Columns().show
    with here(settings, at_work=True) as node:
        about = About(node, Names(pods, settings), wanted)
        if was is not None:
            return who(was, at, settings.record, about, show)
        # Of those that keep their source there is no record.
        record = None if verdict == "keep" else settings.record
        before = earlier(about, record, last or 0)
        if last is None or follow:
            follow_new(node.plane, before, about, show)
        else:
            for seen in before:
                show(seen)
    return 0
