"""An API server in which helm finds what it made: objects are kept, and nothing is run.

An apply takes the place of what was there, as it does where nobody else owns a field. A pod has
ended as soon as it is made.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from tests.deploy.chart import RELEASE, helm
from tests.deploy.manifests import Object

_RBAC, _MONITORING = "rbac.authorization.k8s.io/v1", "monitoring.coreos.com/v1"
KINDS = {
    "v1": ("ConfigMap", "Pod", "Secret", "ServiceAccount"),
    "apps/v1": ("DaemonSet",),
    _RBAC: ("ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"),
    _MONITORING: ("PodMonitor", "PrometheusRule"),
}
_VERBS = ["create", "delete", "get", "list", "patch", "update", "watch"]
_PROTOBUF = "application/vnd.kubernetes.protobuf"
_MAGIC = b"k8s\0"


# helm keeps its releases in Secrets, which it speaks of in protobuf; so little of it is asked that
# a library would be more. https://protobuf.dev/programming-guides/encoding/
def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield number and content of each field of a message whose fields all have lengths."""
    place = 0

    def number() -> int:
        nonlocal place
        found = shift = 0
        while True:
            byte = message[place]
            place += 1
            found |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return found

    while place < len(message):
        key = number()
        assert key & 7 == 2, "a field without a length"
        length = number()
        yield key >> 3, message[place : place + length]
        place += length


def _field(number: int, content: bytes) -> bytes:
    length, size = b"", len(content)
    while size >= 0x80:
        length += bytes([size & 0x7F | 0x80])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def _first(message: bytes, number: int) -> bytes:
    return next(content for each, content in _fields(message) if each == number)


def _enveloped(kind: str, message: bytes) -> bytes:
    meta = _field(1, b"v1") + _field(2, kind.encode())
    return _MAGIC + _field(1, meta) + _field(2, message)


def _validates(group: str, version: str, kinds: Iterable[str]) -> Any:
    """Return a specification: the server validates such objects, so that helm does not."""
    taken = {"name": "fieldValidation", "in": "query"}
    paths = {}
    for kind in kinds:
        of = {"group": group, "version": version, "kind": kind}
        patch = {"parameters": [taken], "x-kubernetes-group-version-kind": of, "responses": {}}
        paths[f"/{kind}/{{name}}"] = {"patch": patch}
    about = {"title": "what helm asks of it", "version": version}
    return {"openapi": "3.0.0", "info": about, "paths": paths}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HelmCluster

    def log_message(self, *words: object) -> None:
        """Say nothing: pytest shows what fails."""

    def _say(self, content: Any, code: int = 200) -> None:
        raw = isinstance(content, bytes)
        body = content if raw else json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", _PROTOBUF if raw else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, code: int, reason: str) -> None:
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason}
        self._say(status | {"code": code, "message": reason}, code)

    def _answer(self) -> None:
        address = urlsplit(self.path)
        path = address.path.strip("/")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.server.lock:
            if path in self.server.said:
                self._say(self.server.said[path])
            elif self.command == "POST":
                self._make(path, body)
            elif "watch" in parse_qs(address.query):
                self._watch(path)
            elif self.command in ("PUT", "PATCH"):
                self._say(self.server.put(path, body))
            elif path in self.server.kept and self.command == "DELETE":
                del self.server.kept[path]
                self._say({"kind": "Status", "apiVersion": "v1", "status": "Success"})
            elif path in self.server.kept:
                self._say(self.server.kept[path])
            elif path.rpartition("/")[2] in self.server.plurals:
                self._say(self.server.listed(path))
            else:
                self._refuse(404, "NotFound")

    def _make(self, path: str, body: bytes) -> None:
        if body.startswith(_MAGIC):
            # Unknown.raw, Secret.metadata, ObjectMeta.name
            name = _first(_first(_first(body[4:], 2), 1), 1).decode()
        else:
            name = yaml.safe_load(body)["metadata"]["name"]
        if f"{path}/{name}" in self.server.kept:
            self._refuse(409, "AlreadyExists")
        else:
            self._say(self.server.put(f"{path}/{name}", body), 201)

    def _watch(self, path: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer


class HelmCluster(ThreadingHTTPServer):
    """The server, from ``with`` on.

    Attributes:
        kept: what is there, by its path; in protobuf where it came so.
        said: what is answered at a path, whatever is there.
        end: the phase in which pods are: Succeeded or Failed.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.lock = threading.Lock()
        self.end = "Succeeded"
        self.kept: dict[str, Any] = {}
        self.plurals = {f"{kind.lower()}s" for kinds in KINDS.values() for kind in kinds}
        self.said: dict[str, Any] = {
            "version": {"major": "1", "minor": "37", "gitVersion": "v1.37.0"},
            "api": {"kind": "APIVersions", "versions": ["v1"]},
            "apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": []},
            "openapi/v3": {"paths": {}},
        }
        for version, kinds in KINDS.items():
            group, slash, number = version.rpartition("/")
            if slash:
                one = {"groupVersion": version, "version": number}
                offered = {"name": group, "versions": [one], "preferredVersion": one}
                self.said["apis"]["groups"].append(offered)
            resources = [
                {
                    "name": f"{kind.lower()}s",
                    "singularName": "",
                    "kind": kind,
                    "namespaced": not kind.startswith("Cluster"),
                    "verbs": _VERBS,
                }
                for kind in kinds
            ]
            path = f"apis/{version}" if slash else f"api/{version}"
            about = {"kind": "APIResourceList", "groupVersion": version}
            self.said[path] = about | {"resources": resources}
            self.said["openapi/v3"]["paths"][path] = {"serverRelativeURL": f"/openapi/v3/{path}"}
            self.said[f"openapi/v3/{path}"] = _validates(group, number, kinds)

    def __enter__(self) -> HelmCluster:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *cause: object) -> None:
        self.shutdown()
        self.server_close()

    def put(self, path: str, body: bytes) -> Any:
        """Keep what was sent, and return it."""
        if body.startswith(_MAGIC):
            self.kept[path] = body
        else:
            self.kept[path] = made = yaml.safe_load(body)
            if made["kind"] == "Pod":
                made["status"] = {"phase": self.end}
        return self.kept[path]

    def listed(self, path: str) -> Any:
        """Return the list of what is at a path."""
        found = [kept for at, kept in self.kept.items() if at.rpartition("/")[0] == path]
        if path.endswith("/secrets"):
            return _enveloped(
                "SecretList", b"".join(_field(2, _first(each[4:], 2)) for each in found)
            )
        return {"kind": "List", "apiVersion": "v1", "metadata": {}, "items": found}

    def objects(self) -> list[Object]:
        """Return what is there, but for helm's own records."""
        return [kept for kept in self.kept.values() if not isinstance(kept, bytes)]

    def helm(self, verb: str, *words: Any) -> str:
        """Return what helm says of a release in the namespace of the guide."""
        name, namespace = RELEASE
        server = f"--kube-apiserver=http://127.0.0.1:{self.server_port}"
        return helm(verb, name, *words, server, f"--namespace={namespace}")
