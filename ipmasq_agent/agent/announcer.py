"""Writes Events about the document and the node, in a thread of its own: no pass waits for it.

Nothing depends on an Event. That one cannot be written is said once in the log, and it is tried
again after a minute, for an hour; where the API server forbids it, not even that.
"""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import random
import threading
import time

from ipmasq_agent.agent.announcements import Announcement, Ledger, Posting, announcements
from ipmasq_agent.agent.status import ConfigStatus, Status
from ipmasq_agent.answers.ports import PortLook
from ipmasq_agent.errors import SourceError
from ipmasq_agent.host.threads import Guarded
from ipmasq_agent.logs import event
from ipmasq_agent.sources.kube_access import Permission
from ipmasq_agent.sources.kube_api import ApiRefusal, Content, KubeApi

JITTER = 30.0
"""Seconds over which agents spread what happens to all of them at once."""
_TIMEOUT = 10.0
_WAITING = 64  # announcements
_EXISTS, _GONE, _BUSY = 409, 404, 429


class Announcer:
    """Makes Events of what a status tells.

    Args:
        api: where they are written.
        node: the name of this one.
    """

    def __init__(self, api: KubeApi, node: str) -> None:
        self._api, self._node = api, node
        self._seen = Status(ConfigStatus("")), PortLook()
        self._ledger = Ledger()
        self._waiting: queue.Queue[Announcement | None] = queue.Queue(_WAITING)
        self._stopping = threading.Event()
        self._thread = Guarded(self._work, "events")
        self._trouble = False

    def see(self, status: Status, ports: PortLook) -> None:
        """Take in the status of this moment; what is worth an Event is written soon."""
        if status is self._seen[0] and ports is self._seen[1]:
            return
        before, self._seen = self._seen, (status, ports)
        for one in announcements(self._node, before, self._seen, time.time()):
            with contextlib.suppress(queue.Full):
                self._waiting.put_nowait(one)
            if not self._thread.alive:
                self._thread.start()

    def stop(self, timeout: float) -> None:
        """Write no more; wait so many seconds for what goes on."""
        self._stopping.set()
        with contextlib.suppress(queue.Full):  # it does not wait for news where it is full
            self._waiting.put_nowait(None)
        self._thread.stop(timeout)

    # In the thread

    def _work(self) -> None:
        while not self._stopping.is_set():
            news: list[Announcement | None] = []
            with contextlib.suppress(queue.Empty):
                news.append(self._waiting.get(timeout=self._ledger.until_update(time.monotonic())))
                if self._stopping.wait(random.uniform(0, JITTER)):
                    return
                while True:
                    news.append(self._waiting.get_nowait())
            for one in filter(None, news):
                if posting := self._ledger.enter(one, time.monotonic()):
                    self._write(posting)
            if posting := self._ledger.update(time.monotonic()):
                self._write(posting)
            self._api.close()

    def _write(self, posting: Posting) -> None:
        """Write an Event; where it cannot be now, that it lags behind is what is left of it."""
        namespace, name = posting.first.namespace, posting.first.name
        path = f"/apis/events.k8s.io/v1/namespaces/{namespace}/events"
        method, kind = "POST", "application/json"
        if posting.written:
            path, method, kind = f"{path}/{name}", "PATCH", "application/merge-patch+json"
        content = Content(kind, json.dumps(posting.as_change()).encode())
        try:
            self._api.read(path, {}, read_timeout=_TIMEOUT, method=method, content=content)
        except ApiRefusal as refusal:
            if refusal.by_api and refusal.status == _EXISTS:
                posting.ours = False  # by another node, or by who was here before
            elif refusal.by_api and refusal.status == _GONE and posting.written:
                self._ledger.forget(posting)
            else:
                posting.ours = refusal.status >= 500 or refusal.status == _BUSY
                self._failed(posting, self._explained(refusal, namespace))
        except SourceError as error:
            self._failed(posting, error)
        else:
            posting.written = posting.count
            if self._trouble:
                event(logging.INFO, "Events are written again")
            self._trouble = False

    def _explained(self, refusal: ApiRefusal, namespace: str) -> SourceError:
        said = f"{self._api.host} takes no Event: {refusal.message} ({refusal.status})"
        needed = Permission("events", namespace, verbs=("create", "patch"), group="events.k8s.io")
        denied = refusal.by_api and refusal.status == 403
        return SourceError(said, remedy=needed.grant(refusal.message) if denied else None)

    def _failed(self, posting: Posting, error: SourceError) -> None:
        """Say once that Events are not written, until one is."""
        if not self._trouble:
            reason = posting.first.reason
            event(logging.WARNING, "Events cannot be written", reason=reason, error=str(error))
        self._trouble = True
