"""The agent in the node of a rig: it loads a policy, or runs and takes in changes."""

from __future__ import annotations

import contextlib
import http.client
import signal
import socket
import time
from collections.abc import Iterator, Sequence

from ipmasq_agent.bench.policies import BlockPolicy
from ipmasq_agent.bench.rig import Rig
from ipmasq_agent.lab.mounted import mount
from ipmasq_agent.policy.addresses import Family

_KEY = "config"
_HEALTH_PORT = 9797
PATIENCE = 120.0
"""Seconds for what takes one with 100,000 CIDRs, on a machine ten times slower."""


class AgentOnNode:
    """The agent of a rig's node.

    Args:
        rig: where.
        agent: how the agent is started.
        backend: the data plane it is to use.
    """

    def __init__(self, rig: Rig, agent: Sequence[str], backend: str) -> None:
        self._rig = rig
        self._documents = rig.state / "document"
        flags = ["--backend", backend, "--config", str(self._documents / _KEY)]
        if rig.family is Family.IPV6:
            flags.append("--enable-ipv6")
        self._apply = [*agent, "apply", *flags]
        self._run = [*agent, "run", "--log-format=json", *flags]

    def give(self, document: str) -> None:
        """Put a document in place, as kubelet does."""
        mount(self._documents, {_KEY: document})

    def load(self, policy: BlockPolicy) -> float:
        """Load a policy, and return how many seconds that takes, from the start of the program.

        Raises:
            CommandFailed: the agent refuses.
        """
        self.give(policy.document)
        began = time.monotonic()
        self._rig.node.run(*self._apply, timeout=PATIENCE)
        return time.monotonic() - began

    @contextlib.contextmanager
    def running(self, policy: BlockPolicy) -> Iterator[None]:
        """Run the agent while the block does, once it is ready."""
        self.give(policy.document)
        with self._rig.node.at_work(self._run, self._ready, PATIENCE) as process:
            yield
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE)

    def _ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", _HEALTH_PORT)
        with self._rig.node.socket(Family.IPV4, socket.SOCK_STREAM) as made:
            made.settimeout(2)
            try:
                made.connect((connection.host, connection.port))
                connection.sock = made
                connection.request("GET", "/readyz")
                return connection.getresponse().status == http.HTTPStatus.OK
            except OSError:
                return False
