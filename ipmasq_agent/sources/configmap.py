"""ConfigMaps of the Kubernetes API: a document in one, watched, and those of others, read once."""

from __future__ import annotations

import base64
import json
from typing import Any

from ipmasq_agent.errors import MALFORMED, AgentError, SourceError
from ipmasq_agent.sources import ConfigMapName, Document, Part, Sink, SourceFailed
from ipmasq_agent.sources.canary import NODES, tries
from ipmasq_agent.sources.kube_access import Permission, explained
from ipmasq_agent.sources.kube_api import ApiRefusal, KubeApi
from ipmasq_agent.sources.kube_list import (
    LIST_TIMEOUT,
    Found,
    JsonObject,
    an_api,
    one_object,
    read_once,
)
from ipmasq_agent.sources.kube_watch import Watch
from ipmasq_agent.sources.location import EVERY, KEYS


class ConfigMapSource:
    """Implements ``Source`` for one ConfigMap.

    Without ``key`` the document is the key ``config``, else ``ip-masq-agent``, else all
    keys, in the order of their names: what a mounted directory means to ``FileSource`` too.
    A ConfigMap that does not exist, or has no keys at all, is a document without parts. One
    that lacks the key asked for and has others is a failure which names them, since a
    misspelt key would otherwise silently mean the defaults.

    Args:
        key: the key to read, ``*`` for all of them, or None to choose as above.
        tried_by: the name of this node, for a ConfigMap whose annotation says which nodes try
            it: to the others it is as if it did not exist.
    """

    cheap = False  # the API is asked by every node; the watch tells what there is to know

    def __init__(
        self,
        namespace: str,
        name: str,
        key: str | None = None,
        *,
        kubeconfig: str | None = None,
        tried_by: str | None = None,
    ) -> None:
        self._namespace = namespace
        self._configmap = name
        self._key = key
        self._kubeconfig = kubeconfig
        self._tried_by = tried_by
        self._sink: Sink | None = None
        path = f"/api/v1/namespaces/{namespace}/configmaps"
        permission = Permission("configmaps", namespace, name)
        self._wanted = one_object(name, path, self.name, permission)
        self._watch = Watch(KubeApi(kubeconfig), self._wanted, self._found, self._failed)

    @property
    def name(self) -> str:
        """As ``ConfigMap kube-system/ip-masq-agent``, with the key if one was asked for."""
        return self._name_with(None if self._key == EVERY else self._key)

    @property
    def heard(self) -> float | None:
        """When the API last gave a sign of life to the watch."""
        return self._watch.heard

    def read(self) -> Document:
        """Ask the API once.

        Raises:
            SourceError: see ``read_once``; or the key that is meant is missing.
        """
        return self._document(read_once(self._wanted, self._kubeconfig))

    def start(self, sink: Sink) -> None:
        """List, then watch, in a thread; the first state comes from there."""
        self._sink = sink
        self._watch.start()

    def refresh(self) -> None:
        """Have the watch ask the API now, and deliver what it says."""
        self._watch.refresh()

    def stop(self) -> None:
        """End the watch within a second; not to be called by the sink."""
        self._watch.stop()

    def _found(self, found: Found[JsonObject]) -> None:
        assert self._sink is not None
        try:
            event: Document | SourceFailed = self._document(found)
        except SourceError as error:
            event = SourceFailed(self.name, error)
        self._sink(event)

    def _failed(self, error: AgentError) -> None:
        assert self._sink is not None
        self._sink(SourceFailed(self.name, error))

    def _document(self, found: Found[JsonObject]) -> Document:
        """Take the document out of a ConfigMap.

        Raises:
            SourceError: the key is missing.
        """
        configmap = next(iter(found.value.values()), None)
        if configmap is None:
            return Document(self.name, (), "absent", found.noticed)
        try:
            if self._tried_by is not None:
                meant, caveat = self._is_tried(configmap["metadata"], self._tried_by)
                if not meant:
                    return Document(self.name, (), "absent", found.noticed, caveat=caveat)
            values = content_of(configmap)
            revision = str(configmap["metadata"]["resourceVersion"])
            uid = str(configmap["metadata"].get("uid", ""))
        except MALFORMED as cause:
            raise SourceError(f"{self.name} is not in the form of a ConfigMap") from cause
        keys = self._choose(sorted(values))
        parts = tuple(Part(self._name_with(key), values[key]) for key in keys)
        name = parts[0].name if len(parts) == 1 else self.name
        lacking = () if parts else (f"{self._name_with(None)} exists and has no data",)
        origin = (ConfigMapName(self._namespace, self._configmap, uid),)
        return Document(name, parts, revision, found.noticed, lacking, configmaps=origin)

    def _is_tried(self, metadata: JsonObject, node: str) -> tuple[bool, str | None]:
        """Return whether a node tries it, and what is wrong with how that is said."""
        try:
            return tries((metadata.get("annotations") or {}).get(NODES, ""), node), None
        except ValueError as cause:
            what = f"{self.name}: no node tries it, as its annotation {NODES} cannot be read"
            return False, f"{what}: {cause}"

    def _choose(self, keys: list[str]) -> list[str]:
        """Return those of the keys, sorted, that are meant."""
        if self._key in keys:
            return [self._key]
        if self._key is None:
            return next(([key] for key in KEYS if key in keys), keys)
        if self._key == EVERY or not keys:
            return keys
        raise SourceError(
            f"the ConfigMap {self._namespace}/{self._configmap} has the keys {', '.join(keys)}, "
            f"and none of them is {self._key}",
            remedy=f"name the key, as --configmap {self._namespace}/{self._configmap}:{keys[0]}",
        )

    def _name_with(self, key: str | None) -> str:
        name = str(ConfigMapName(self._namespace, self._configmap))
        return f"{name} key {key}" if key is not None else name


def read_data(namespace: str, name: str, *, kubeconfig: str | None = None) -> dict[str, str]:
    """Return what another program of the cluster keeps in a ConfigMap: key → text.

    Raises:
        SourceError: see ``read_once``; or there is no such ConfigMap.
    """
    what, api = f"ConfigMap {namespace}/{name}", KubeApi(kubeconfig)
    path = f"/api/v1/namespaces/{namespace}/configmaps/{name}"
    try:
        with an_api(api):
            data = json.loads(api.read(path, {}, read_timeout=LIST_TIMEOUT)).get("data") or {}
            return {str(key): str(text) for key, text in data.items()}
    except ApiRefusal as refusal:
        if refusal.status == 404:
            raise SourceError(
                f"there is no {what} at {api.host}: {refusal.message} ({refusal.status})"
            ) from refusal
        permission = Permission("configmaps", namespace, name, ("get",))
        raise explained(refusal, api, what, permission) from refusal
    finally:
        api.close()


def content_of(configmap: dict[str, Any]) -> dict[str, bytes]:
    """Return the values of a ConfigMap by key, text (as UTF-8) and binary alike."""
    values = {key: text.encode() for key, text in (configmap.get("data") or {}).items()}
    for key, text in (configmap.get("binaryData") or {}).items():
        values[key] = base64.b64decode(text)
    return values
