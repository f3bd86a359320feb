"""What an agent on a node does without: its lab and its benchmark, which work in a clone."""

from __future__ import annotations

import importlib.util

from ipmasq_agent.errors import MissingTool

# By verb: what installs in a clone what it needs.
_TARGETS = {"lab": "make demo", "bench": "make bench"}


def require(verb: str, *modules: str) -> None:
    """Fail where a module is missing that the wheel of this package does not bring.

    Raises:
        MissingTool: says which modules, and where they are.
    """
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise MissingTool(
            f"{verb} needs {' and '.join(missing)}, which this installation does not have",
            remedy=f"`{_TARGETS[verb]}`, in a clone of the agent's repository, has all of it",
        )
