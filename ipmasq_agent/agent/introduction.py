"""What a running agent tells the programs of its node, and how these read it.

How to read the kernel, and what is meant to be there; never what is in it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ipmasq_agent import __version__
from ipmasq_agent.agent.kept import pack_document, pack_facts, unpack_document, unpack_facts
from ipmasq_agent.policy.facts import NO_FACTS, Fact
from ipmasq_agent.sources import Document

if TYPE_CHECKING:
    from ipmasq_agent.agent.loop import Agent
    from ipmasq_agent.agent.status import Status

PAGE, NAME_PAGE = "/agent", "/agent/name"
"""Where it is told, on the local socket; and who tells it, without what that weighs."""


def _named(pid: int, since: str) -> str:
    return f"the agent (pid {pid}, since {since})"


class Introduction(NamedTuple):
    """An agent at work.

    Attributes:
        pid: in its own PID namespace.
        namespace: which network namespace it keeps.
        settings: by name of the flag's parameter, as its command line and environment say.
        document: in force; None before the first.
        facts: of the cluster, as it knows them.
    """

    pid: int
    version: str
    since: str
    namespace: str
    settings: Mapping[str, Any]
    document: Document | None
    facts: Mapping[Fact[Any], Any]
    status: Status

    @property
    def name(self) -> str:
        """How to speak of it."""
        return _named(self.pid, self.since)


def network_namespace() -> str:
    """Return what tells this process's network namespace from all others of the machine."""
    found = os.stat("/proc/self/ns/net")
    return f"{found.st_dev}:{found.st_ino}"


class Introducer:
    """Tells of an agent."""

    def __init__(self, agent: Agent, settings: Mapping[str, Any]) -> None:
        self._agent = agent
        self._pid, self._since = os.getpid(), time.strftime("%FT%TZ", time.gmtime())
        self._always = {
            "pid": self._pid,
            "version": __version__,
            "since": self._since,
            "namespace": network_namespace(),
            "settings": dict(settings),
        }

    @property
    def name(self) -> str:
        """How to speak of the agent."""
        return _named(self._pid, self._since)

    def as_data(self) -> dict[str, Any]:
        """Return it for JSON."""
        document, facts = self._agent.in_force
        return {
            **self._always,
            "document": document and pack_document(document),
            "facts": pack_facts(facts or NO_FACTS),
            "status": self._agent.status_now().as_data(),
        }


def read(told: bytes) -> Introduction:
    """Return what an agent told.

    Raises:
        one of MALFORMED: it is in another form.
    """
    from ipmasq_agent.agent.status import Status  # which an agent has anyway

    data = json.loads(told)
    held = data["document"]
    pid, since = int(data["pid"]), str(data["since"])
    return Introduction(
        pid,
        str(data["version"]),
        since,
        str(data["namespace"]),
        dict(data["settings"]),
        None if held is None else unpack_document(held),
        unpack_facts(data["facts"]),
        Status.told(_named(pid, since), data["status"]),
    )
