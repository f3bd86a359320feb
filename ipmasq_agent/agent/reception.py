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
from ipmasq_agent.host.threads import dead, standstill
from ipmasq_agent.logs import event

# A pass that takes longer than this is stuck, and a restart is the better agent.
_STUCK = 300.0
# Seconds in which the port of an agent that ends becomes free.
_HANDING_OVER, _BREATH = 5.0, 0.05
_LONGEST_TOKEN = 4096  # bytes: a request's head has twice that
_WRITE_A_TOKEN = "write the token of --metrics-token-file there"
_INDEX = f"""\
ipmasq-agent {__version__}
/healthz  200 while the agent works
/readyz   200 while the newest document is in force; else why not
/status   what is in force, as JSON
/metrics  for Prometheus"""


_GUARDED = frozenset({"/metrics", "/status"})
"""What a token can be asked for: a kubelet's probes send none."""


class TokenFile:
    """A token in a file that others may replace at any time.

    Raises:
        HostError: there is none in it.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._read()

    def admits(self, path: str, token: bytes | None) -> bool:
        """Whether who sends ``token`` is told what is at ``path``.

        Raises:
            HostError: there is none to compare it with.
        """
        from hmac import compare_digest

        return path not in _GUARDED or compare_digest(token or b"", self._read())

    def _read(self) -> bytes:
        try:
            with open(self._path, "rb") as file:
                token = file.read(_LONGEST_TOKEN).strip()
        except OSError as cause:
            raise HostError(f"{self._path}: {cause.strerror}", remedy=_WRITE_A_TOKEN) from cause
        if not token:
            raise HostError(f"{self._path} holds no token", remedy=_WRITE_A_TOKEN)
        return token


class Reception:
    """Opens the doors of an agent, and closes them.

    Args:
        address: ``HOST:PORT`` for health and metrics; empty for none.
        path: of the local socket; empty for none.
        token_file: of the token without which the port tells health alone; None for no such.
    """

    def __init__(
        self,
        agent: Agent,
        address: str,
        path: str,
        introducer: Introducer,
        token_file: TokenFile | None = None,
    ) -> None:
        self._answers = answers(agent)
        self._token_file = token_file
        self._address, self._path = address, path
        self._local = {
            **self._answers,
            PAGE: lambda _: data(introducer.as_data()),
            NAME_PAGE: lambda _: text(200, introducer.name),
        }
        self._server: HttpServer | None = None
        self._listens = self._stood_by = False

    def open_beside(self) -> None:
        """Answer on the port while another agent is at work, unless that one has it."""
        self._stood_by = True
        with suppress(HostError):
            if self._address:
                self._server = HttpServer([self._door(listen_on_port(self._address))])

    def open(self) -> None:
        """Answer everywhere. The agent does its work without a local socket too.

        Raises:
            HostError: the port cannot be had.
        """
        self.close()
        doors = [self._door(self._port())] if self._address else []
        if self._path:
            try:
                doors.append(Door(listen(self._path, MOST_CONNECTIONS), self._local))
                self._listens = True
            except HostError as error:
                event(logging.WARNING, "verbs cannot ask this agent", error=str(error))
        self._server = HttpServer(doors) if doors else None

    def _door(self, listener: socket.socket) -> Door:
        door = Door(listener, self._answers)
        return door._replace(admits=self._token_file.admits) if self._token_file else door

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

    def healthy(_: str) -> Answer:
        since = agent.busy_since
        if since is not None and time.monotonic() - since > _STUCK:
            return text(503, f"a pass takes longer than {_STUCK:g} s")
        if why := standstill():
            return text(503, why)
        return (
            text(503, f"not running: {', '.join(ended)}") if (ended := dead()) else text(200, "ok")
        )

    def ready(_: str) -> Answer:
        status = agent.status
        if why := standstill():
            return text(503, why)
        if status.standing_by:
            return text(200, f"standing by: {status.standing_by}")
        return text(200, "ok") if status.ready else text(503, status.why_not_ready())

    def exposition(accept: str) -> Answer:
        from ipmasq_agent.agent.exposition import exposed

        return 200, *exposed(agent.metrics.all(agent.status_now()), accept)

    return {
        "/": lambda _: text(200, _INDEX),
        "/healthz": healthy,
        "/readyz": ready,
        "/status": lambda _: data(agent.status_now().as_data()),
        "/metrics": exposition,
    }
