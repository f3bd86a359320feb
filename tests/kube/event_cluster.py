"""A Kubernetes API that takes Events, as a Role lets it, and keeps them."""

from __future__ import annotations

import json
from typing import Any

import kmock

from tests.kube.cluster import Cluster

JsonObject = dict[str, Any]
GROUP = "events.k8s.io"


class EventCluster(Cluster):
    """The server.

    Args:
        granted: namespace → the verbs that a Role there has for Events.

    Attributes:
        events: name → the Event, as it is now.
        requests: a method and a status for each request about Events, in their order.
        failing: the status that such requests are refused with; None for none.
    """

    def __init__(self, granted: dict[str, frozenset[str]]) -> None:
        self.granted = granted
        self.events: dict[str, JsonObject] = {}
        self.requests: list[tuple[str, int]] = []
        self.failing: int | None = None
        super().__init__()

    async def _prepare(self) -> kmock.KubernetesScaffold:
        handler = await super()._prepare()
        events = kmock.resource(GROUP, "v1", "events")
        handler["create", events] << self._create
        handler["patch", events] << self._patch
        return handler

    def _answer(self, verb: str, namespace: str, status: int) -> None:
        if self.failing is not None:
            status = self.failing
        elif verb not in self.granted.get(namespace, ()):
            status = 403
        with self._changed:
            self.requests.append((verb, status))
            self._changed.notify_all()
        if status >= 400:
            raise kmock.KubernetesError(status=status, reason="Refused", message="not so")

    async def _create(self, request: kmock.Request) -> JsonObject:
        event: JsonObject = json.loads(request.body)
        name, namespace = event["metadata"]["name"], event["metadata"]["namespace"]
        assert request.namespace == namespace
        self._answer("create", namespace, 409 if name in self.events else 201)
        self.events[name] = event
        return event

    async def _patch(self, request: kmock.Request) -> JsonObject:
        assert request.name is not None
        assert request.namespace is not None
        assert request.headers["Content-Type"] == "application/merge-patch+json"
        self._answer("patch", request.namespace, 200 if request.name in self.events else 404)
        change: dict[str, Any] = json.loads(request.body)
        self.events[request.name] |= change
        return self.events[request.name]

    def wait_for(self, *requests: tuple[str, int]) -> None:
        """Wait until exactly these were made."""
        with self._changed:
            done = self._changed.wait_for(lambda: len(self.requests) >= len(requests), 60.0)
            assert done
            assert self.requests == [*requests]

    @property
    def counts(self) -> list[int]:
        """How often each Event says that it happened."""
        return [each.get("series", {}).get("count", 1) for each in [*self.events.values()]]

    def forget(self) -> None:
        """Let what was stored expire."""
        self._call(self.events.clear)
