"""Programs run in containers, through the API server.

The protocol is Kubernetes' v4.channel.k8s.io over a WebSocket: each message begins with a byte
that says which stream it belongs to (k8s.io/apimachinery, pkg/util/remotecommand).
"""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import urlencode

import websocket
from kubernetes.stream.ws_client import create_websocket

from ipmasq_agent.errors import MALFORMED, SourceUnavailable
from ipmasq_agent.sources.kube_api import CONNECT_TIMEOUT, ApiRefusal, KubeApi
from ipmasq_agent.sources.kube_words import why

STDIN, STDOUT, STDERR, ENDED = range(4)
# The largest message that each server on the way surely takes.
_PIECE = 32 << 10
_FAILURES = (websocket.WebSocketException, OSError, ValueError)


class AgentContainer(NamedTuple):
    """Where programs can be run."""

    namespace: str
    pod: str
    name: str


class Finished(NamedTuple):
    """What became of a program."""

    status: int
    out: bytes
    err: bytes


class Exec:
    """A program in a container, as a stream of messages.

    Args:
        api: the server that is asked.
        container: where.
        argv: what.
        stdin: whether it is sent something.

    Raises:
        ApiRefusal: the server, or the node, does not run it.
        SourceUnavailable: there is no answer.
        SourceError: there are no usable credentials.
    """

    def __init__(
        self, api: KubeApi, container: AgentContainer, argv: Sequence[str], *, stdin: bool = False
    ) -> None:
        configuration, authorization = api.way_in()
        query = [("command", word) for word in argv] + [("container", container.name)]
        query += [(name, "true") for name in ("stdout", "stderr", *(["stdin"] if stdin else []))]
        path = f"/api/v1/namespaces/{container.namespace}/pods/{container.pod}/exec"
        # As in http and https; the library has no other way to say how long to wait.
        url = f"ws{configuration.host.removeprefix('http')}{path}?{urlencode(query)}"
        websocket.setdefaulttimeout(CONNECT_TIMEOUT)
        headers = {"sec-websocket-protocol": "v4.channel.k8s.io"}
        if authorization is not None:
            headers["authorization"] = authorization
        try:
            self._socket = create_websocket(configuration, url, headers)
        except websocket.WebSocketBadStatusException as cause:
            raise _refusal(api, cause) from cause
        except websocket.WebSocketTimeoutException as cause:
            raise SourceUnavailable("there is no answer in time") from cause
        except _FAILURES as cause:
            raise api.unreachable(cause) from cause

    def fileno(self) -> int:
        """Return the descriptor on which to wait for messages."""
        return int(self._socket.sock.fileno())

    @property
    def pending(self) -> bool:
        """Whether there is something to read that was taken off the descriptor already."""
        sock = self._socket.sock
        return isinstance(sock, ssl.SSLSocket) and sock.pending() > 0

    def send(self, data: bytes) -> None:
        """Send to the program's standard input.

        Raises:
            SourceUnavailable: the connection broke off.
        """
        try:
            for start in range(0, len(data), _PIECE):
                self._socket.send_binary(bytes([STDIN]) + data[start : start + _PIECE])
        except _FAILURES as cause:
            raise _broken(cause) from cause

    def receive(self, seconds: float) -> tuple[int, bytes]:
        """Return the next message: which stream, and what came there.

        Raises:
            SourceUnavailable: none came in time, or none can come any more.
        """
        message = b""
        try:
            self._socket.settimeout(max(0.001, seconds))
            while not message:
                kind, message = self._socket.recv_data()
                if kind == websocket.ABNF.OPCODE_CLOSE:
                    raise SourceUnavailable("the connection to the program was closed")
        except (websocket.WebSocketTimeoutException, TimeoutError) as cause:
            raise SourceUnavailable("there is no answer in time") from cause
        except _FAILURES as cause:
            raise _broken(cause) from cause
        return message[0], message[1:]

    def close(self) -> None:
        """End the connection, and so the program."""
        self._socket.shutdown()


def _broken(cause: Exception) -> SourceUnavailable:
    return SourceUnavailable(f"the connection to the program broke off: {why(cause)}")


def run(
    api: KubeApi,
    container: AgentContainer,
    argv: Sequence[str],
    *,
    seconds: float,
    stdin: bytes | None = None,
) -> Finished:
    """Run a program to its end. Its standard input stays open: the protocol cannot close it.

    Raises:
        ApiRefusal: the server, or the node, does not run it.
        SourceUnavailable: it did not end in time, or the connection broke off.
        SourceError: there are no usable credentials.
    """
    deadline = time.monotonic() + seconds
    program = Exec(api, container, argv, stdin=stdin is not None)
    streams = {STDOUT: bytearray(), STDERR: bytearray()}
    try:
        program.send(stdin or b"")
        while True:
            stream, data = program.receive(deadline - time.monotonic())
            if stream == ENDED:
                return Finished(ended_with(data), bytes(streams[STDOUT]), bytes(streams[STDERR]))
            streams[stream] += data
    finally:
        program.close()


def ended_with(data: bytes) -> int:
    """Return the exit status that a Status object tells.

    Raises:
        SourceUnavailable: the program was not run, or did not exit.
    """
    try:
        told = json.loads(data)
        if told["status"] == "Success":
            return 0
        causes = (told.get("details") or {}).get("causes") or ()
        for cause in causes:
            if cause.get("reason") == "ExitCode":
                return int(cause["message"])
        message = str(told.get("message") or "no reason given")
    except MALFORMED:
        message = "its end is told in another form than Kubernetes has"
    raise SourceUnavailable(f"the program was not run: {message}")


def _refusal(api: KubeApi, cause: websocket.WebSocketBadStatusException) -> ApiRefusal:
    message, by_api = cause.status_message or "no reason given", False
    try:
        message, by_api = str(json.loads(cause.resp_body or b"")["message"]), True
    except MALFORMED:
        by_api = False
    return ApiRefusal(cause.status_code, api.said(message), by_api=by_api)
