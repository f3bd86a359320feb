"""What is asked of the Kubernetes API and kept of its objects, and lists of them, page by page.

The protocol is that of kubernetes.io/docs/reference/using-api/api-concepts, "Retrieving
large results sets in chunks".
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, NamedTuple, TypeVar

from ipmasq_agent.errors import MALFORMED, SourceUnavailable
from ipmasq_agent.sources.kube_access import Permission, explained
from ipmasq_agent.sources.kube_api import ApiRefusal, KubeApi

JsonObject = dict[str, Any]
Kept = TypeVar("Kept")

GONE = 410
LIST_TIMEOUT = 15.0
# How often a list is begun whose later pages the server forgets before they are asked for.
LIST_TRIES = 3
_LIST_KEYS = frozenset({"metadata", "resourceVersion", "continue", "items", "namespace", "name"})


@dataclass(frozen=True, slots=True)
class Objects(Generic[Kept]):
    """Objects of a collection, and what is kept of each.

    Attributes:
        path: of the collection, as ``/api/v1/nodes``.
        what: they are, in words.
        keep: makes of an object's JSON what is kept of it; None where that is nothing.
        page: how many to ask for at a time; None for all.
        keys: those of a list, at any depth, that ``keep`` looks at; None for all. The others
            are dropped while a page is parsed, so that it never exists as a whole.
    """

    name: str
    path: str
    what: str
    permission: Permission
    keep: Callable[[JsonObject], Kept | None]
    query: Mapping[str, str] = field(default_factory=dict)
    page: int | None = None
    keys: frozenset[str] | None = None

    def after(self, before: dict[str, Kept], kind: str, subject: JsonObject) -> dict[str, Kept]:
        """Return what is kept after an event of a watch: ``before`` itself if that is the same."""
        kept = None if kind == "DELETED" else self.keep(subject)
        key = _key(subject)
        if kept is None:
            return {k: v for k, v in before.items() if k != key} if key in before else before
        return before if before.get(key) == kept else before | {key: kept}


class Found(NamedTuple, Generic[Kept]):
    """One state of what is wanted.

    Attributes:
        value: what is kept, by namespace and name.
        version: the resourceVersion up to which this is true.
        noticed: ``time.monotonic()`` when its bytes arrived.
    """

    value: dict[str, Kept]
    version: str
    noticed: float


def one_object(name: str, path: str, what: str, permission: Permission) -> Objects[JsonObject]:
    """Return one object of a collection, kept as it is.

    It is named in a field selector, since RBAC rules with ``resourceNames`` allow list and
    watch only then.
    """

    def keep(each: JsonObject) -> JsonObject | None:
        return each if each["metadata"].get("name") == name else None

    query = {"fieldSelector": f"metadata.name={name}"}
    return Objects(name, path, what, permission, keep, query)


def read_once(wanted: Objects[Kept], kubeconfig: str | None) -> Found[Kept]:
    """Return what there is now.

    Raises:
        AccessDenied: the API refuses us; the remedy is the RBAC rule that is missing.
        SourceUnavailable: the API does not answer.
        SourceError: there are no credentials.
    """
    api = KubeApi(kubeconfig)
    try:
        return list_all(api, wanted)
    except ApiRefusal as refusal:
        raise explained(refusal, api, wanted.what, wanted.permission) from refusal
    finally:
        api.close()


def list_all(api: KubeApi, wanted: Objects[Kept]) -> Found[Kept]:
    """Return all that is wanted, as it is now.

    No more than one page is held at a time. All pages show the state at the first one; a
    list that takes longer than the server keeps history is begun anew.

    Raises:
        ApiRefusal: the list was refused.
        SourceError: there was no answer, or none of a Kubernetes API.
    """
    for _ in range(LIST_TRIES - 1):
        try:
            return _listed(api, wanted)
        except ApiRefusal as refusal:
            if refusal.status != GONE:
                raise
    return _listed(api, wanted)


def version_now(api: KubeApi, wanted: Objects[Any]) -> str:
    """Return the version of a collection as it is now, for the price of one object.

    Raises:
        ApiRefusal: the list was refused.
        SourceError: there was no answer, or none of a Kubernetes API.
    """
    return _listed(api, replace(wanted, page=1), most=1).version


def _listed(api: KubeApi, wanted: Objects[Kept], most: int | None = None) -> Found[Kept]:
    """List once; no more than ``most`` pages."""
    query = dict(wanted.query) | ({"limit": str(wanted.page)} if wanted.page else {})
    keys = None if wanted.keys is None else wanted.keys | _LIST_KEYS
    hook = None if keys is None else lambda parsed: {k: parsed[k] for k in parsed if k in keys}
    kept: dict[str, Kept] = {}
    version, pages = "", 0
    with an_api(api):
        while True:
            body = api.read(wanted.path, query, read_timeout=LIST_TIMEOUT)
            noticed, pages = time.monotonic(), pages + 1
            answer = json.loads(body, object_hook=hook)
            # Of the first page: to watch from there misses nothing.
            version = version or str(answer["metadata"]["resourceVersion"])
            query["continue"] = answer["metadata"].get("continue") or ""
            for each in answer["items"] or ():
                value = wanted.keep(each)
                if value is not None:
                    kept[_key(each)] = value
            if not query["continue"] or pages == most:
                return Found(kept, version, noticed)
            del body, answer


def _key(subject: JsonObject) -> str:
    metadata = subject["metadata"]
    return f"{metadata.get('namespace', '')}/{metadata.get('name')}"


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
