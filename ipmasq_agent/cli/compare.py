"""``compare``: where two policies decide otherwise, whatever data plane they are in."""

from __future__ import annotations

from typing import Any

import click

from ipmasq_agent.cli.options import (
    API,
    MEANING,
    RULES,
    SOCKET,
    hiding,
    settings_of,
    shared,
)
from ipmasq_agent.cli.output import colour, emit, output_option, remark
from ipmasq_agent.errors import UsageError

HELP = """\
Show the destinations on which A and B decide otherwise, and the entry behind each.

A and B are each one of:

\b
  PATH                            a document: a file, a directory, - for a pipe
  configmap:NAMESPACE/NAME[:KEY]  a document in the Kubernetes API
  kernel[:BACKEND]                what the kernel does; BACKEND as in --backend elsewhere
  cilium                          the maps of Cilium's ip-masq-agent mode on this node
  cilium:FILE                     what `cilium-dbg bpf ipmasq list` printed, text or JSON

A file that is called like one of these words is named with a path, like ./cilium.

What masquerading depends on beside the destination (sources, devices, a fixed source
address) counts as well, where both sides tell it; source ports are only remarked upon.
Documents speak of IPv6 only with --enable-ipv6; packets of a family that a side does
not manage are left alone.

Exit status: 0 when both decide alike, 1 when they differ, 2 on an error.
"""

_SHOWN = 50  # ranges of a family; a screen's worth of what may be a hundred thousand


@hiding("adopt", "jump_position", "bpf_flows")
@click.command(
    "compare",
    help=HELP,
    epilog="""\b
Examples:
  ipmasq-agent compare old.yaml new.yaml
  ipmasq-agent compare new.yaml kernel -o json
  ipmasq-agent compare kernel:iptables-nft kernel:iptables-legacy
  ipmasq-agent compare /etc/config/ip-masq-agent cilium
  kubectl -n kube-system exec ds/cilium -- cilium-dbg bpf ipmasq list > list.txt
  ipmasq-agent compare config.yaml cilium:list.txt --native-routing-cidr 10.0.0.0/8
  ipmasq-agent compare config.yaml cilium:list.txt --routing-mode tunnel
""",
)
@click.argument("left", metavar="A")
@click.argument("right", metavar="B")
@click.option(
    "--native-routing-cidr",
    "cidrs",
    metavar="CIDR",
    multiple=True,
    help="Cilium's native-routing CIDR, for each family; none where it has none.  "
    "[default: what its ConfigMap says]",
)
@click.option(
    "--cilium-config",
    metavar="NAMESPACE/NAME",
    help="Cilium's ConfigMap.  [default: kube-system/cilium-config, where the API lets us]",
)
@click.option(
    "--routing-mode",
    type=click.Choice(["native", "tunnel"]),
    help="How Cilium routes.  [default: what its ConfigMap says, else the profile of a document, "
    "else native where --native-routing-cidr gives one]",
)
@click.option(
    "--bpffs",
    metavar="DIR",
    envvar="IPMASQ_BPFFS",
    show_envvar=True,
    help="Where Cilium's maps are pinned.  [default: each bpf file system that is mounted]",
)
@shared(*API, *RULES, *MEANING, SOCKET)
@output_option
def command(
    left: str,
    right: str,
    cidrs: tuple[str, ...],
    cilium_config: str | None,
    routing_mode: str | None,
    bpffs: str | None,
    output: str,
    **options: Any,
) -> int:
    """Print the answer; see ``HELP``."""
    from ipmasq_agent.answers.compare import compare
    from ipmasq_agent.cli.cilium_sides import CiliumSides
    from ipmasq_agent.cli.operands import sides

    if left == right == "-":
        raise UsageError("both operands are a pipe", remedy="name a file for one of them")
    if cilium_config is not None and cilium_config.count("/") != 1:
        raise UsageError(f"--cilium-config: {cilium_config!r} is not NAMESPACE/NAME")
    settings = settings_of(options)
    cilium = CiliumSides(settings, bpffs, cidrs, cilium_config, routing_mode)
    answer = compare(*sides(left, right, settings, cilium))

    def as_text() -> str:
        lines = answer.as_lines(_SHOWN)
        return "\n".join(lines if answer.equal else map(colour, lines))

    # The data of many differences is large, and needless for text.
    emit(answer.as_data() if output != "text" else None, output, as_text)
    if output == "text":
        remark("note", answer.notes)
    return 0 if answer.equal else 1
