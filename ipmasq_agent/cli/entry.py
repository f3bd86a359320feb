"""From arguments to a verb, and from an error to an exit status.

A verb is imported only when it is asked for, so that the daemon never pays for what the
other verbs need.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import gc
import importlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from types import FrameType
from typing import NoReturn, TextIO

import click

from ipmasq_agent import __version__
from ipmasq_agent.cli.goflags import normalise
from ipmasq_agent.errors import ConfigError, UnexpectedError, foreseen
from ipmasq_agent.host.extras import require

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
    "completion": "What bash, zsh or fish needs to complete verbs and flags.",
    "version": "The version of this program.",
    "help": "What a verb does and takes.",
}

# Verbs that come with rooms of their own, which an installation for a node does not have.
_GUESTS = frozenset({"lab", "bench"})
_SHORT_LIVED = frozenset(
    {"apply", "diff", "list", "status", "explain", "compare", "ports", "config", "routes", "doctor"}
)
_INTERRUPTED = 128 + signal.SIGINT
_NOBODY_READS = 128 + signal.SIGPIPE
# What write(2) says where there is no room, or no more than a limit allows.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
COMPLETE = "_IPMASQ_AGENT_COMPLETE"
"""The variable by which a shell asks for completions, named as click names it."""


class Verbs(click.Group):
    """A group whose commands live one to a module and load when they are named.

    Attributes:
        verbs: what each does, in a line.
        home: how the name of each one's module begins.
    """

    verbs = VERBS
    home = "ipmasq_agent.cli."

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the order in which a user meets them."""
        return list(self.verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the verb's module."""
        if cmd_name not in self.verbs:
            return None
        name = f"{self.home}{cmd_name}"
        if cmd_name in _GUESTS:
            room = f"ipmasq_agent.{cmd_name}"
            if ctx.resilient_parsing and find_spec(room) is None:
                return None  # nothing to complete
            require(cmd_name, room)
            name = f"{room}.verb"
        command = importlib.import_module(name).command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb, or name those that are written alike."""
        if args[0] not in self.verbs and not ctx.resilient_parsing:
            like = difflib.get_close_matches(args[0], self.verbs)
            meant = f" Did you mean {' or '.join(like)}?" if like else ""
            ctx.fail(f"No such verb: {args[0]}.{meant}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs without importing them."""
        with formatter.section("Verbs"):
            formatter.write_dl(list(self.verbs.items()))


CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100, "show_default": True}
EPILOG = """\b
Examples:
  ipmasq-agent config defaults
  ipmasq-agent diff
  ipmasq-agent lab run
"""


@click.command(
    cls=Verbs,
    epilog=EPILOG,
    context_settings=CONTEXT,
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
    sync"; 2 for any error, whose message goes to standard error with its remedy; 130 after
    Ctrl-C, and 141 where nobody reads the answer, as of programs that a signal ends.
    """
    arguments = normalise(list(sys.argv[1:] if argv is None else argv))
    if COMPLETE in os.environ:
        cli.main(arguments, "ipmasq-agent")
    if arguments and arguments[0] in _SHORT_LIVED:
        # A policy of 100,000 entries is many objects and no cycles: going over all of them
        # again and again takes a third of the time.
        gc.disable()
    leave(cli, "ipmasq-agent", arguments)


def leave(program: click.Command, name: str, arguments: list[str]) -> NoReturn:
    """Run a program of this package and exit, as ``main`` says."""
    # Where whoever started us ignores it, the kernel keeps no exit status of programs for us
    # (wait(2)), and all of them seem to have succeeded.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    before = signal.getsignal(signal.SIGINT)
    try:
        if before != signal.SIG_IGN:
            signal.signal(signal.SIGINT, _interrupt)
        status = _answer(program, name, arguments)
    except KeyboardInterrupt:
        status = _INTERRUPTED
        _tell("interrupted")
    finally:
        signal.signal(signal.SIGINT, before)
    for stream in filter(None, (sys.stdout, sys.stderr)):  # a stream that is closed is None
        _settle(stream)
    sys.exit(status)


def _answer(program: click.Command, name: str, arguments: list[str]) -> int:
    """Return the exit status of what is asked, having told what is wrong."""
    try:
        # Not cli.main(), which takes a reader that left for a 1.
        with program.make_context(name, arguments) as context:
            status = program.invoke(context)
    except click.exceptions.Exit as left:
        return left.exit_code
    except click.ClickException as error:
        with contextlib.suppress(OSError):
            error.show()
        return 2
    except BrokenPipeError:
        return _NOBODY_READS
    except Exception as cause:
        verb = arguments[0] if arguments else name
        if isinstance(cause, OSError) and cause.errno in _NO_ROOM and cause.filename is None:
            _tell(f"error: {verb} cannot write its output: {os.strerror(cause.errno)}")
            return 2
        told = foreseen(cause, verb)
        for problem in told.problems if isinstance(told, ConfigError) else (told.message,):
            _tell(f"error: {problem}")
        if isinstance(told, UnexpectedError):
            _tell(f"  → for a report, where it failed:\n{told.trace}")
        elif told.remedy:
            _tell(f"  → {told.remedy}")
        return 2
    return status if isinstance(status, int) else 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, or leave where it would be lost.

    Python's import has callbacks in which an exception is printed and forgotten, and libraries
    that are imported take one for something that they can do without.
    """
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            _tell("interrupted")
            os._exit(_INTERRUPTED)
        frame = frame.f_back
    raise KeyboardInterrupt


def _tell(text: str) -> None:
    """Write to standard error; where that fails too, the exit status says it all."""
    with contextlib.suppress(OSError):
        click.echo(text, err=True)


def _settle(stream: TextIO) -> None:
    """Write out what a stream holds, or give it up: Python would try again and say so."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
