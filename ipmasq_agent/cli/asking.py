"""The running agent of this node, asked for what a command line leaves open."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ipmasq_agent import __version__
from ipmasq_agent.errors import MALFORMED, HostError
from ipmasq_agent.host.local_socket import get

if TYPE_CHECKING:
    from ipmasq_agent.agent.introduction import Introduction

_DOCUMENTS = ("config", "configmap", "canary_configmap")


def ask(path: str) -> Introduction | None:
    """Return what the agent that listens at a path tells; None where there is none.

    Raises:
        HostError: somebody listens there, and is not understood.
    """
    from ipmasq_agent.agent import introduction

    told = get(path, introduction.PAGE)
    if told is None:
        return None
    try:
        found = introduction.read(told)
    except MALFORMED:
        found = None
    # What the settings and the status of another version are called is not for us to guess.
    if found is None or found.version != __version__:
        raise HostError(
            f"the agent at {path} is of another version than this program, {__version__}",
            remedy="use the program of its own image: `kubectl exec` into its pod",
        )
    return found


def resident(path: str) -> Introduction | None:
    """Return the agent of this network namespace, whose rules are those that we see.

    One that cannot be asked is told about, and done without.
    """
    from ipmasq_agent.agent.introduction import network_namespace

    try:
        found = ask(path)
    except HostError as error:
        click.echo(f"warning: {error}", err=True)
        return None
    if found is not None and found.namespace != network_namespace():
        return None
    return found


def completed(options: Mapping[str, Any], agent: Introduction) -> dict[str, Any]:
    """Return options with the agent's settings for what the command line does not say.

    Whoever names a document means that one, whatever kind the agent's is of.
    """
    settings = dict(agent.settings)
    if any(map(by_command_line, _DOCUMENTS)):
        for name in _DOCUMENTS:
            settings.pop(name, None)
    taken = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in settings.items()
        if name in options and not by_command_line(name)
    }
    words = [f"backend {taken['backend']}"] if "backend" in taken else []
    words += [f"chain {taken['masq_chain']}"] if "masq_chain" in taken else []
    if agent.document is not None and "config" in taken:
        words.append(f"{agent.document.name} (revision {agent.document.revision})")
    if words:
        click.echo(f"note: as {agent.name} is set: {', '.join(words)}", err=True)
    return {**options, **taken}


def by_command_line(name: str) -> bool:
    """Whether an option was given on the command line."""
    context = click.get_current_context(silent=True)
    return context is None or context.get_parameter_source(name) is ParameterSource.COMMANDLINE
