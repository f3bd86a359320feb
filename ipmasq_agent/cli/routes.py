"""``routes``: what the network outside needs, so that replies to pod addresses come back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from ipmasq_agent.cli.asking import by_command_line
from ipmasq_agent.cli.options import (
    API,
    MEANING,
    MEANT_BACKEND,
    SOCKET,
    SOURCE,
    Settings,
    parsed,
    settings_of,
    shared,
)
from ipmasq_agent.cli.output import emit, output_option, remark
from ipmasq_agent.errors import SourceError, UsageError
from ipmasq_agent.policy import facts
from ipmasq_agent.policy.addresses import Family, range_text
from ipmasq_agent.policy.cidrs import parse_cidr
from ipmasq_agent.policy.facts import ClusterNode
from ipmasq_agent.policy.model import Capabilities, FamilyPolicy

if TYPE_CHECKING:
    from ipmasq_agent.answers.route_formats import Format
    from ipmasq_agent.answers.routes import Need

# Destinations in one line of comment.
_SHOWN = 8


@click.command(
    "routes",
    epilog="""\b
Examples:
  ipmasq-agent routes
  kubectl get nodes -o json | ipmasq-agent routes --config config.yaml --format cisco -
  ipmasq-agent routes --node k8s-w1=192.168.10.101,172.20.1.0/24 -o json
  ipmasq-agent routes --bgp --asn 64512 --peer 192.168.10.200=64513 --format frr --router
  ipmasq-agent routes --bgp --asn 64512 --peer 192.168.10.200=64513 --format frr \\
      --node-name k8s-w1 > /etc/frr/frr.conf
""",
)
@click.argument("file", metavar="[FILE]", required=False)
@click.option(
    "--node",
    "given",
    metavar="NAME=ADDRESS,PODCIDR[,...]",
    multiple=True,
    help="A node, its addresses and pod CIDRs, in place of those of the API; again for more.",
)
@click.option("--cilium", is_flag=True, help="Take them from the API's CiliumNodes, not its Nodes.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["iproute2", "frr", "bird", "gobgp", "cisco", "junos"]),
    help="Whose language to write.  [default: iproute2, with --bgp frr]",
)
@click.option("--bgp", is_flag=True, help="Write BGP configurations in place of static routes.")
@click.option("--asn", type=click.IntRange(1, (1 << 32) - 1), help="The nodes' AS number.")
@click.option(
    "--peer",
    "peers",
    metavar="ADDRESS[=ASN]",
    multiple=True,
    help="A router that the nodes talk to, of the nodes' AS unless given; again for more, and "
    "for each family.",
)
@click.option("--router", is_flag=True, help="Write the routers' configuration only.")
@click.option(
    "--listen",
    metavar="CIDR",
    multiple=True,
    help="Where nodes connect from.  [default: the /24 (IPv6: /64) of each node]",
)
@click.option(
    "--pod-network",
    metavar="CIDR",
    multiple=True,
    help="What nodes may announce parts of, those to come too.  [default: what holds each pod "
    "CIDR and is 8 bits shorter]",
)
@shared(*SOURCE, *API, *MEANING, SOCKET, MEANT_BACKEND)
@output_option
def command(
    file: str | None,
    given: tuple[str, ...],
    cilium: bool,
    form: str | None,
    bgp: bool,
    asn: int | None,
    peers: tuple[str, ...],
    router: bool,
    listen: tuple[str, ...],
    pod_network: tuple[str, ...],
    output: str,
    **options: Any,
) -> None:
    """Write the routes that the network outside needs, so that replies to pods come back.

    They are those to the pods of each node, where the document leaves a destination
    un-NATed: routers toward such destinations need them. FILE is what `kubectl get nodes`,
    or ciliumnodes, prints with -o json or yaml; - for a pipe. Without FILE and --node, the
    API is asked.

    With --bgp each node announces its own pod CIDRs, and the router takes them from any node
    of a network, so that a new one needs nothing there. All configurations are written, one
    after the other, unless --node-name or --router picks.
    """
    from ipmasq_agent.answers.route_formats import FORMATS
    from ipmasq_agent.answers.routes import needed, parse_peer, routers, speakers

    settings = settings_of(options)
    if (file is not None) + bool(given) + cilium > 1:
        raise UsageError("FILE, --node and --cilium name nodes twice", remedy="give one of them")
    if bgp and not (asn and peers):
        raise UsageError("--bgp needs --asn and --peer", remedy="say who talks to whom")
    if not bgp and (asn or peers or router or listen):
        raise UsageError("--asn, --peer, --router and --listen are for --bgp", remedy="add --bgp")
    language = FORMATS[form or ("frr" if bgp else "iproute2")]
    if bgp and language.router is None:
        raise UsageError(f"{form} does no BGP", remedy="take frr, bird, gobgp, cisco or junos")
    pod_networks = [parsed("--pod-network", parse_cidr, text) for text in pod_network]
    listens = [parsed("--listen", parse_cidr, text) for text in listen]
    talks = [parsed("--peer", lambda peer: parse_peer(peer, asn or 0), text) for text in peers]

    nodes = _nodes(settings, file, given, cilium)
    needs, missing = needed(nodes, _policies(settings, nodes), pod_networks)
    remark("warning", missing)
    answer: dict[str, Any] = {"needed": bool(needs), "needs": [_as_data(need) for need in needs]}
    if not bgp:
        emit(answer, output, lambda: "\n".join(_static(needs, language)))
        return
    untold = {need.family for need in needs} - {peer.family for peer in talks}
    remark("warning", [f"nobody is told of {f.value}, as no --peer is of it" for f in untold])
    # In the agent's own pod the environment names a node, which nobody asked about.
    its_node: str | None = options["node_name"] if by_command_line("node_name") else None
    parts: dict[str, str] = {}
    assert language.router is not None
    if language.node is not None and not router:
        for node in speakers(needs, asn or 0, talks):
            if its_node in (None, node.name):
                parts[f"node {node.name}"] = "\n".join([*language.node(node), ""])
    if router or its_node is None:
        for one in routers(needs, asn or 0, talks, listens, pod_networks):
            parts[f"router of AS {one.asn}"] = "\n".join([*language.router(one), ""])
    if needs and not parts:
        raise UsageError(
            f"there is no configuration of {its_node} in {form or 'frr'}",
            remedy="name a node with pod CIDRs; nodes speak frr, bird and gobgp",
        )
    answer["bgp"] = parts

    def as_text() -> str:
        said = "\n".join(f"{language.comment} {line}" for line in _said(needs))
        return said + "".join(f"\n{language.comment} {n}\n{text}" for n, text in parts.items())

    emit(answer, output, as_text)


def _nodes(
    settings: Settings, file: str | None, given: tuple[str, ...], cilium: bool
) -> tuple[ClusterNode, ...]:
    """Return the nodes from wherever they are to come.

    Raises:
        SourceError: they cannot be had, or none has pods.
    """
    from ipmasq_agent.answers.routes import parse_node
    from ipmasq_agent.sources.pod_networks import parse_nodes, read_nodes

    nodes: tuple[ClusterNode, ...]
    if given:
        nodes = tuple(parsed("--node", parse_node, text) for text in given)
    elif file is not None:
        try:
            with click.open_file(file) as stream:
                text = stream.read()
        except (OSError, UnicodeDecodeError) as cause:
            raise SourceError(f"{file} cannot be read: {cause}") from cause
        nodes = parse_nodes(text, "standard input" if file == "-" else file)
    else:
        nodes = read_nodes(settings.kubeconfig, cilium=cilium)
    if not any(node.pod_cidrs for node in nodes):
        raise SourceError(
            "no node has pod CIDRs",
            remedy="try --cilium where Cilium gives out addresses, or give each with --node",
        )
    return nodes


def _policies(settings: Settings, nodes: Sequence[ClusterNode]) -> dict[Family, FamilyPolicy]:
    """Return what the document decides, on whichever of the nodes."""
    from ipmasq_agent.cli.wiring import read_document
    from ipmasq_agent.config.assemble import assemble_family
    from ipmasq_agent.config.keys import EGRESS_INTERFACES

    config = read_document(settings)
    patterns = config.written.get(EGRESS_INTERFACES)
    if isinstance(patterns, tuple):
        told = f"what leaves through other devices than {', '.join(patterns)} keeps its source"
        remark("warning", [f"{told} toward any destination, and routers there need all routes"])
    # Devices and routes are each node's own, and do not tell which destinations are kept.
    written = {key: value for key, value in config.written.items() if key is not EGRESS_INTERFACES}
    known = facts.Facts(
        {
            facts.NODE_ADDRESSES: frozenset(a for node in nodes for a in node.addresses),
            facts.OWN_POD_CIDRS: tuple(p for node in nodes for p in node.pod_cidrs),
            facts.LINKS: facts.Links((), ("any",)),
            facts.ROUTES: (),
        }
    )
    config = replace(config, written=written)
    pods = {prefix.family for node in nodes for prefix in node.pod_cidrs}
    if pods - {*config.families}:
        told = "without --enable-ipv6 the agent leaves IPv6 alone"
        remark("note", [f"{told}, so pods keep their IPv6 addresses toward any destination"])
    return {f: assemble_family(config, f, Capabilities(), known) for f in config.families}


def _toward(need: Need) -> list[str]:
    return [range_text(need.family, *each) for each in need.toward]


def _as_data(need: Need) -> dict[str, Any]:
    return {
        "family": need.family.value,
        "toward": _toward(need),
        "routes": [
            {"prefix": str(r.prefix), "via": r.next_hop, "node": r.node} for r in need.routes
        ],
    }


def _said(needs: Sequence[Need]) -> Iterator[str]:
    if not needs:
        yield "nothing is needed: no pod's own address is seen outside"
    for need in needs:
        toward = _toward(need)
        more = f" and {len(toward) - _SHOWN} more" if len(toward) > _SHOWN else ""
        yield f"needed by the routers toward {', '.join(toward[:_SHOWN])}{more}"


def _static(needs: Sequence[Need], language: Format) -> Iterator[str]:
    for part in [[need] for need in needs] or [[]]:
        yield from (f"{language.comment} {line}" for line in _said(part))
        yield from (line for need in part for line in language.static(need.routes))
