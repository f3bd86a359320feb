"""Agents that are real: each a process in a network namespace of its own, and its document a file.

The file is kept up to date as a kubelet does it for a mounted ConfigMap.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.fleet.agents import NAME, Agent
from tests.kernel.running import write
from tests.kube.cluster import write_kubeconfig
from tests.netns import Namespace
from tests.waiting import wait_until

PORT = 9797


class RealAgent(Agent):
    """One.

    Args:
        node: its name.
        namespace: the network namespace that stands for the node.
        place: a folder of its own.
        backend: its data plane.
    """

    real = True

    def __init__(self, node: str, namespace: Namespace, place: Path, backend: str) -> None:
        super().__init__(node)
        place.mkdir()
        self.namespace = namespace
        self._document = place / "config"
        program = place / "ipmasq-agent"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m ipmasq_agent "$@"\n')
        program.chmod(0o755)
        self.environment = {
            **os.environ,
            "PATH": f"{place}:{os.environ['PATH']}",
            "IPMASQ_CONFIG": str(self._document),
            "IPMASQ_BACKEND": backend,
            "IPMASQ_SOCKET": str(place / "agent.sock"),
            "IPMASQ_STATE_DIR": str(place / "state"),
            "IPMASQ_BPF_PINS": str(place / "pins"),
            "IPMASQ_HTTP_ADDRESS": f"0.0.0.0:{PORT}",
        }
        self._log = place / "log"

    def begin(self) -> None:
        """Start it, and wait until its document is in force."""
        with self._log.open("w") as out:
            self.process = self.namespace.popen(
                [sys.executable, "-m", "ipmasq_agent", "run"],
                stdout=out,
                stderr=out,
                env=self.environment,
            )
        wait_until(self.in_sync, f"in sync\n{self._log.read_text()}")

    def argv(self, argv: Sequence[str]) -> list[str]:
        """Return what runs a program of its container."""
        return self.namespace.argv(argv)

    def deliver(self, document: bytes | None) -> None:
        """Bring the document to the node."""
        if document is None:
            self._document.unlink(missing_ok=True)
        else:
            write(self._document, document.decode())

    def status(self, version: str, document: bytes | None) -> bytes:
        """Return what it says.

        Raises:
            OSError: it does not answer.
        """
        with self.namespace.entered():
            connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=20)
            with contextlib.closing(connection):
                connection.request("GET", "/status")
                return connection.getresponse().read()

    def in_sync(self) -> bool:
        """Whether it is ready."""
        assert self.process.poll() is None, self._log.read_text()
        try:
            return bool(json.loads(self.status("", None))["ready"])
        except OSError:
            return False


class WatchingAgent(RealAgent):
    """One that watches its document in the API, and one to try."""

    def __init__(self, node: str, namespace: Namespace, place: Path, backend: str) -> None:
        super().__init__(node, namespace, place, backend)
        self.source = f"ConfigMap {NAME}, ConfigMap {NAME}-canary"
        with namespace.entered():
            self.api = socket.create_server(("127.0.0.1", 0))
        port = self.api.getsockname()[1]
        del self.environment["IPMASQ_CONFIG"]
        self.environment |= {
            "IPMASQ_CONFIGMAP": NAME,
            "IPMASQ_CANARY_CONFIGMAP": f"{NAME}-canary",
            "IPMASQ_NODE_NAME": node,
            "IPMASQ_KUBECONFIG": str(write_kubeconfig(place / "api", port, "token: agent")),
        }


@contextlib.contextmanager
def nodes(place: Path, backends: Sequence[str], document: str) -> Iterator[list[RealAgent]]:
    """Yield an agent for each backend, each on a node with a way out."""
    with contextlib.ExitStack() as stack:
        agents = []
        for number, backend in enumerate(backends):
            namespace = stack.enter_context(Namespace(f"n{number}"))
            namespace.lead_out()
            agents.append(RealAgent(f"real-{number}", namespace, place / f"n{number}", backend))
            agents[-1].deliver(document.encode())
        for agent in agents:
            agent.begin()
        yield agents


def rules(agent: RealAgent, *words: str) -> str:
    """Return what a program prints in an agent's namespace."""
    done: subprocess.CompletedProcess[str] = agent.namespace.run(words)
    return done.stdout


def pod(name: str, node: str, address: str) -> dict[str, Any]:
    """Return a pod as the API has it."""
    return {
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"nodeName": node, "containers": [{"name": "main"}]},
        "status": {"phase": "Running", "podIPs": [{"ip": address}]},
    }
