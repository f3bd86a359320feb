"""What an agent on a node does without: extras of the package, for its lab and its benchmark."""

from __future__ import annotations

import importlib.util

from ipmasq_agent.errors import MissingTool


def require(extra: str, *modules: str) -> None:
    """Fail where a module is missing that an extra of this package brings.

    Raises:
        MissingTool: says which modules, and how to install them.
    """
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise MissingTool(
            f"{extra} needs {' and '.join(missing)}, which this installation does not have",
            remedy=f"pip install 'ipmasq-agent[{extra}]'",
        )
