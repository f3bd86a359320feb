"""What is kept of the objects of the Kubernetes API, and lists of them, page by page.

The protocol is that of kubernetes.io/docs/reference/using-api/api-concepts, "Retrieving
large results sets in chunks".
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from ipmasq_agent.errors import MALFORMED, SourceUnavailable
from ipmasq_agent.sources.kube_api import ApiRefusal, KubeApi

JsonObject = dict[str, Any]
Value = TypeVar("Value")
Told = TypeVar("Told", covariant=True)

GONE = 410
LIST_TIMEOUT = 15.0
# How often a list is begun whose later pages the server forgets before they are asked for.
LIST_TRIES = 3
_LIST_KEYS = frozenset({"metadata", "resourceVersion", "continue", "items"})


@dataclass(frozen=True, slots=True)
class Found(Generic[Value]):
    """One state of what is followed.

    Attributes:
        value: what the view makes of it.
        version: the resourceVersion up to which this is true.
        noticed: ``time.monotonic()`` when its bytes arrived.
    """

    value: Value
    version: str
    noticed: float


class Listing(Protocol[Told]):
    """What is kept of the objects of a list, given each once as JSON."""

    @property
    def name(self) -> str:
        """What is followed, for threads and logs."""

    @property
    def query(self) -> Mapping[str, str]:
        """The parameters that select it."""

    @property
    def page(self) -> int | None:
        """How many objects to ask for at a time; None for all."""

    @property
    def keeps(self) -> frozenset[str] | None:
        """The keys of a list, at any depth, that the view looks at; None for all.

        The others are dropped while a page is parsed, so that it never exists as a whole.
        """

    def listed(self, objects: Iterator[JsonObject]) -> Told:
        """Return the value of a whole list."""


class View(Listing[Value], Protocol[Value]):
    """What is kept of objects that are followed. Values are never changed in place."""

    def changed(self, before: Value, kind: str, subject: JsonObject) -> Value:
        """Return the value after an event: ``before`` itself where nothing has changed.

        Args:
            before: the value before it.
            kind: ``ADDED``, ``MODIFIED`` or ``DELETED``.
            subject: the object, as it is now or as it was last.
        """


class OneObject:
    """A view of one object: its JSON, or None where it does not exist.

    The object is named in a field selector, since RBAC rules with ``resourceNames`` allow
    list and watch only then.
    """

    page = None
    keeps = None

    def __init__(self, name: str) -> None:
        self.name = name
        self.query = {"fieldSelector": f"metadata.name={name}"}

    def listed(self, objects: Iterator[JsonObject]) -> JsonObject | None:
        """Return the object among those of a list."""
        return next((each for each in objects if self._is_it(each)), None)

    def changed(
        self, before: JsonObject | None, kind: str, subject: JsonObject
    ) -> JsonObject | None:
        """Return the object after an event."""
        if not self._is_it(subject):
            return before
        return None if kind == "DELETED" else subject

    def _is_it(self, subject: JsonObject) -> bool:
        return bool(subject["metadata"].get("name") == self.name)


def list_all(api: KubeApi, path: str, view: Listing[Value]) -> Found[Value]:
    """Return what a view makes of a whole collection, as it is now.

    No more than one page is held at a time. All pages show the state at the first one; a
    list that takes longer than the server keeps history is begun anew.

    Raises:
        ApiRefusal: the list was refused.
        SourceError: there was no answer, or none of a Kubernetes API.
    """
    for _ in range(LIST_TRIES - 1):
        try:
            return _list_once(api, path, view)
        except ApiRefusal as refusal:
            if refusal.status != GONE:
                raise
    return _list_once(api, path, view)


def version_now(api: KubeApi, path: str, view: View[Any]) -> str:
    """Return the version of a collection as it is now, for the price of one object.

    Raises:
        ApiRefusal: the list was refused.
        SourceError: there was no answer, or none of a Kubernetes API.
    """
    pages = _Pages(api, path, view, limit=1)
    with an_api(api):
        next(pages.objects(), None)
        return pages.version


def _list_once(api: KubeApi, path: str, view: Listing[Value]) -> Found[Value]:
    pages = _Pages(api, path, view, limit=view.page)
    with an_api(api):
        objects = pages.objects()
        value = view.listed(objects)
        for _ in objects:
            continue  # to the end: what a view does not ask for may be an error
    return Found(value, pages.version, pages.noticed)


@contextlib.contextmanager
def an_api(api: KubeApi) -> Iterator[None]:
    """Say of whatever is not in the form of an answer that this is no Kubernetes API."""
    try:
        yield
    except MALFORMED as cause:
        raise SourceUnavailable(
            f"{api.host} does not answer as a Kubernetes API does",
            remedy=f"check the server's address in {api.credentials.address}",
        ) from cause


class _Pages:
    """One list in progress: the version it shows, and when its last page came."""

    def __init__(self, api: KubeApi, path: str, view: Listing[Any], limit: int | None) -> None:
        self._api = api
        self._path = path
        self._query = dict(view.query)
        if limit is not None:
            self._query["limit"] = str(limit)
        self._keeps = None if view.keeps is None else view.keeps | _LIST_KEYS
        self.version = ""
        self.noticed = 0.0

    def objects(self) -> Iterator[JsonObject]:
        """Yield each object of each page."""
        token = ""
        while True:
            answer = self._ask(token)
            metadata = answer["metadata"]
            # Of the first page: to watch from there misses nothing.
            self.version = self.version or str(metadata["resourceVersion"])
            token = metadata.get("continue") or ""
            yield from answer.pop("items") or ()
            if not token:
                return

    def _ask(self, token: str) -> JsonObject:
        query = self._query | ({"continue": token} if token else {})
        body = self._api.read(self._path, query, read_timeout=LIST_TIMEOUT)
        self.noticed = time.monotonic()
        hook = None if self._keeps is None else self._thin
        answer: JsonObject = json.loads(body, object_hook=hook)
        return answer

    def _thin(self, parsed: JsonObject) -> JsonObject:
        keeps = self._keeps or ()
        return {key: parsed[key] for key in parsed if key in keeps}
