"""Where a running agent answers: health and metrics on a port, all of it on its local socket."""

from __future__ import annotations

import logging
import os
import socket
import time
from contextlib import suppress

from ipmasq_agent import __version__
from ipmasq_agent.agent.http import MOST_CONNECTIONS, Answer, Answers, Door, HttpServer, data, text
from ipmasq_agent.agent.http import listen as listen_on_port
from ipmasq_agent.agent.introduction import NAME_PAGE, PAGE, Introducer
from ipmasq_agent.agent.loop import Agent
from ipmasq_agent.errors import HostError
from ipmasq_agent.host.local_socket import listen
from ipmasq_agent.host.threads import dead
from ipmasq_agent.logs import event

# A pass that takes longer than this is stuck, and a restart is the better agent.
_STUCK = 300.0
# Seconds in which the port of an agent that ends becomes free.
_HANDING_OVER, _BREATH = 5.0, 0.05
_INDEX = f"""\
ipmasq-agent {__version__}
/healthz  200 while the agent works
/readyz   200 while the newest document is in force; else why not
/status   what is in force, as JSON
/metrics  for Prometheus"""


class Reception:
    """Opens the doors of an agent, and closes them.

    Args:
        agent: who answers.
        address: ``HOST:PORT`` for health and metrics; empty for none.
        path: of the local socket; empty for none.
        introducer: tells of the agent there.
    """

    def __init__(self, agent: Agent, address: str, path: str, introducer: Introducer) -> None:
        self._answers = answers(agent)
        self._address, self._path = address, path
        self._local = {
            **self._answers,
            PAGE: lambda: data(introducer.as_data()),
            NAME_PAGE: lambda: text(200, introducer.name),
        }
        self._server: HttpServer | None = None
        self._listens = self._stood_by = False

    def open_beside(self) -> None:
        """Answer on the port while another agent is at work, unless that one has it."""
        self._stood_by = True
        with suppress(HostError):
            if self._address:
                self._server = HttpServer([Door(listen_on_port(self._address), self._answers)])

    def open(self) -> None:
        """Answer everywhere. The agent does its work without a local socket too.

        Raises:
            HostError: the port cannot be had.
        """
        self.close()
        doors = [Door(self._port(), self._answers)] if self._address else []
        if self._path:
            try:
                doors.append(Door(listen(self._path, MOST_CONNECTIONS), self._local))
                self._listens = True
            except HostError as error:
                event(logging.WARNING, "verbs cannot ask this agent", error=str(error))
        self._server = HttpServer(doors) if doors else None

    def _port(self) -> socket.socket:
        until = time.monotonic() + _HANDING_OVER
        while True:
            try:
                return listen_on_port(self._address)
            except HostError:
                if not self._stood_by or time.monotonic() > until:
                    raise
            time.sleep(_BREATH)

    def close(self) -> None:
        """Answer nobody any more."""
        if self._server is not None:
            self._server.close()
        if self._listens:
            with suppress(FileNotFoundError):
                os.unlink(self._path)
        self._server, self._listens = None, False


def answers(agent: Agent) -> Answers:
    """Return what an agent answers to whom."""

    def healthy() -> Answer:
        since = agent.busy_since
        if since is not None and time.monotonic() - since > _STUCK:
            return text(503, f"a pass takes longer than {_STUCK:g} s")
        return (
            text(503, f"not running: {', '.join(ended)}") if (ended := dead()) else text(200, "ok")
        )

    def ready() -> Answer:
        status = agent.status
        if status.standing_by:
            return text(200, f"standing by: {status.standing_by}")
        return text(200, "ok") if status.ready else text(503, status.why_not_ready())

    def exposition() -> Answer:
        from ipmasq_agent.agent.exposition import CONTENT_TYPE

        return 200, CONTENT_TYPE, agent.metrics.text(agent.status_now())

    return {
        "/": lambda: text(200, _INDEX),
        "/healthz": healthy,
        "/readyz": ready,
        "/status": lambda: data(agent.status_now().as_data()),
        "/metrics": exposition,
    }
