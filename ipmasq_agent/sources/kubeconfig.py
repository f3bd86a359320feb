"""Whether a kubeconfig can be used, and if not, at which line: never with what stands there.

The client's own loader, which reads it after this, quotes whole entries with the tokens in
them, and meets what it did not expect with any exception there is.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import NoReturn

import urllib3
import yaml

from ipmasq_agent.errors import SourceError
from ipmasq_agent.sources.kube_words import why

PROXIES = ("http", "https", "socks5", "socks5h", "socks4", "socks4a")
_FILES = ("certificate-authority", "client-certificate", "client-key", "tokenFile")
_CHECK = "check it with `kubectl config view`"
_MERGE = yaml.constructor.SafeConstructor()


@dataclass(frozen=True, slots=True)
class _Entry:
    """A mapping in a kubeconfig, and the file that it is in."""

    path: str
    node: yaml.MappingNode

    def fail(self, node: yaml.Node, message: str, remedy: str | None = _CHECK) -> NoReturn:
        line = node.start_mark.line + 1
        raise SourceError(f"the kubeconfig {self.path}:{line}: {message}", remedy=remedy)

    def get(self, key: str) -> yaml.Node | None:
        """Return the value of a key; None where there is none, or null."""
        found = (value for name, value in self.node.value if name.value == key)
        return next((value for value in found if not _is_null(value)), None)

    def text(self, key: str) -> str | None:
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, yaml.ScalarNode):
            self.fail(value, f"{key} is not a text")
        return str(value.value)

    def mapping(self, key: str) -> _Entry | None:
        value = self.get(key)
        return None if value is None else self.within(value, key)

    def within(self, value: yaml.Node, what: str) -> _Entry:
        if not isinstance(value, yaml.MappingNode):
            self.fail(value, f"{what} is not a mapping")
        try:
            _MERGE.flatten_mapping(value)
        except yaml.YAMLError:
            self.fail(value, "merges what is not a mapping")
        return _Entry(self.path, value)

    def all(self, key: str) -> Iterator[_Entry]:
        value = self.get(key)
        if value is None:
            return
        if not isinstance(value, yaml.SequenceNode):
            self.fail(value, f"{key} is not a list")
        for item in value.value:
            yield self.within(item, f"an entry of {key}")


def check(paths: Sequence[str], context: str | None = None) -> str | None:
    """Look through the parts of a kubeconfig that a context uses.

    Args:
        paths: of the files that it is merged from, first come first served.
        context: a name, or None for the one that is current.

    Returns:
        The command of the plugin that gives the credentials, if it is one that does.

    Raises:
        SourceError: it cannot be used.
    """
    files = [_read(path) for path in paths if os.path.exists(path)]
    if not files:
        raise SourceError(f"the kubeconfig {os.pathsep.join(paths)} does not exist")
    # As the client does, the last one that says so; kubectl takes the first.
    current = [text for file in files if (text := file.text("current-context"))]
    name = context or (current[-1] if current else None)
    if name is None:
        files[0].fail(files[0].node, "there is no current-context")
    chosen = _named(files, "contexts", "context", name)
    if chosen is None:
        files[0].fail(files[0].node, f"there is no context {name!r}")
    cluster = _named(files, "clusters", "cluster", chosen.text("cluster"))
    if cluster is None:
        chosen.fail(chosen.node, "the cluster of the context is not among the clusters")
    _check_cluster(cluster)
    # Who is not among the users asks as nobody, which some servers allow.
    user = _named(files, "users", "user", chosen.text("user"))
    return None if user is None else _check_user(user)


def _read(path: str) -> _Entry:
    try:
        with open(path, encoding="utf-8") as file:
            root = yaml.compose(file, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as cause:
        line = f":{cause.problem_mark.line + 1}" if cause.problem_mark else ""
        raise SourceError(f"the kubeconfig {path}{line}: is not YAML", remedy=_CHECK) from cause
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as cause:
        raise SourceError(f"the kubeconfig {path} cannot be read: {why(cause)}") from cause
    if root is None:
        raise SourceError(f"the kubeconfig {path} is empty", remedy=_CHECK)
    entry = _Entry(path, yaml.MappingNode("", [])).within(root, "it")
    for kinds in ("contexts", "clusters", "users"):
        for each in entry.all(kinds):
            if not each.text("name"):
                each.fail(each.node, f"an entry of {kinds} has no name")
    return entry


def _named(files: Sequence[_Entry], kinds: str, kind: str, name: str | None) -> _Entry | None:
    for file in files:
        for entry in file.all(kinds):
            if entry.text("name") == name:
                return entry.mapping(kind) or entry.fail(entry.node, f"there is no {kind} in it")
    return None


def _check_cluster(cluster: _Entry) -> None:
    server = cluster.get("server")
    if server is None:
        cluster.fail(cluster.node, "the cluster has no server")
    if _scheme(cluster.text("server")) not in ("http", "https"):
        cluster.fail(server, "server is not the URL of an API server")
    proxy = cluster.get("proxy-url")
    if proxy is not None:
        try:
            check_proxy(cluster.text("proxy-url") or "")
        except SourceError as error:
            cluster.fail(proxy, error.message, error.remedy)
    _check_texts(cluster, "certificate-authority", "certificate-authority-data", "tls-server-name")


def check_proxy(url: str) -> None:
    """Look whether the API can be reached through a proxy with such a URL.

    Raises:
        SourceError: it cannot, or not as long as a package is missing.
    """
    scheme = _scheme(url)
    if scheme not in PROXIES:
        raise SourceError(f"the proxy's URL begins with none of {', '.join(PROXIES)}")
    if scheme.startswith("socks") and find_spec("socks") is None:
        raise SourceError(
            "SOCKS proxies need the Python package PySocks",
            remedy="install it where ipmasq-agent is installed: `pip install PySocks`",
        )


def _scheme(url: str | None) -> str | None:
    try:
        parsed = urllib3.util.parse_url(url or "")
    except urllib3.exceptions.LocationParseError:
        return None
    return parsed.scheme if parsed.host else None


def _check_user(user: _Entry) -> str | None:
    _check_texts(user, "token", "username", "password", "tokenFile")
    for key in ("client-certificate", "client-key"):
        _check_texts(user, key, f"{key}-data")
    if user.get("token") or user.get("tokenFile"):
        return None
    plugin = user.mapping("exec")
    if plugin is None:
        return None
    for key in ("command", "apiVersion"):
        if not plugin.text(key):
            plugin.fail(plugin.node, f"exec has no {key}")
    for each in plugin.all("env"):
        if each.text("name") is None or each.text("value") is None:
            each.fail(each.node, "an entry of env needs name and value")
    return plugin.text("command")


def _check_texts(entry: _Entry, *keys: str) -> None:
    for key in keys:
        text, node = entry.text(key), entry.get(key)
        if text is None or node is None:
            continue
        if key.endswith("-data"):
            try:
                base64.b64decode(text)
            except ValueError:
                entry.fail(node, f"{key} is not base64")
        elif key in _FILES and not entry.get(f"{key}-data"):
            # Relative to the file that names it, as the client takes it.
            where = os.path.join(os.path.dirname(os.path.abspath(entry.path)), text)
            if not os.path.isfile(where):
                entry.fail(node, f"{key} names a file that does not exist")


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"
