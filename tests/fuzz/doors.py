"""Doors by which bytes come in, with the other side played by an input."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace, TracebackType
from typing import Any
from unittest import mock

import urllib3

from ipmasq_agent.host import local_socket
from ipmasq_agent.netlink import core
from ipmasq_agent.sources.kube_api import KubeApi

BETWEEN = b"====\n"
"""What parts the answers of one input to several questions; the last one is given again."""


class _Peer:
    """The end of a socket at which an input speaks, once, and is silent then."""

    def __init__(self, says: bytes, *, ends: bool) -> None:
        self._says = says
        self._ends = ends

    def __enter__(self) -> _Peer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def send(self, data: bytes) -> int:
        return len(data)

    def recv(self, size: int) -> bytes:
        said, self._says = self._says[:size], self._says[size:]
        if not said and not self._ends:
            raise TimeoutError("it says no more")
        return said

    def close(self) -> None:
        self._says = b""

    def nothing(self, *_: object) -> None:
        return None

    sendall = connect = settimeout = setsockopt = setblocking = bind = nothing


@contextmanager
def kernel(data: bytes) -> Iterator[None]:
    """Have the kernel answer each question over netlink with the next part of an input."""
    parts = data.split(BETWEEN)

    def connect(*_: object, **__: object) -> _Peer:
        return _Peer(parts.pop(0) if len(parts) > 1 else parts[0], ends=False)

    with mock.patch.object(core, "connect", connect):
        yield


@contextmanager
def agent(data: bytes) -> Iterator[None]:
    """Have whoever listens on a local socket answer with an input, and close."""

    def made(*_: object) -> _Peer:
        return _Peer(data, ends=True)

    played = SimpleNamespace(AF_UNIX=socket.AF_UNIX, socket=made)
    with mock.patch.object(local_socket, "socket", played):
        yield


class Api(KubeApi):
    """An API server that answers with an input, whatever is asked."""

    def __init__(self, data: bytes) -> None:
        super().__init__("/nonexistent")
        self._data = data

    def ask(self, path: str, query: Mapping[str, str], **options: Any) -> urllib3.BaseHTTPResponse:
        return Response(self._data)

    def read(self, path: str, query: Mapping[str, str], **options: Any) -> bytes:
        said, between, rest = self._data.partition(BETWEEN)
        self._data = rest if between else b""
        return said


class Response(urllib3.BaseHTTPResponse):
    """An answer of 200 with an input as its body."""

    def __init__(self, data: bytes) -> None:
        super().__init__(
            status=200, version=11, version_string="HTTP/1.1", reason=None, decode_content=False,
            request_url=None,
        )  # fmt: skip
        self._data = data

    def stream(
        self, amt: int | None = 2**16, decode_content: bool | None = None
    ) -> Iterator[bytes]:
        for start in range(0, len(self._data), 700):  # lines are cut anywhere
            yield self._data[start : start + 700]

    @property
    def connection(self) -> Any:
        return None

    def close(self) -> None:
        self._data = b""


@contextmanager
def file_of(data: bytes) -> Iterator[str]:
    """Return the path of a file that holds an input."""
    descriptor = os.memfd_create("input")
    try:
        os.write(descriptor, data)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
