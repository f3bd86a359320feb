"""Health, readiness, status and metrics over HTTP."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from ipmasq_agent.errors import HostError, UsageError

Answer = tuple[int, str, bytes]
"""Status code, content type, body."""

_TEXT = "text/plain; charset=utf-8"
# The server looks for a shutdown once in this many seconds; an idle daemon should sleep,
# so close() wakes it up instead.
_NEVER = 3600.0


class HttpServer:
    """Answers GET requests from a table of paths, in threads of its own."""

    def __init__(self, address: str, answers: dict[str, Callable[[], Answer]]) -> None:
        """Bind to ``HOST:PORT`` (IPv6 hosts in brackets).

        Raises:
            UsageError: the address cannot be read.
            HostError: it cannot be bound.
        """
        self._host, port = split_address(address)
        host = self._host

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                answer = answers.get(self.path.partition("?")[0])
                code, kind, body = answer() if answer else (404, _TEXT, b"not found\n")
                self.send_response(code)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Stay silent: probes come every few seconds."""

        class Server(ThreadingHTTPServer):
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
            daemon_threads = True

        try:
            self._server = Server((host, port), Handler)
        except OSError as cause:
            raise HostError(
                f"cannot listen on {address}: {cause.strerror or cause}",
                remedy="choose another --http-address, or an empty one for none",
            ) from cause
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_NEVER,), name="http", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop answering."""
        stopping = threading.Thread(target=self._server.shutdown, daemon=True)
        stopping.start()
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._host, self._host)
        with contextlib.suppress(OSError), socket.create_connection((host, self.port), timeout=1):
            stopping.join()
        self._thread.join(timeout=1)
        self._server.server_close()


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT``; a host left out means every address."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"{address!r} is not HOST:PORT, like 127.0.0.1:9797")
    return host.strip("[]") or "0.0.0.0", int(port)


def text(code: int, body: str) -> Answer:
    """Return a plain text answer."""
    return code, _TEXT, (body + "\n").encode()


def data(value: object) -> Answer:
    """Return a JSON answer."""
    return 200, "application/json", (json.dumps(value, indent=2) + "\n").encode()
