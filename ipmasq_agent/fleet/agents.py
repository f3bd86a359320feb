"""Which pods are agents, and how each can be asked: as its manifest says."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ipmasq_agent.sources.kube_exec import AgentContainer

# What is read of a Pod; all other keys are dropped while a list is parsed.
KEPT = frozenset(
    {"metadata", "name", "namespace", "deletionTimestamp", "spec", "nodeName", "containers"}
    | {"args", "command", "env", "value", "volumes", "configMap", "status", "phase"}
)
_LOOPBACK = re.compile(r"(127\.[0-9.]+|localhost|\[::1\]):[0-9]+")
_ADDRESS = "127.0.0.1:9797"  # where an agent listens that nobody told


@dataclass(frozen=True, slots=True)
class AgentPod:
    """An agent.

    Attributes:
        node: whose rules it keeps.
        container: where its program is.
        port: of its HTTP, where the API server can reach it; None where it must be asked otherwise.
        phase: of its pod.
        leaving: the pod is about to end.
    """

    node: str
    container: AgentContainer
    port: int | None = None
    phase: str = "Running"
    leaving: bool = False


def one_a_node(agents: Iterable[AgentPod]) -> list[AgentPod]:
    """Return an agent for each node, by the nodes' names: of several one that runs, and stays."""
    found: dict[str, AgentPod] = {}
    for agent in agents:
        held = found.get(agent.node)
        if held is None or _worth(agent) > _worth(held):
            found[agent.node] = agent
    return [found[node] for node in sorted(found)]


def _worth(agent: AgentPod) -> tuple[bool, bool, str]:
    return agent.phase == "Running", not agent.leaving, agent.container.pod


def agent_of(pod: Mapping[str, Any]) -> AgentPod | None:
    """Return the agent of a pod as the API has it; None for one that is on no node yet.

    Raises:
        one of MALFORMED: it is in another form.
    """
    metadata, spec, status = pod["metadata"], pod.get("spec") or {}, pod.get("status") or {}
    containers = spec.get("containers") or ()
    if not spec.get("nodeName") or not containers:
        return None
    of = next((each for each in containers if each["name"] == "agent"), containers[0])
    return AgentPod(
        node=str(spec["nodeName"]),
        container=AgentContainer(
            str(metadata["namespace"]), str(metadata["name"]), str(of["name"])
        ),
        port=_reachable(of),
        phase=str(status.get("phase") or "Unknown"),
        leaving="deletionTimestamp" in metadata,
    )


def _reachable(container: Mapping[str, Any]) -> int | None:
    """Return the port at which whoever reaches the pod is told its status.

    None where it listens on loopback alone, or asks for a token, which API servers do not pass on.
    """
    address = _setting(container, "http-address", _ADDRESS)
    port = address.rpartition(":")[2]
    if _LOOPBACK.fullmatch(address) or not port.isdecimal():
        return None
    return None if _setting(container, "metrics-token-file", "") else int(port)


def _setting(container: Mapping[str, Any], flag: str, default: str) -> str:
    """Return a setting as the arguments say, else the environment."""
    words: Sequence[str] = [*(container.get("command") or ()), *(container.get("args") or ())]
    for place, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name == f"--{flag}":
            return value if equals else words[place + 1] if place + 1 < len(words) else default
    variable = "IPMASQ_" + flag.upper().replace("-", "_")
    told = (one.get("value") for one in container.get("env") or () if one["name"] == variable)
    return str(next(told, None) or default)
