"""A Kubernetes API that serves one namespace's ConfigMaps over HTTP, by kmock.

kmock's emulator keeps objects, but has no resourceVersions, field selectors, bookmarks or
expiry, which is what these tests are about: so lists and watches are answered here, through
kmock's own criteria, and its scaffold renders errors as Status objects. kmock is asyncio
and the client under test is not, so the server has a thread and a loop of its own.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import aiohttp.test_utils
import kmock

from tests.unit.sources.heard import Heard

NAMESPACE = "kube-system"
NAME = "ip-masq-agent"
PATH = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
DEADLINE = 60.0

T = TypeVar("T")


@dataclass(frozen=True)
class Call:
    """A request as the server saw it."""

    verb: str
    params: dict[str, str]
    authorization: str | None


@dataclass(eq=False)
class Stream:
    """An open watch: what is put in its queue is sent; None ends it in good order.

    It is sent what is newer than the version ``since`` which it was asked from, as API servers
    do it: of a version of the future, nothing.
    """

    transport: asyncio.Transport
    since: int = 0
    queue: asyncio.Queue[dict[str, Any] | bytes | None] = field(default_factory=asyncio.Queue)


def transport_of(request: kmock.Request) -> asyncio.Transport:
    """Return the connection of a request, which kmock keeps for whoever insists."""
    assert request._raw_request is not None
    transport = request._raw_request.transport
    assert isinstance(transport, asyncio.Transport)
    return transport


def write_kubeconfig(path: Path, port: int, user: str = "token: secret") -> Path:
    """Write a kubeconfig that leads to a port of this machine, and return where it is."""
    path.write_text(
        "apiVersion: v1\nkind: Config\ncurrent-context: lab\n"
        "contexts: [{name: lab, context: {cluster: lab, user: lab}}]\n"
        f"clusters: [{{name: lab, cluster: {{server: 'http://127.0.0.1:{port}'}}}}]\n"
        f"users: [{{name: lab, user: {{{user}}}}}]\n"
    )
    return path


class SecureServer(aiohttp.test_utils.RawTestServer):
    """What kmock serves with, over TLS."""

    def __init__(self, context: ssl.SSLContext, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._context = context

    async def start_server(
        self, loop: asyncio.AbstractEventLoop | None = None, **options: Any
    ) -> None:
        await super().start_server(loop, ssl=self._context, **options)


class Cluster:
    """The server. Its methods may be called from any thread."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self._server_class = (
            functools.partial(SecureServer, context)
            if context
            else aiohttp.test_utils.RawTestServer
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="cluster")
        self._changed = threading.Condition()
        self.calls: list[Call] = []
        # Set these from a test; read by the server's thread.
        self.refusals: dict[str, tuple[int, str]] = {}
        self.token: str | None = None
        self.silent: set[str] = set()
        self.ends_watches_at_once = False
        self.ends_watches_with: dict[str, Any] | None = None
        self._version = 100
        self._oldest = 0
        self._configmap: dict[str, Any] | None = None
        self._history: list[tuple[int, dict[str, Any]]] = []
        self._streams: list[Stream] = []
        self._silent: list[Stream] = []
        self._server: kmock.Server | None = None
        self.port = 0
        self._thread.start()
        self._handler = self._run(self._prepare())
        self.up()

    # The network

    def up(self) -> None:
        """Listen, on the same port as before."""

        async def up() -> None:
            self._server = kmock.Server(
                self._handler, port=self.port or None, server_cls=self._server_class
            )
            await self._server.__aenter__()
            self.port = self._server.port

        self._run(up())

    def down(self) -> None:
        """Break all connections, and refuse new ones."""

        async def down() -> None:
            self._abort()
            if self._server is not None:
                leaving = asyncio.ensure_future(self._server.__aexit__(None, None, None))
                # A watch that was asked for just now begins after the others were broken.
                while not (await asyncio.wait([leaving], timeout=0.05))[0]:
                    self._abort()
                self._server = None
                await leaving

        self._run(down())

    def close(self) -> None:
        self.down()

        async def leave() -> None:
            await self._handler.__aexit__(None, None, None)
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        self._run(leave())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE)
        self._loop.close()

    def break_watches(self) -> None:
        """Reset the connections of all watches."""
        self._call(self._abort)

    def end_watches(self) -> None:
        """End all watches as after their timeoutSeconds."""
        self._call(lambda: self._send(None))

    # The object

    def put(
        self,
        data: dict[str, str],
        binary: dict[str, bytes] | None = None,
        annotations: dict[str, str] | None = None,
    ) -> str:
        """Create or update the ConfigMap, and return its resourceVersion."""

        def put() -> str:
            kind = "ADDED" if self._configmap is None else "MODIFIED"
            self._configmap = {
                "metadata": {
                    "name": NAME,
                    "namespace": NAMESPACE,
                    "uid": "uid-1",
                    "annotations": annotations or {},
                },
                "data": data,
                "binaryData": {
                    key: base64.b64encode(value).decode() for key, value in (binary or {}).items()
                },
            }
            return self._commit(kind, self._configmap)

        return self._call(put)

    def delete(self) -> None:
        def delete() -> None:
            assert self._configmap is not None
            gone, self._configmap = self._configmap, None
            self._commit("DELETED", gone)

        self._call(delete)

    def bookmark(self) -> str:
        """Move the version on without a change of the object, and tell the watches."""

        def bookmark() -> str:
            self._version += 10
            event = {
                "type": "BOOKMARK",
                "object": {"metadata": {"resourceVersion": str(self._version)}},
            }
            self._send(event, self._version)
            return str(self._version)

        return self._call(bookmark)

    def compact(self) -> None:
        """Forget the history: to watch from any earlier version is refused with 410."""

        def compact() -> None:
            self._version += 10
            self._oldest = self._version
            self._history.clear()

        self._call(compact)

    def restore(self, data: dict[str, str]) -> str:
        """Go back to an early version, as etcd does when it is restored from a snapshot."""

        def restore() -> str:
            self._version, self._oldest = 5, 0
            self._history.clear()
            metadata = {"name": NAME, "namespace": NAMESPACE, "resourceVersion": "4"}
            self._configmap = {"metadata": metadata, "data": data}
            return "4"

        return self._call(restore)

    def send(self, event: dict[str, Any] | bytes) -> None:
        """Send an event, or raw bytes, to all watches."""
        self._call(lambda: self._send(event))

    # What it was asked

    def wait(self, condition: Callable[[list[Call]], bool]) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: condition(self.calls), DEADLINE):
                raise AssertionError(f"not asked within {DEADLINE} s, but: {self.calls}")

    def asked(self, verb: str) -> list[Call]:
        with self._changed:
            return [call for call in self.calls if call.verb == verb]

    def wait_for_watch(self, number: int = 1) -> Call:
        """Wait until a watch was asked for as many times, and return the request."""
        self.wait(lambda calls: sum(call.verb == "watch" for call in calls) >= number)
        return self.asked("watch")[number - 1]

    @property
    def open_watches(self) -> int:
        return self._call(lambda: sum(not each.transport.is_closing() for each in self._streams))

    # In the server's thread

    async def _prepare(self) -> kmock.KubernetesScaffold:
        handler = kmock.KubernetesScaffold()
        await handler.__aenter__()
        handler["list", kmock.resource("", "v1", "configmaps")] << self._list
        handler["watch", kmock.resource("", "v1", "configmaps")] << self._watch
        return handler

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(DEADLINE)

    def _call(self, function: Callable[[], T]) -> T:
        async def call() -> T:
            return function()

        return self._run(call())

    def _abort(self) -> None:
        for stream in (*self._streams, *self._silent):
            stream.transport.abort()
            stream.queue.put_nowait(None)
        self._streams.clear()
        self._silent.clear()

    def _commit(self, kind: str, configmap: dict[str, Any]) -> str:
        self._version += 1
        metadata = configmap["metadata"] | {"resourceVersion": str(self._version)}
        configmap["metadata"] = metadata
        event = {"type": kind, "object": dict(configmap)}
        self._history.append((self._version, event))
        self._send(event, self._version)
        return str(self._version)

    def _send(self, event: dict[str, Any] | bytes | None, version: int | None = None) -> None:
        for stream in self._streams:
            if version is None or version > stream.since:
                stream.queue.put_nowait(event)

    async def _admit(self, verb: str, request: kmock.Request) -> None:
        authorization = request.headers.get("Authorization")
        with self._changed:
            self.calls.append(Call(verb, dict(request.params), authorization))
            self._changed.notify_all()
        if verb in self.silent:
            stream = Stream(transport_of(request))
            self._silent.append(stream)
            await stream.queue.get()
        if self.token is not None and authorization not in (
            f"Bearer {self.token}",
            f"bearer {self.token}",
        ):
            raise kmock.KubernetesError(status=401, reason="Unauthorized", message="Unauthorized")
        if verb in self.refusals:
            status, message = self.refusals[verb]
            raise kmock.KubernetesError(status=status, reason="Refused", message=message)
        self._authorise(request)

    def _authorise(self, request: kmock.Request) -> None:
        """Refuse as RBAC does with resourceNames."""
        if request.params.get("fieldSelector") != f"metadata.name={NAME}":
            raise kmock.KubernetesError(status=403, reason="Forbidden", message="no selector")

    async def _list(self, request: kmock.Request) -> dict[str, Any]:
        await self._admit("list", request)
        return {
            "kind": "ConfigMapList",
            "metadata": {"resourceVersion": str(self._version)},
            "items": [self._configmap] if self._configmap is not None else [],
        }

    async def _watch(self, request: kmock.Request) -> AsyncIterator[dict[str, Any] | bytes]:
        await self._admit("watch", request)
        since = int(request.params["resourceVersion"])
        if since < self._oldest:
            raise kmock.KubernetesError(status=410, reason="Expired", message="too old")
        return self._events(request, since)

    async def _events(
        self, request: kmock.Request, since: int
    ) -> AsyncIterator[dict[str, Any] | bytes]:
        stream = Stream(transport_of(request), since)
        for version, event in self._history:
            if version > since:
                stream.queue.put_nowait(event)
        if self.ends_watches_with is not None:
            stream.queue.put_nowait(self.ends_watches_with)
        if self.ends_watches_at_once or self.ends_watches_with is not None:
            stream.queue.put_nowait(None)
        self._streams.append(stream)
        try:
            # Sends the headers.
            yield b""
            while (event_ := await stream.queue.get()) is not None:
                yield event_
        finally:
            if stream in self._streams:
                self._streams.remove(stream)


def established(cluster: Cluster, heard: Heard) -> None:
    """Wait until something has come through the watch, and forget what was heard so far.

    That the server was asked for a watch does not mean that its answer has arrived.
    """
    cluster.wait_for_watch()
    cluster.put({"config": "through the watch"})
    heard.content(b"through the watch")
    cluster.put({"config": "first"})
    heard.content(b"first")
    heard.forget()
