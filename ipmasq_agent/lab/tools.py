"""What the lab and the benchmark need of this machine before they make anything."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping

from ipmasq_agent.errors import MissingTool, NotPermitted
from ipmasq_agent.host import commands
from ipmasq_agent.lab import frr
from ipmasq_agent.lab.by_hand import emptying

PACKAGES = {
    **commands.PACKAGES,
    "iptables-legacy": "iptables",
    "bridge": "iproute2",
    "setpriv": "util-linux",
    "taskset": "util-linux",
}
_OF_A_LAB = ("ip", "bridge", "setpriv", "sysctl", "ping", "curl", "tcpdump")


def of_lab(backend: str, programs: Iterable[str], routing: str = "static") -> dict[str, str]:
    """Return what a lab needs, each program with its Debian package.

    Args:
        backend: the data plane of its agents, whose rules the story empties by hand.
        programs: that the data plane needs.
        routing: how its router learns the way to the pods.
    """
    by_hand = (argv[0] for argv in emptying(backend, ipv6=False))
    needed = (*_OF_A_LAB, *programs, *by_hand)
    bgp = frr.PROGRAMS if routing == "bgp" else {}
    return {tool: PACKAGES.get(tool, tool) for tool in needed} | dict(bgp)


def check(who: str, tools: Mapping[str, str]) -> None:
    """Fail where this machine lacks something.

    Args:
        who: needs it, as the message begins.
        tools: the programs, each with its Debian package.

    Raises:
        NotPermitted: we are not root.
        MissingTool: names every package that is missing.
    """
    if os.geteuid() != 0:
        raise NotPermitted(f"{who} needs root, to make network namespaces", remedy="try sudo")
    missing = sorted({package for tool, package in tools.items() if not shutil.which(tool)})
    if missing:
        raise MissingTool(
            f"{who} needs programs that are not installed: {' '.join(missing)}",
            remedy=f"apt-get install {' '.join(missing)}",
        )
