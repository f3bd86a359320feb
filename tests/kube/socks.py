"""A SOCKS 5 proxy (RFC 1928, with RFC 1929's passwords) that leads wherever it is asked to."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import struct
import threading
from collections.abc import Iterator


class SocksProxy(socketserver.ThreadingTCPServer):
    """Counts the connections that it made; with a password it asks for it."""

    daemon_threads = True

    def __init__(self, password: str | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.password = password
        self.connections = 0
        self.port: int = self.server_address[1]


class _Connection(socketserver.BaseRequestHandler):
    server: SocksProxy

    def handle(self) -> None:
        with contextlib.suppress(OSError, struct.error):
            target = self._agree()
            if target is not None:
                self.server.connections += 1
                with target:
                    back = threading.Thread(target=_pump, args=(target, self.request), daemon=True)
                    back.start()
                    _pump(self.request, target)
                    back.join()

    def _agree(self) -> socket.socket | None:
        _, methods = self._exactly(2)
        self._exactly(methods)
        if self.server.password is None:
            self.request.sendall(b"\x05\x00")
        else:
            self.request.sendall(b"\x05\x02")
            self._exactly(self._exactly(2)[1])
            said = self._exactly(self._exactly(1)[0])
            right = said == self.server.password.encode()
            self.request.sendall(b"\x01\x00" if right else b"\x01\x01")
            if not right:
                return None
        kind = self._exactly(4)[3]
        if kind == 1:
            host = socket.inet_ntoa(self._exactly(4))
        else:
            host = self._exactly(self._exactly(1)[0]).decode()
        (port,) = struct.unpack(">H", self._exactly(2))
        try:
            target = socket.create_connection((host, port), timeout=20)
        except OSError:
            self.request.sendall(b"\x05\x05\x00\x01" + bytes(6))
            return None
        self.request.sendall(b"\x05\x00\x00\x01" + bytes(6))
        return target

    def _exactly(self, count: int) -> bytes:
        data = bytes(self.request.recv(count, socket.MSG_WAITALL))
        if len(data) < count:
            raise OSError("the client left")
        return data


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def socks_proxy(password: str | None = None) -> Iterator[SocksProxy]:
    """Run a proxy in a thread."""
    with SocksProxy(password) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.05,), name="socks")
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            thread.join()
