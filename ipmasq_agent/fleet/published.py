"""The cluster's document, and the one before it, in two ConfigMaps.

What is published is one write, so whoever dies in the middle leaves the old document or the new
one. The document before is kept first, in a ConfigMap of its own beside it, which `kubectl` alone
can copy back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from ipmasq_agent.errors import SourceError
from ipmasq_agent.sources import Part, revision_of
from ipmasq_agent.sources.configmap import content_of
from ipmasq_agent.sources.kube_access import Permission, explained
from ipmasq_agent.sources.kube_api import ApiRefusal, Content, KubeApi
from ipmasq_agent.sources.kube_list import LIST_TIMEOUT, an_api
from ipmasq_agent.sources.location import KEYS

MANAGER = "kubectl-ipmasq"
"""Whose fields the document is, in the words of server-side apply."""
REPLACED_BY = "ipmasq-agent/replaced-by"
ABSENT = "ipmasq-agent/absent"
_APPLY = "application/apply-patch+yaml"  # of which JSON is a part
_CONFLICT, _MISSING = 409, 404
# What was written with kubectl before may be written with its plugin.
_BY_HAND = re.compile(r"kubectl\b").match


class Published(NamedTuple):
    """A document in a ConfigMap.

    Attributes:
        key: where in it.
        content: None where there is none, which means the defaults.
        version: of the ConfigMap; None where it does not exist.
        about: the ConfigMap's annotations.
    """

    key: str
    content: bytes | None
    version: str | None
    about: Mapping[str, str] = {}

    @property
    def replaced_by(self) -> str | None:
        """Of a document that was kept, the hash of the one that came after it."""
        return self.about.get(REPLACED_BY)

    @property
    def digest(self) -> str:
        """Its hash, as agents tell it."""
        return digest_of(self.content)


def digest_of(content: bytes | None) -> str:
    """Return the hash of a document, as agents tell it."""
    return revision_of(() if content is None else (Part("", content),))


class Changed(SourceError):
    """The document was not written, as somebody else has written it or holds its fields.

    Attributes:
        managers: who holds its fields.
    """

    managers: tuple[str, ...] = ()


class Publisher:
    """Reads and writes a document and the one before it.

    Args:
        api: the server.
        namespace, name: of the ConfigMap.
        key: the document's, where it is not the usual one.
        force: take fields over that somebody else manages than kubectl.
    """

    def __init__(
        self,
        api: KubeApi,
        namespace: str,
        name: str,
        key: str | None = None,
        *,
        force: bool = False,
    ) -> None:
        self._api = api
        self._namespace, self._name, self._key = namespace, name, key
        self._force = force

    @property
    def place(self) -> str:
        """Where the document is, in words."""
        return f"ConfigMap {self._namespace}/{self._name}"

    @property
    def before(self) -> str:
        """The name of the ConfigMap that keeps the document before."""
        return f"{self._name}-previous"

    @property
    def canary(self) -> Publisher:
        """Who reads and writes the document that a few nodes try, which has the usual key."""
        return Publisher(self._api, self._namespace, f"{self._name}-canary", force=self._force)

    def read(self) -> Published:
        """Return the document.

        Raises:
            SourceError: it cannot be read.
        """
        found = self._get(self._name)
        return Published(self._key or KEYS[0], None, None) if found is None else found

    def kept(self) -> Published | None:
        """Return the document before; None where none was kept.

        Raises:
            SourceError: it cannot be read.
        """
        return self._get(self.before)

    def keep(self, document: Published, replaced_by: str) -> None:
        """Keep the document that is about to be replaced.

        Raises:
            Changed: somebody else has written there.
            SourceError: it cannot be written.
        """
        about = {REPLACED_BY: replaced_by}
        if document.content is None:
            about[ABSENT] = "true"
        metadata = {"name": self.before, "annotations": about}
        self._apply(self.before, metadata, document.key, document.content, force=True)

    def write(
        self,
        content: bytes | None,
        over: Published,
        *,
        about: Mapping[str, str] | None = None,
        dry: bool = False,
    ) -> Published:
        """Put a document in the place of another, if that is still there.

        Args:
            content: None to take the document away.
            over: the one that was read.
            about: annotations to write with it.
            dry: only ask whether we might.

        Raises:
            Changed: it is not; or somebody else manages it, and we are not to use force.
            SourceError: it cannot be written.
        """
        if content is None:
            return over if dry else self._delete(over)
        metadata: dict[str, Any] = {"name": self._name}
        if about is not None:
            metadata["annotations"] = dict(about)
        if over.version is not None:
            metadata["resourceVersion"] = over.version
        force = self._force
        try:
            return self._apply(self._name, metadata, over.key, content, force=force, dry=dry)
        except Changed as conflict:
            if not conflict.managers or not all(map(_BY_HAND, conflict.managers)):
                raise
        return self._apply(self._name, metadata, over.key, content, force=True, dry=dry)

    def insist(self, digest: str) -> None:
        """See that a document is still there.

        Raises:
            Changed: it is not.
            SourceError: that cannot be seen.
        """
        found = self.read().digest
        if found != digest:
            raise self._overtaken(f"it holds {found}, and {digest} was written")

    def _get(self, name: str) -> Published | None:
        try:
            with an_api(self._api):
                return self._taken(
                    json.loads(self._api.read(self._path(name), {}, read_timeout=LIST_TIMEOUT))
                )
        except ApiRefusal as refusal:
            if refusal.status == _MISSING and refusal.by_api:
                return None
            raise self._explained(refusal, name, "get") from refusal

    def _taken(self, configmap: dict[str, Any]) -> Published:
        """Take the document out of a ConfigMap, from the key that agents read."""
        values, metadata = content_of(configmap), configmap["metadata"]
        only = list(values) if len(values) == 1 else []
        key = self._key or next((key for key in (*KEYS, *only) if key in values), KEYS[0])
        about = metadata.get("annotations") or {}
        return Published(key, values.get(key), str(metadata["resourceVersion"]), about)

    def _apply(
        self,
        name: str,
        metadata: dict[str, Any],
        key: str,
        content: bytes | None,
        *,
        force: bool,
        dry: bool = False,
    ) -> Published:
        try:
            data = {} if content is None else {key: content.decode()}
        except UnicodeDecodeError as cause:
            raise SourceError("the document is not UTF-8 text") from cause
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}
        query = {"fieldManager": MANAGER, "force": str(force).lower()}
        query |= {"dryRun": "All"} if dry else {}
        try:
            with an_api(self._api):
                answer = self._api.read(
                    self._path(name),
                    query,
                    read_timeout=LIST_TIMEOUT,
                    method="PATCH",
                    content=Content(_APPLY, json.dumps(body).encode()),
                )
                return self._taken(json.loads(answer))
        except ApiRefusal as refusal:
            if refusal.status == _CONFLICT:
                raise self._changed(refusal) from refusal
            raise self._explained(refusal, name, "patch") from refusal

    def _delete(self, over: Published) -> Published:
        body = {"preconditions": {"resourceVersion": over.version}}
        try:
            self._api.read(
                self._path(self._name),
                {},
                read_timeout=LIST_TIMEOUT,
                method="DELETE",
                content=Content("application/json", json.dumps(body).encode()),
            )
        except ApiRefusal as refusal:
            if refusal.status == _CONFLICT:
                raise self._changed(refusal) from refusal
            if refusal.status != _MISSING:
                raise self._explained(refusal, self._name, "delete") from refusal
        return Published(over.key, None, None)

    def _changed(self, refusal: ApiRefusal) -> Changed:
        if managers := tuple(re.findall(r'conflicts? with "([^"]+)"', refusal.message)):
            conflict = Changed(
                f"somebody else manages {self.place}: {refusal.message}",
                remedy="change it where they do, or take it over with --force-conflicts; what "
                "keeps writing it (a GitOps controller, say) will undo that",
            )
            conflict.managers = managers
            return conflict
        return self._overtaken(refusal.message)

    def _overtaken(self, how: str) -> Changed:
        return Changed(
            f"{self.place} was changed by somebody else meanwhile: {how}",
            remedy="see what it says now, and begin again",
        )

    def _path(self, name: str) -> str:
        return f"/api/v1/namespaces/{self._namespace}/configmaps/{name}"

    def _explained(self, refusal: ApiRefusal, name: str, verb: str) -> SourceError:
        verbs = tuple(dict.fromkeys(("get", verb)))
        permission = Permission("configmaps", self._namespace, name, verbs)
        return explained(refusal, self._api, f"ConfigMap {self._namespace}/{name}", permission)
