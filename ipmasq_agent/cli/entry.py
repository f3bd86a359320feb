"""From arguments to a verb, and from an error to an exit status.

A verb is imported only when it is asked for, so that the daemon never pays for what the
other verbs need.
"""

from __future__ import annotations

import gc
import importlib
import signal
import sys
from collections.abc import Mapping, Sequence

import click

from ipmasq_agent import __version__
from ipmasq_agent.cli.goflags import normalise
from ipmasq_agent.errors import ConfigError, UnexpectedError, foreseen

# verb → the one line that `ipmasq-agent --help` shows for it.
VERBS: Mapping[str, str] = {
    "run": "The agent: watch the document, keep the kernel in step, serve health and metrics.",
    "apply": "One reconcile, then leave.",
    "diff": "Dry run: what apply would change, in rules and in decisions.",
    "list": "The non-masquerade CIDRs in force in the kernel.",
    "status": "Whether the kernel holds what the document asks for.",
    "doctor": "What on this node will bite, why, and how to mend it.",
    "compare": "Where two policies differ: documents, kernels, Cilium.",
    "explain": "Would this destination be masqueraded, and why?",
    "routes": "What the network outside needs, so that replies to pod addresses come back.",
    "ports": "The source ports that translated connections use, and what is left.",
    "observe": "Connections as they are made; which pod had an address and port.",
    "config": "Check a document, show it as understood, show the defaults.",
    "cleanup": "Remove every trace of the agent, and nothing of anyone else's.",
    "lab": "A node, pods, a worker and a router in network namespaces, to see it work.",
    "bench": "Every data plane side by side, measured on this machine, with a report.",
}

_SHORT_LIVED = frozenset(
    {"apply", "diff", "list", "status", "explain", "compare", "ports", "config", "routes", "doctor"}
)


class Verbs(click.Group):
    """A group whose commands live one to a module and load when they are named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the order in which a user meets them."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the verb's module."""
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"ipmasq_agent.cli.{cmd_name}")
        command = module.command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs without importing them."""
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


EPILOG = """\b
Examples:
  ipmasq-agent config defaults
  ipmasq-agent diff
  ipmasq-agent lab run
"""


@click.command(
    cls=Verbs,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="ipmasq-agent")
def cli() -> None:
    """Decide which pod traffic leaves this node with the node's address.

    Flags without a verb mean `run`, so the arguments of an ip-masq-agent container keep
    working as they are.
    """


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    Exit status: 0 as each verb's help says; 1 where a verb answers "differs" or "not in
    sync"; 2 for any error, whose message goes to standard error with its remedy.
    """
    # Where whoever started us ignores it, the kernel keeps no exit status of programs for us
    # (wait(2)), and all of them seem to have succeeded.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    arguments = normalise(list(sys.argv[1:] if argv is None else argv))
    if arguments and arguments[0] in _SHORT_LIVED:
        # A policy of 100,000 entries is many objects and no cycles: going over all of them
        # again and again takes a third of the time.
        gc.disable()
    try:
        status = cli.main(args=arguments, prog_name="ipmasq-agent", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except click.Abort:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output left, as `| head` does: nobody is there to tell.
        sys.stderr.close()
        sys.exit(0)
    except Exception as cause:
        told = foreseen(cause, arguments[0] if arguments else "ipmasq-agent")
        for problem in told.problems if isinstance(told, ConfigError) else (told.message,):
            click.echo(f"error: {problem}", err=True)
        if isinstance(told, UnexpectedError):
            click.echo(f"  → for a report, where it failed:\n{told.trace}", err=True)
        elif told.remedy:
            click.echo(f"  → {told.remedy}", err=True)
        sys.exit(2)
    sys.exit(status if isinstance(status, int) else 0)
