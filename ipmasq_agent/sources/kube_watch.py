"""Following objects of the Kubernetes API: list, then watch, for as long as it takes.

The protocol is that of kubernetes.io/docs/reference/using-api/api-concepts, "Efficient
detection of changes" and "Retrieving large results sets in chunks".

Before each watch the server is asked what it holds now, every five to ten minutes at least.
An etcd that was restored from a snapshot counts its revisions from an earlier one on, and a
watch from a later one then brings nothing, and no error. What a list says is the truth, also
where its version is one that was already passed. Lists ask for the most recent state, never
for version 0, which any API server may answer from a cache that is behind.
"""

from __future__ import annotations

import contextlib
import json
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic

import urllib3

from ipmasq_agent.errors import MALFORMED, AgentError, SourceError, SourceUnavailable
from ipmasq_agent.host.patience import Backoff
from ipmasq_agent.host.threads import Guarded
from ipmasq_agent.sources.kube_access import PASSING, explained
from ipmasq_agent.sources.kube_api import TRANSPORT_ERRORS, ApiRefusal, KubeApi
from ipmasq_agent.sources.kube_list import (
    GONE,
    LIST_TIMEOUT,
    Found,
    Kept,
    Objects,
    list_all,
    version_now,
)
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
# Seconds without a word, bookmarks included, after which the server is asked whether it is
# there. API servers send a bookmark about once a minute, and promise none.
SILENCE = 150.0
# Seconds within which a watch that broke off is begun anew: where a server goes down, it had
# those of many nodes.
REJOINING = 5.0
# A watch that ends sooner, with nothing to tell, is not a working watch.
SHORT = 1.0
# Seconds in which a refusal may be that of an API server which has not read its rules yet, and
# the longest pause between attempts meanwhile.
PATIENCE = 10.0
IMPATIENT = 2.0
# Bytes of one event; etcd takes no object of more than 1.5 MiB.
LONGEST_LINE = 16 << 20
# Seconds that `stop` waits for a request that cannot be interrupted (TCP connect).
STOP_TIMEOUT = 0.8


class _Disconnected(Exception):
    """An established watch broke off."""


class Watch(Generic[Kept]):
    """Calls ``found`` with each state of what is wanted, and ``failed`` when none can be had.

    Both are called with a lock held, one at a time, from the thread of this object.
    """

    def __init__(
        self,
        api: KubeApi,
        wanted: Objects[Kept],
        found: Callable[[Found[Kept]], None],
        failed: Callable[[AgentError], None],
    ) -> None:
        self._api = api
        self._wanted = wanted
        self._found = found
        self._failed = failed
        # Guards what is told and asked; reentrant, as a sink may call refresh.
        self._lock = threading.RLock()
        self._wake = threading.Event()
        self._stopping = False
        self._asked = False  # to look again, and to tell also what is known already
        self._watcher = Guarded(self._run, f"{wanted.name}-watch", self._tell_failure)
        self._response: urllib3.BaseHTTPResponse | None = None
        self._latest: Found[Kept] | None = None
        self._failure: str | None = None
        self._heard: tuple[float, str] | None = None
        # Of the thread alone. The newest version that was heard of; None: list first.
        self._version: str | None = None
        self._refused_since: float | None = None
        # Whether the version comes from a list which no watch has worked with yet, how this
        # attempt goes, and whether it is to be told however it ends.
        self._untried = True
        self._opened: float | None = None
        self._working = self._telling = False
        self._backoff = Backoff()

    def start(self) -> None:
        """Begin to watch in a thread."""
        self._watcher.start()

    @property
    def heard(self) -> float | None:
        """``time.monotonic()`` of the server's last sign of life; None before the first."""
        return self._heard and self._heard[0]

    def refresh(self) -> None:
        """Have the watch begun anew, with a list whose outcome is told."""
        with self._lock:
            self._asked = True
            self._hang_up()
            self._wake.set()

    def stop(self) -> None:
        """End the watch at once; safe to call twice. Nothing is told after it returns."""
        with self._lock:
            self._stopping = True
            self._wake.set()
            self._hang_up()
        self._watcher.stop(STOP_TIMEOUT)
        self._api.close()

    # In the thread

    def _run(self) -> None:
        """List and watch until stopped, waiting longer after each attempt that fails."""
        self._version = None
        while not self._stopping:
            delay = 0.0
            self._opened, self._working = None, False
            with self._lock:
                self._telling, self._asked = self._telling or self._asked, False
            try:
                self._watch(self._renewed())
                # The server ended it in time, as asked; or too soon, as some proxies do.
                delay = 0.0 if self._working else self._backoff.next()
            except ApiRefusal as refusal:
                delay = self._refused(refusal)
            except SourceError as error:
                self._refused_since = None
                self._tell_failure(error)
                delay = self._backoff.next()
            except _Disconnected as disconnected:
                # Not a failure yet: whether it is one, the next attempt finds out.
                logger.debug("the watch of %s broke off: %s", self._wanted.name, disconnected)
                delay = random.uniform(0, REJOINING) if self._working else self._backoff.next()
            if delay:
                self._wake.wait(delay)
                if not self._stopping:
                    self._wake.clear()

    def _renewed(self) -> str:
        """Return the version to watch from, having seen that the server is not behind it.

        Raises:
            ApiRefusal: the server refuses to say.
            SourceError: it cannot be asked.
        """
        version = self._version
        if version is not None and self._wanted.page is not None and not self._telling:
            # Of a large collection, one object tells how far the server is.
            current = version_now(self._api, self._wanted)
            self._lives()
            if not _is_older(current, version):
                return version
        listed = list_all(self._api, self._wanted)
        self._lives()
        if _is_older(listed.version, version):
            logger.warning(
                "the versions of %s went back from %s to %s: listed anew",
                *(self._wanted.name, version, listed.version),
            )
        self._untried, self._version = True, listed.version
        # What failed before may fail again: the watch has to be open before that is told.
        if self._telling or self._latest is None or self._latest.value != listed.value:
            self._tell(listed)
        return listed.version

    def _refused(self, refusal: ApiRefusal) -> float:
        """Tell about a refusal, decide whether to list again; return seconds to wait."""
        if refusal.status == GONE:
            self._version = None
            # Lists that are outdated as soon as they are made would keep us busy forever.
            return self._backoff.next() if self._untried else 0.0
        if self._opened is None:
            self._tell_failure(self._told_of(refusal))
        if self._opened is not None or refusal.status not in TEMPORARY:
            self._version = None
        delay = self._backoff.next()
        if self._may_pass(refusal):
            delay = min(delay, IMPATIENT)
        return max(delay, min(refusal.retry_after, RETRY_AFTER_CAP))

    def _told_of(self, refusal: ApiRefusal) -> SourceError:
        """Return what to tell of a refusal, which may be one of an API server that starts."""
        error = explained(refusal, self._api, self._wanted.what, self._wanted.permission)
        if not self._may_pass(refusal):
            return error
        return SourceUnavailable(
            error.message,
            remedy="an API server that starts refuses everybody for a moment, so it is asked for "
            f"{PATIENCE:g} s before anything is taken to be missing",
        )

    def _may_pass(self, refusal: ApiRefusal) -> bool:
        """Whether a refusal is one of the first, of a kind that passes."""
        if refusal.status not in PASSING:
            return False
        if self._refused_since is None:
            self._refused_since = time.monotonic()
        return time.monotonic() - self._refused_since < PATIENCE

    # Requests

    def _watch(self, version: str) -> None:
        """Watch from ``version`` on until the server ends it, keeping ``_version`` up to date.

        Raises:
            ApiRefusal: the watch was refused, or ended by an event of type ERROR.
            SourceError: it could not be opened.
            _Disconnected: it broke off.
        """
        seconds = random.randint(*WATCH_SECONDS)
        query = {
            **self._wanted.query,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(seconds),
        }
        # The headers come at once; events may take as long as the watch lasts.
        response = self._api.ask(self._wanted.path, query, read_timeout=LIST_TIMEOUT)
        self._opened = time.monotonic()
        self._lives()
        try:
            with self._lock:
                if self._stopping or self._asked:
                    return
                self._response = response
            sock = getattr(response.connection, "sock", None)
            if sock is not None:
                sock.settimeout(min(seconds + OVERTIME, SILENCE))
            self._recovered()
            for line, noticed in _lines(response):
                self._lives()
                self._take(line, noticed)
                self._works()  # not before: it may be the error that ends the watch
                if noticed - self._opened > seconds + OVERTIME:
                    return  # it ends no watch by itself
        finally:
            with self._lock:
                self._response = None
            response.close()
            if time.monotonic() - self._opened >= SHORT:
                self._works()

    def _lives(self) -> None:
        now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        self._heard = time.monotonic(), now
        self._refused_since = None

    def _hang_up(self) -> None:
        """End the watch that is open, with the lock held."""
        # urllib3 refuses where all has been read, and its thread is about to say so: it ended.
        with contextlib.suppress(OSError, RuntimeError, ValueError):
            if self._response is not None:
                self._response.shutdown()

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
        except MALFORMED as cause:
            raise self._odd() from cause
        if _is_older(version, self._version):
            self._version = None
            raise _Disconnected("its versions went back")
        self._version = version
        if kind == "BOOKMARK":
            self._recovered()
        elif (latest := self._latest) is not None:
            try:
                value = self._wanted.after(latest.value, kind, subject)
            except MALFORMED as cause:
                raise self._odd() from cause
            if value is not latest.value:
                self._tell(Found(value, version, noticed))

    def _odd(self) -> _Disconnected:
        self._version = None
        return _Disconnected("it sent what is not an event")

    # Telling

    def _recovered(self) -> None:
        """Tell the state again if a failure was the last that was told."""
        if self._failure is not None and self._latest is not None:
            self._tell(self._latest._replace(noticed=time.monotonic()))

    def _tell(self, found: Found[Kept]) -> None:
        with self._lock:
            if self._stopping:
                return
            self._latest, self._failure, self._telling = found, None, False
            self._found(found)

    def _tell_failure(self, error: AgentError) -> None:
        with self._lock:
            # The same failure again is no news, though the server may have said more since.
            if self._stopping or (str(error) == self._failure and not self._telling):
                return
            self._failure, self._telling = str(error), False
            if self._heard is not None:
                message = f"{error.message}; last heard of at {self._heard[1]}"
                error = type(error)(message, remedy=error.remedy)
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
                if len(rest) > LONGEST_LINE:
                    raise _Disconnected("it sent a line without end")
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


def _is_older(version: str, than: str | None) -> bool:
    """Compare resourceVersions, which are numbers to any client since Kubernetes 1.35.

    KEP-5504 made official what etcd's revisions have always been. Versions of another form
    are never called older: an event too many does no harm.
    """
    if than is None or not all(v.isascii() and v.isdecimal() for v in (version, than)):
        return False
    # By length first: Python makes no number of thousands of digits.
    one, other = version.lstrip("0"), than.lstrip("0")
    return (len(one), one) < (len(other), other)
