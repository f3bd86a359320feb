"""``lab``: see the agent work on real packets, on this machine alone."""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from ipmasq_agent import __version__
from ipmasq_agent.cli.output import emit, output_option
from ipmasq_agent.errors import UsageError
from ipmasq_agent.host.extras import require
from ipmasq_agent.planes import registry

if TYPE_CHECKING:
    from ipmasq_agent.lab.story import PlayedScene, Story

DEFAULT_NAME = "lab"

name_option = click.option("--name", default=DEFAULT_NAME, help="Several labs can stand at once.")
backend_option = click.option(
    "--backend",
    type=click.Choice(registry.choices()),
    default="auto",
    help="The data plane that the agents in the nodes use.",
)
ipv6_option = click.option("--ipv6", is_flag=True, help="The same in IPv6.")
routing_option = click.option(
    "--routing",
    type=click.Choice(["static", "bgp"]),
    default="static",
    help="How the router learns its way back to the pods; bgp takes FRR (package frr).",
)


@click.group(
    "lab",
    epilog="""\b
Examples:
  ipmasq-agent lab run
  ipmasq-agent lab up
  ipmasq-agent lab exec curl-pod curl -s 10.10.1.200
  ipmasq-agent lab capture k8s-ctr -w node.pcap
  ipmasq-agent lab down
""",
)
def command() -> None:
    """Two clusters' nodes and pods and a company router, in namespaces of this machine.

    The real agent runs in the nodes. Nothing outside the lab's namespaces is touched, and
    nothing is left when it goes.
    """


@command.command(
    "run",
    epilog="""\b
Examples:
  ipmasq-agent lab run
  ipmasq-agent lab run --backend iptables-legacy --ipv6
  ipmasq-agent lab run --routing bgp
  ipmasq-agent lab run --html story.html
  ipmasq-agent lab run -o json
  ipmasq-agent lab run --name told --keep && ipmasq-agent lab down --name told
""",
)
@backend_option
@ipv6_option
@routing_option
@click.option("--name", default=None, help="Of the lab.  [default: one of its own]")
@click.option("--keep", is_flag=True, help="Leave the lab standing, as it is at the end.")
@click.option(
    "--html",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Leave a page too: packets captured at each hop, drawn, with the rules beside.",
)
@output_option
def run_story(
    backend: str,
    ipv6: bool,
    routing: str,
    name: str | None,
    keep: bool,
    file: Path | None,
    output: str,
) -> int:
    """Build a lab, tell the story step by step, take it down.

    Every check is what the receiving end saw, by ICMP, TCP and UDP. Exit status: 0 when all
    is as it should be, 1 when something is not, 2 when the lab could not be built.
    """
    if output == "text":
        require("lab", "rich")
    if file is not None and not file.parent.is_dir():  # better before the story than after it
        raise UsageError(f"there is no folder {file.parent} for {file.name}")
    steps: list[PlayedScene] = []
    name = name or f"run-{os.getpid()}"
    how = {"ipv6": ipv6, "stay": keep, "captured": file is not None}
    with _built(name, backend, routing, **how) as story:
        if output == "text":
            from ipmasq_agent.lab.text import Shown

            shown = Shown(story.backend, ipv6=ipv6)
        for step in story.play(_progress):
            if output == "text":
                shown.step(step)
            steps.append(step)
    ok = all(step.ok for step in steps)
    if keep:
        _progress(f"the lab stays; `{_program()} lab down --name {story.lab.name}` takes it down")
    if file is not None:
        _write_page(file, steps, story, ipv6=ipv6)
    if output == "text":
        shown.closing()
        hint = f"the page: {file}" if file else "--html FILE leaves this as a page, hop by hop"
        click.echo(hint)
    else:
        told = [step.as_data() for step in steps]
        emit({"backend": story.backend, "ok": ok, "ipv6": ipv6, "steps": told}, output, str)
    return 0 if ok else 1


def _write_page(file: Path, steps: list[PlayedScene], story: Story, *, ipv6: bool) -> None:
    from datetime import datetime

    from ipmasq_agent.lab.page import page

    told = [story.backend, "IPv6" if ipv6 else "IPv4", f"Linux {os.uname().release}"]
    told += [f"ipmasq-agent {__version__}", f"{datetime.now():%Y-%m-%d %H:%M}"]
    try:
        file.write_text(page(steps, " · ".join(told), ipv6=ipv6), encoding="utf-8")
    except OSError as cause:
        raise UsageError(f"cannot write to {file}: {cause.strerror}") from cause


def _built(
    name: str, backend: str, routing: str, *, ipv6: bool, stay: bool, captured: bool = False
) -> AbstractContextManager[Story]:
    """Build a lab with agents at work in it, where this machine has all that takes."""
    from ipmasq_agent.lab.children import own
    from ipmasq_agent.lab.story import built
    from ipmasq_agent.lab.tools import of_lab

    # The lab's nodes are marked by nobody, and so are taken for ones of iptables-nft.
    plane = (registry.rows_of(backend) or registry.rows_of("iptables-nft"))[0]
    tools = of_lab(plane.backend, plane.programs, routing)
    agent, how = own("ipmasq_agent"), {"ipv6": ipv6, "stay": stay, "captured": captured}
    return built(name, agent, backend, tools, _progress, routing=routing, **how)


def _progress(text: str) -> None:
    """Say what is being done, on standard error."""
    click.secho(f"... {text}", err=True, dim="NO_COLOR" not in os.environ)


@command.command(
    epilog="""\b
Examples:
  ipmasq-agent lab up
  ipmasq-agent lab up --name six --ipv6 --backend iptables-legacy
  ipmasq-agent lab up --routing bgp
"""
)
@backend_option
@ipv6_option
@routing_option
@name_option
def up(backend: str, ipv6: bool, routing: str, name: str) -> None:
    """Build a lab and leave it standing, with the agent at work in its nodes."""
    from ipmasq_agent.lab.topology import POD_CIDRS

    with _built(name, backend, routing, ipv6=ipv6, stay=True) as story:
        if routing == "bgp":
            story.start_bgp(["router", *POD_CIDRS])
    program = _program()
    option = "" if name == DEFAULT_NAME else f" --name {name}"
    target = "http://[fd00:10:10:1::200]" if ipv6 else "10.10.1.200"
    click.echo(
        f"The lab {name} is up ({story.backend}). Try:\n"
        f"  {program} lab exec{option} curl-pod curl -s {target}\n"
        f"  {program} lab exec{option} router tcpdump -n -c 3 -i eth1 icmp or icmp6 &\n"
        f"  {program} lab exec{option} curl-pod ping -c 3 {target.strip('htp:/[]')}\n"
        f"  {program} lab exec{option} k8s-ctr ipmasq-agent list --backend {story.backend}\n"
        f"  {program} config defaults > new.yaml && {program} lab config{option} new.yaml\n"
        f"  {program} lab down{option}"
    )


def _program() -> str:
    """Return how this program is called here, so that what we print can be pasted."""
    if shutil.which("ipmasq-agent"):
        return "ipmasq-agent"
    if sys.argv[0].endswith("__main__.py"):
        return f"{sys.executable} -m ipmasq_agent"
    return sys.argv[0]


@command.command(
    "exec",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    epilog="""\b
Examples (after `ipmasq-agent lab up`):
  ipmasq-agent lab exec curl-pod curl -s 10.10.1.200
  ipmasq-agent lab exec k8s-ctr iptables-nft -t nat -S IP-MASQ
""",
)
@name_option
@click.argument("host")
@click.argument("argv", nargs=-1, required=True, metavar="CMD...", type=click.UNPROCESSED)
def execute(name: str, host: str, argv: tuple[str, ...]) -> None:
    """Run a command in a host of the lab, with its exit status.

    The hosts are k8s-ctr, k8s-w1, k8s-b1, router, curl-pod, webpod, w1-pod, b-pod and switch.
    """
    from ipmasq_agent.lab.cluster import standing

    words = standing(name).argv(host, argv)
    _become(words)


def _become(words: list[str]) -> NoReturn:
    """Run a program in our place."""
    # So that `ipmasq-agent` is found in a host as it was here.
    directory = str(Path(sys.executable).parent)
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}:{directory}"
    sys.stdout.flush()
    os.execvp(words[0], words)


@command.command(
    epilog="""\b
Examples (after `ipmasq-agent lab up`):
  ipmasq-agent lab logs k8s-ctr
  ipmasq-agent lab logs k8s-ctr --follow
"""
)
@name_option
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@click.argument("host")
def logs(name: str, follow: bool, host: str) -> None:
    """Show what a host of the lab has logged: of a node its agent."""
    from ipmasq_agent.lab.cluster import standing

    path = standing(name).log(host)
    sys.stdout.flush()
    os.execvp("tail", ["tail", *(["--follow"] if follow else []), "--lines=+1", str(path)])


@command.command(
    epilog="""\b
Examples (after `ipmasq-agent lab up`):
  ipmasq-agent lab capture k8s-ctr -w node.pcap
  ipmasq-agent lab capture router icmp or icmp6 | wireshark -k -i -
  ipmasq-agent lab capture k8s-ctr | ipmasq-agent lab exec k8s-ctr tcpdump -l -n -r -
  ipmasq-agent lab capture k8s-ctr --interface eth1 --seconds 10 -w out.pcap net 172.20.0.0/16
""",
)
@name_option
@click.option("--interface", default="any", help="The device to listen at.")
@click.option("-w", "file", type=click.Path(dir_okay=False), help="Where to.  [default: stdout]")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), help="End after so many.")
@click.argument("host")
@click.argument("words", nargs=-1, metavar="[FILTER]...")
def capture(
    name: str,
    interface: str,
    file: str | None,
    seconds: float | None,
    host: str,
    words: tuple[str, ...],
) -> None:
    """Write the packets of a host as a pcap, until Ctrl-C.

    FILTER is what tcpdump takes (pcap-filter(7)), whose exit status this has. At `any` interface a
    packet is there once for each device that it passes: one that a node masquerades has the pod's
    address first, then the node's.
    """
    from ipmasq_agent.lab.cluster import standing

    # Each packet is written when it comes: whoever reads at the other end sees it at once.
    argv = ["tcpdump", "-n", "-U", "--immediate-mode", "-i", interface, "-w", "-", *words]
    if seconds is not None:
        argv = ["timeout", "--foreground", "--preserve-status", "--signal=INT", f"{seconds}", *argv]
    inside = standing(name).argv(host, argv)
    if file is not None:
        # Not by tcpdump, which may have given up its rights by then.
        os.dup2(_created(file), sys.stdout.fileno())
    elif sys.stdout.isatty():
        raise UsageError(
            "a capture is not for a terminal",
            remedy="-w FILE, or | wireshark -k -i -, or | tcpdump -l -n -r -",
        )
    _become(inside)


def _created(file: str) -> int:
    """Return the descriptor of a file that is made anew."""
    try:
        return os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    except OSError as cause:
        raise UsageError(f"cannot write to {file}: {cause.strerror}") from cause


@command.command(
    epilog="""\b
Examples (after `ipmasq-agent lab up`):
  ipmasq-agent config defaults > new.yaml && ipmasq-agent lab config new.yaml
"""
)
@name_option
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def config(name: str, file: Path) -> int:
    """Give the nodes of the first cluster another document, and show what their agents say."""
    from ipmasq_agent.lab.cluster import standing
    from ipmasq_agent.lab.topology import FIRST_CLUSTER

    refused = False
    documents = {"config": file.read_text()}
    given = {node.name: documents for node in FIRST_CLUSTER}
    for node, status in standing(name).deliver(given).items():
        error = status["config"]["error"]
        refused |= error is not None
        click.echo(f"{node}: {'refused: ' + error if error else 'in force'}")
    return 1 if refused else 0


@command.command(
    epilog="""\b
Examples:
  ipmasq-agent lab down
  ipmasq-agent lab down --all
"""
)
@name_option
@click.option("--all", "every", is_flag=True, help="All labs of this machine.")
def down(name: str, every: bool) -> int:
    """Take a lab down, or what a killed one left: processes, namespaces, files.

    A lab in which a `lab run` is at work is left alone.
    """
    from ipmasq_agent.errors import LabError
    from ipmasq_agent.lab.cluster import Lab, labs

    found = labs()
    if not every and name not in found:
        others = f"; there is {', '.join(found)}" if found else ""
        click.echo(f"there is no lab {name}{others}")
        return 0
    status = 0
    for one in found if every else [name]:
        lab = Lab(one)
        try:
            lab.take_over()
        except LabError as error:
            if not every:
                raise
            click.echo(f"left alone: {error}", err=True)
            status = 1
            continue
        lab.down()
        click.echo(f"the lab {one} is gone")
    return status


@command.command(
    "list",
    epilog="""\b
Examples:
  ipmasq-agent lab list
""",
)
def list_labs() -> None:
    """Show the labs that stand, or of which something is left."""
    from ipmasq_agent.lab.cluster import labs

    for name in labs():
        click.echo(name)
