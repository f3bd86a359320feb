"""``lab``: see the agent work on real packets, on this machine alone."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from ipmasq_agent.cli.options import BACKENDS
from ipmasq_agent.cli.output import emit, output_option

if TYPE_CHECKING:
    from ipmasq_agent.lab.cluster import Lab
    from ipmasq_agent.lab.story import Step

AGENT = (sys.executable, "-m", "ipmasq_agent")
DEFAULT_NAME = "lab"

name_option = click.option(
    "--name", default=DEFAULT_NAME, show_default=True, help="Several labs can stand at once."
)
backend_option = click.option(
    "--backend",
    type=click.Choice(BACKENDS),
    default="auto",
    show_default=True,
    help="The data plane that the agents in the nodes use.",
)
ipv6_option = click.option("--ipv6", is_flag=True, help="The same in IPv6.")


@click.group(
    "lab",
    epilog="""\b
Examples:
  ipmasq-agent lab run
  ipmasq-agent lab up
  ipmasq-agent lab exec curl-pod curl -s 10.10.1.200
  ipmasq-agent lab down
""",
)
def command() -> None:
    """Two nodes with pods and a company router, in network namespaces of this machine.

    The real agent runs in the nodes. Nothing outside the lab's namespaces is touched, and
    nothing is left when it goes.
    """


@command.command(
    "run",
    epilog="""\b
Examples:
  ipmasq-agent lab run
  ipmasq-agent lab run --backend iptables-legacy --ipv6
  ipmasq-agent lab run -o json
""",
)
@backend_option
@ipv6_option
@click.option("--name", default=None, help="Of the lab.  [default: one of its own]")
@output_option
def run_story(backend: str, ipv6: bool, name: str | None, output: str) -> int:
    """Build a lab, tell the story in five steps, take it down.

    Every check is what the receiving end saw, by ICMP, TCP and UDP. Exit status: 0 when all
    is as it should be, 1 when something is not, 2 when the lab could not be built.
    """
    from ipmasq_agent.cli import lab_text
    from ipmasq_agent.lab.cluster import Lab, check_tools
    from ipmasq_agent.lab.story import Story

    check_tools()
    lab = Lab(name or f"run-{os.getpid()}")
    shown = lab_text.Shown(output)
    steps: list[Step] = []
    with _taken_down(lab):
        story = Story(lab, AGENT, backend, ipv6=ipv6)
        story.prepare(shown.progress)
        shown.opening(story.backend, ipv6=ipv6)
        for step in story.play(shown.progress):
            shown.step(len(steps) + 1, step, steps[-1].config if steps else "")
            steps.append(step)
    ok = all(step.ok for step in steps)
    if output == "text":
        shown.closing(steps)
    else:
        answer = {
            "backend": story.backend,
            "ok": ok,
            "ipv6": ipv6,
            "steps": [step.as_data() for step in steps],
        }
        emit(answer, output, str)
    return 0 if ok else 1


@contextlib.contextmanager
def _taken_down(lab: Lab) -> Iterator[None]:
    """Claim the lab, and take it down whatever happens."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {n: signal.signal(n, stop) for n in (signal.SIGTERM, signal.SIGHUP)}
    try:
        lab.claim()
        try:
            yield
        finally:
            for number in (signal.SIGINT, *before):
                signal.signal(number, signal.SIG_IGN)  # cleaning up is not interrupted
            lab.down()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.signal(signal.SIGINT, signal.default_int_handler)


@command.command(
    epilog="""\b
Examples:
  ipmasq-agent lab up
  ipmasq-agent lab up --name six --ipv6 --backend iptables-legacy
"""
)
@backend_option
@ipv6_option
@name_option
def up(backend: str, ipv6: bool, name: str) -> None:
    """Build a lab and leave it standing, with the agent at work in its nodes."""
    from ipmasq_agent.lab.cluster import Lab, check_tools
    from ipmasq_agent.lab.story import Story

    check_tools()
    lab = Lab(name)
    lab.claim()
    try:
        story = Story(lab, AGENT, backend, ipv6=ipv6)
        story.prepare(lambda text: click.echo(f"{text} ...", err=True), stay=True)
        lab.mark_up()
    except BaseException:
        lab.down()
        raise
    program = "ipmasq-agent" if shutil.which("ipmasq-agent") else sys.argv[0]
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

    The hosts are k8s-ctr, k8s-w1, router, curl-pod, webpod, w1-pod and switch.
    """
    lab = _standing(name)
    words = lab.argv(host, argv)
    # So that `ipmasq-agent` is found in a host as it was here.
    directory = str(Path(sys.executable).parent)
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}:{directory}"
    sys.stdout.flush()
    os.execvp(words[0], words)


@command.command(
    epilog="""\b
Examples (after `ipmasq-agent lab up`):
  ipmasq-agent config defaults > new.yaml && ipmasq-agent lab config new.yaml
"""
)
@name_option
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def config(name: str, file: Path) -> int:
    """Give the nodes of the lab another document, and show what their agents say."""
    from ipmasq_agent.lab.topology import NODES

    lab = _standing(name)
    before = {node.name: (lab.status(node.name) or {}).get("config") for node in NODES}
    lab.write_document(file.read_text())
    refused = False
    for node in NODES:
        old = before[node.name]
        status = lab.wait_for(
            node.name,
            "the agent has taken in the document (is it the one it had?)",
            lambda s, old=old: s["config"] != old and (s["ready"] or s["config"]["error"]),  # type: ignore[misc]
        )
        error = status["config"]["error"]
        refused |= error is not None
        click.echo(f"{node.name}: {'refused: ' + error if error else 'in force'}")
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
def down(name: str, every: bool) -> None:
    """Take a lab down, or what a killed one left: processes, namespaces, files."""
    from ipmasq_agent.lab.cluster import Lab, labs

    names = labs() if every else [name]
    for one in names:
        known = one in labs()
        Lab(one).down()
        click.echo(f"the lab {one} is gone" if known else f"there is no lab {one}")


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


def _standing(name: str) -> Lab:
    from ipmasq_agent.errors import LabError
    from ipmasq_agent.lab.cluster import Lab

    lab = Lab(name)
    if not lab.stands:
        raise LabError(f"there is no lab {name}", remedy="ipmasq-agent lab up")
    return lab
