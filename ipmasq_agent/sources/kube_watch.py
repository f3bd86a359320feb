"""Following objects of the Kubernetes API: list, then watch, for as long as it takes.

The protocol is that of kubernetes.io/docs/reference/using-api/api-concepts, "Efficient
detection of changes" and "Retrieving large results sets in chunks".
"""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Generic

import urllib3

from ipmasq_agent.errors import SourceError
from ipmasq_agent.sources.backoff import Backoff
from ipmasq_agent.sources.kube_api import TRANSPORT_ERRORS, ApiRefusal, KubeApi
from ipmasq_agent.sources.kube_list import GONE, LIST_TIMEOUT, Found, Value, View, list_all
from ipmasq_agent.sources.kube_words import why

logger = logging.getLogger(__name__)

# Refusals of a watch that say nothing about the version it was to start from.
TEMPORARY = frozenset({401, 403, 429, 500, 502, 503})
# Seconds beyond which a server's wish to be left alone is not granted.
RETRY_AFTER_CAP = 60.0
# Seconds after which the server is asked to end a watch; spread, so that the nodes of a
# cluster do not come back all at once.
WATCH_SECONDS = (300, 600)
# Seconds that a watch may outlast that before the connection counts as dead.
OVERTIME = 15.0
# A watch that ends sooner, with nothing to tell, is not a working watch.
SHORT = 1.0
# Seconds that `stop` waits for a request that cannot be interrupted (TCP connect).
STOP_TIMEOUT = 0.8


class _Disconnected(Exception):
    """An established watch broke off."""


class Watch(Generic[Value]):
    """Calls ``found`` with each state of a view, and ``failed`` when none can be had.

    Both are called with a lock held, one at a time, from a thread of this object.

    Args:
        api: where to ask.
        path: of the collection, as ``/api/v1/namespaces/NAMESPACE/configmaps``.
        view: what of it is followed.
        explain: makes an error for users of a refusal.
    """

    def __init__(
        self,
        api: KubeApi,
        path: str,
        view: View[Value],
        explain: Callable[[ApiRefusal], SourceError],
    ) -> None:
        self._api = api
        self._path = path
        self._view = view
        self._explain = explain
        self._found: Callable[[Found[Value]], None] | None = None
        self._failed: Callable[[SourceError], None] | None = None
        # Guards everything below; reentrant, as a sink may call refresh.
        self._lock = threading.RLock()
        self._wake = threading.Event()
        self._stopping = False
        self._threads: list[threading.Thread] = []
        self._refreshing = False
        self._response: urllib3.BaseHTTPResponse | None = None
        self._latest: Found[Value] | None = None
        self._failure: str | None = None
        # Of the watching thread alone: from where to watch (None: list first), whether that
        # comes from a list which no watch has worked with yet, and how this attempt goes.
        self._version: str | None = None
        self._untried = True
        self._opened: float | None = None
        self._working = False
        self._backoff = Backoff()

    def read(self) -> Found[Value]:
        """List once.

        Raises:
            SourceError: it cannot be had.
        """
        try:
            return self._list()
        except ApiRefusal as refusal:
            raise self._explain(refusal) from refusal

    def start(
        self, found: Callable[[Found[Value]], None], failed: Callable[[SourceError], None]
    ) -> None:
        """Begin to watch in a thread."""
        with self._lock:
            if self._found is not None:
                raise RuntimeError("a watch can be started once")
            self._found, self._failed = found, failed
            self._spawn(self._run, "watch")

    def refresh(self) -> None:
        """Ask the server now, beside the watch, and tell the outcome."""
        with self._lock:
            if self._found is None or self._stopping or self._refreshing:
                return
            self._refreshing = True
            self._spawn(self._refresh, "refresh")

    def stop(self) -> None:
        """End the watch at once; safe to call twice. Nothing is told after it returns."""
        with self._lock:
            self._stopping = True
            self._wake.set()
            if self._response is not None:
                self._response.shutdown()
            threads = list(self._threads)
        deadline = time.monotonic() + STOP_TIMEOUT
        for thread in threads:
            thread.join(max(deadline - time.monotonic(), 0))
        self._api.close()

    # Threads

    def _spawn(self, target: Callable[[], None], purpose: str) -> None:
        thread = threading.Thread(target=target, name=f"{self._view.name}-{purpose}", daemon=True)
        self._threads = [each for each in self._threads if each.is_alive()]
        self._threads.append(thread)
        thread.start()

    def _refresh(self) -> None:
        """Tell what a list says, unless the watch has told something newer meanwhile."""
        with self._lock:
            before = self._latest
        outcome: Found[Value] | SourceError
        try:
            outcome = self.read()
        except SourceError as error:
            outcome = error
        with self._lock:
            self._refreshing = False
            if isinstance(outcome, Found):
                newer = self._latest if self._latest is not before else None
                self._tell(newer or outcome)
                # The server answers: no reason to wait any longer.
                self._wake.set()
            else:
                self._tell_failure(outcome, again=True)

    def _run(self) -> None:
        """List and watch until stopped, waiting longer after each attempt that fails."""
        while not self._stopping:
            delay = 0.0
            self._opened, self._working = None, False
            try:
                if self._version is None:
                    listed = self._list()
                    self._version, self._untried = listed.version, True
                    self._tell(listed)
                self._watch(self._version)
                # The server ended it in time, as asked; or too soon, as some proxies do.
                delay = 0.0 if self._working else self._backoff.next()
            except ApiRefusal as refusal:
                delay = self._refused(refusal)
            except SourceError as error:
                self._tell_failure(error)
                delay = self._backoff.next()
            except _Disconnected as disconnected:
                # Not a failure yet: whether it is one, the next attempt finds out.
                logger.debug("the watch of %s broke off: %s", self._view.name, disconnected)
                delay = self._backoff.next()
            if delay:
                self._wake.wait(delay)
                if not self._stopping:
                    self._wake.clear()

    def _refused(self, refusal: ApiRefusal) -> float:
        """Tell about a refusal, decide whether to list again; return seconds to wait."""
        if refusal.status == GONE:
            self._version = None
            # Lists that are outdated as soon as they are made would keep us busy forever.
            return self._backoff.next() if self._untried else 0.0
        if self._opened is None:
            self._tell_failure(self._explain(refusal))
        if self._opened is not None or refusal.status not in TEMPORARY:
            self._version = None
        return max(self._backoff.next(), min(refusal.retry_after, RETRY_AFTER_CAP))

    # Requests

    def _list(self) -> Found[Value]:
        """Ask for everything as it is now."""
        return list_all(self._api, self._path, self._view)

    def _watch(self, version: str) -> None:
        """Watch from ``version`` on until the server ends it, keeping ``_version`` up to date.

        Raises:
            ApiRefusal: the watch was refused, or ended by an event of type ERROR.
            SourceError: it could not be opened.
            _Disconnected: it broke off.
        """
        seconds = random.randint(*WATCH_SECONDS)
        query = {
            **self._view.query,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(seconds),
        }
        # The headers come at once; events may take as long as the watch lasts.
        response = self._api.get(self._path, query, read_timeout=LIST_TIMEOUT)
        self._opened = time.monotonic()
        try:
            with self._lock:
                if self._stopping:
                    return
                self._response = response
            sock = getattr(response.connection, "sock", None)
            if sock is not None:
                sock.settimeout(seconds + OVERTIME)
            self._recovered()
            for line, noticed in _lines(response):
                self._works()
                self._take(line, noticed)
        finally:
            with self._lock:
                self._response = None
            response.close()
            if time.monotonic() - self._opened >= SHORT:
                self._works()

    def _works(self) -> None:
        self._working, self._untried = True, False
        self._backoff.reset()

    def _take(self, line: bytes, noticed: float) -> None:
        """Handle one event of a watch."""
        try:
            event = json.loads(line)
            kind, subject = event["type"], event["object"]
            if kind == "ERROR":
                details = subject.get("details") or {}
                raise ApiRefusal(
                    int(subject.get("code") or 500),
                    self._api.said(str(subject.get("message") or "no reason given")),
                    float(details.get("retryAfterSeconds") or 0),
                )
            version = str(subject["metadata"]["resourceVersion"])
        except (ValueError, KeyError, TypeError, AttributeError) as cause:
            self._version = None
            raise _Disconnected("it sent what is not an event") from cause
        self._version = version
        if kind == "BOOKMARK":
            return
        with self._lock:
            latest = self._latest
            # A refresh may have overtaken the watch, which may lag behind a list.
            if latest is None or _is_older(version, latest.version):
                return
            value = self._view.changed(latest.value, kind, subject)
            if value is not latest.value:
                self._tell(Found(value, version, noticed))

    # Telling

    def _recovered(self) -> None:
        """Tell the state again if a failure was the last that was told."""
        with self._lock:
            if self._failure is not None and self._latest is not None:
                self._tell(replace(self._latest, noticed=time.monotonic()))

    def _tell(self, found: Found[Value]) -> None:
        with self._lock:
            if self._stopping or self._found is None:
                return
            self._latest, self._failure = found, None
            self._found(found)

    def _tell_failure(self, error: SourceError, *, again: bool = False) -> None:
        with self._lock:
            if self._stopping or self._failed is None:
                return
            if str(error) == self._failure and not again:
                return
            self._failure = str(error)
            self._failed(error)


def _lines(response: urllib3.BaseHTTPResponse) -> Iterator[tuple[bytes, float]]:
    """Yield each line with the time its end arrived.

    The last one may lack its newline: an API server may send the error of a version that
    is too old as a body of its own, not as an event of a stream.

    Raises:
        _Disconnected: the stream broke off.
    """
    rest = bytearray()
    try:
        for chunk in response.stream(65536):
            noticed = time.monotonic()
            rest += chunk
            if b"\n" not in chunk:
                continue
            *lines, last = bytes(rest).split(b"\n")
            rest = bytearray(last)
            for line in lines:
                if line.strip():
                    yield line, noticed
    except TRANSPORT_ERRORS as cause:
        raise _Disconnected(why(cause)) from cause
    if rest:
        yield bytes(rest), noticed


def _is_older(version: str, than: str) -> bool:
    """Compare resourceVersions, which are numbers to any client since Kubernetes 1.35.

    KEP-5504 made official what etcd's revisions have always been. Versions of another form
    are never called older: an event too many does no harm.
    """
    return version.isdecimal() and than.isdecimal() and int(version) < int(than)
