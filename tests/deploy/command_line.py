"""A command line as in a container of a manifest, parsed by the real parser and not run."""

from __future__ import annotations

from typing import Any

import click
import pytest

from ipmasq_agent.cli.entry import cli
from ipmasq_agent.cli.goflags import normalise
from ipmasq_agent.cli.options import settings_of
from tests.deploy.manifests import Object


def environment(container: Object) -> dict[str, str]:
    """Return the container's environment as the kubelet makes it, on the node worker-1."""
    fields = {"spec.nodeName": "worker-1"}
    return {
        variable["name"]: variable["value"]
        if "value" in variable
        else fields[variable["valueFrom"]["fieldRef"]["fieldPath"]]
        for variable in container["env"]
    }


def parameters(container: Object, *words: str) -> dict[str, Any]:
    """Return what a command line in the container comes to, with ``settings`` for the shared."""
    verb, *rest = normalise(list(words))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(container).items():
            patch.setenv(name, value)
        with cli.make_context("ipmasq-agent", [verb], resilient_parsing=True) as root:
            command = cli.get_command(root, verb)
            assert isinstance(command, click.Command)
            with command.make_context(verb, rest, parent=root) as context:
                return {**context.params, "settings": settings_of(context.params)}
