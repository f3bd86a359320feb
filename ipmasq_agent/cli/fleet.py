"""``kubectl ipmasq``: the agents of all nodes, asked and told from one place."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ipmasq_agent import __version__
from ipmasq_agent.cli.entry import CONTEXT, Verbs, leave
from ipmasq_agent.cli.options import shared, split_configmap

if TYPE_CHECKING:
    from ipmasq_agent.fleet.canary import Canary
    from ipmasq_agent.fleet.cluster import Fleet
    from ipmasq_agent.fleet.published import Publisher

F = TypeVar("F", bound=Callable[..., Any])

_SILENT, _SOON = 2.0, 0.2  # seconds without a word, and between two

VERBS: Mapping[str, str] = {
    "status": "A line for each node: what is in force there, and what keeps it from being so.",
    "diff": "What a document would change, beside the cluster's and in the kernels of all nodes.",
    "apply": "A new document for all nodes, taken back where it does not take.",
    "rollback": "The document before, for all nodes.",
    "canary": "A document that a few nodes try: how it stands, for all, or for none.",
    "explain": "Why what a pod sends to a destination leaves as it does.",
    "doctor": "What on any node will bite, where, why, and how to mend it.",
    "observe": "Connections of all nodes as they are made.",
}


class FleetVerbs(Verbs):
    """The verbs of the plugin."""

    verbs = VERBS
    home = "ipmasq_agent.cli.fleet_"


@click.command(
    cls=FleetVerbs,
    epilog="""\b
Examples:
  kubectl ipmasq status
  kubectl ipmasq apply -f new.yaml
  kubectl ipmasq apply -f new.yaml --canary 5%
  kubectl ipmasq rollback
""",
    context_settings=CONTEXT,
)
@click.version_option(__version__, prog_name="kubectl ipmasq")
def program() -> None:
    """Ask the agents of all nodes of a cluster, and roll a document out to them.

    With the credentials of kubectl, through the API server: by its proxy to the agents' pods where
    they listen on more than loopback, else by running a verb in each pod. docs/fleet.md says which
    permissions that takes.
    """


def main(argv: Sequence[str] | None = None) -> None:
    """Run the plugin and exit; exit statuses are those of ``ipmasq-agent``."""
    if "_KUBECTL_IPMASQ_COMPLETE" in os.environ:
        program.main(prog_name="kubectl-ipmasq")
    leave(program, "kubectl ipmasq", list(sys.argv[1:] if argv is None else argv))


_OPTIONS = (
    click.option("--kubeconfig", metavar="PATH", help="Credentials.  [default: as kubectl's]"),
    click.option(
        "--context", metavar="NAME", help="Of the kubeconfig, instead of the current one."
    ),
    click.option(
        *("-n", "--namespace"),
        metavar="NAME",
        default="kube-system",
        help="Where the agents' pods are.",
    ),
    click.option(
        *("-l", "--selector"),
        metavar="LABELS",
        default="app.kubernetes.io/name=ipmasq-agent",
        help="What the agents' pods are labelled with.",
    ),
    click.option(
        "--node", "nodes", metavar="NAME", multiple=True, help="This node alone; repeatable."
    ),
    click.option(
        "--via",
        type=click.Choice(["proxy", "exec"]),
        help="How agents are asked for their status.  [default: by proxy where it leads to them]",
    ),
    click.option(
        "--patience",
        metavar="SECONDS",
        type=click.FloatRange(min=0.1),
        default=5.0,
        help="How long one node is waited for.",
    ),
    click.option(
        "--at-once",
        metavar="COUNT",
        type=click.IntRange(min=1, max=500),
        default=64,
        help="How many nodes are asked at once.",
    ),
)
fleet_options = shared(*_OPTIONS)
"""Those that say which agents are meant, and how they are asked."""
document_option = click.option(
    "--configmap",
    metavar="NAMESPACE/NAME[:KEY]",
    default="kube-system/ip-masq-agent",
    help="Where the cluster's document is.",
)


def fleet_of(options: Mapping[str, Any]) -> Fleet:
    """Return the fleet that the values of ``fleet_options`` mean."""
    from ipmasq_agent.fleet.cluster import Fleet
    from ipmasq_agent.sources.kube_api import KubeApi

    at_once = options["at_once"]
    api = KubeApi(options["kubeconfig"], options["context"], at_once)
    click.get_current_context().call_on_close(api.close)
    return Fleet(
        api,
        options["namespace"],
        options["selector"],
        via=options["via"],
        seconds=options["patience"],
        at_once=at_once,
        only=options["nodes"],
    )


def publisher_of(fleet: Fleet, configmap: str, *, force: bool = False) -> Publisher:
    """Return who reads and writes the document that an option names."""
    from ipmasq_agent.fleet.published import Publisher

    return Publisher(fleet.api, *split_configmap(configmap), force=force)


def standing(publisher: Publisher) -> Canary | None:
    """Return the document that a few nodes try; None where there is none, or we may not see."""
    from ipmasq_agent.errors import AccessDenied
    from ipmasq_agent.fleet.canary import canary_of

    try:
        return canary_of(publisher.canary.read())
    except AccessDenied as error:
        click.echo(f"warning: whether a few nodes try another document: {error}", err=True)
        return None


class FleetProgress:
    """Says on standard error how far something is, if it takes long.

    Args:
        what: in words.
        total: how many there are.
    """

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total = what, total
        self._live = sys.stderr.isatty()
        self._next = time.monotonic() + _SILENT
        self._shown = ""

    def __call__(self, count: int, more: str = "") -> None:
        """Say how many are done."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (_SOON if self._live else _SILENT)
        width = 20
        bar = "#" * (width * count // max(1, self._total))
        text = f"{self._what} [{bar:{width}}] {count} of {self._total}{more}"
        if text != self._shown:
            click.echo(f"\r\x1b[K{text}" if self._live else text, err=True, nl=not self._live)
            self._shown = text

    def end(self) -> None:
        """Leave the terminal as it was."""
        if self._live and self._shown:
            click.echo("\r\x1b[K", err=True, nl=False)
