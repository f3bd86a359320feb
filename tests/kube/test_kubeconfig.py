"""Kubeconfigs that cannot be used are told with their line, and used once they are repaired."""

from __future__ import annotations

import http.server
import re
import sys
import threading
from pathlib import Path
from typing import Protocol

import pytest

from ipmasq_agent.errors import SourceError
from ipmasq_agent.sources import kube_watch
from ipmasq_agent.sources.configmap import ConfigMapSource
from tests.kube.cluster import NAME, NAMESPACE, Cluster, established
from tests.kube.socks import socks_proxy
from tests.unit.sources.heard import Heard, content_of


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kubeconfig"


@pytest.fixture(autouse=True)
def no_proxy_but_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def good(cluster: Cluster, proxy: str | None = None) -> str:
    return f"""\
apiVersion: v1
kind: Config
current-context: lab
contexts:
- name: lab
  context: {{cluster: lab, user: lab}}
clusters:
- name: lab
  cluster:
    server: http://127.0.0.1:{cluster.port}
    {f"proxy-url: {proxy}" if proxy else ""}
users:
- name: lab
  user:
    token: first
"""


BROKEN = [
    ("current-context: lab", "current-context: other", ":1: there is no context 'other'"),
    ("current-context: lab", "", ":1: there is no current-context"),
    ("current-context: lab", "current-context: [", ":5: is not YAML"),
    ("current-context: lab", "current-context: {}", ":3: current-context is not a text"),
    ("contexts:\n", "contexts:\n- x\n", ":5: an entry of contexts is not a mapping"),
    ("- name: lab\n  context", "- context", ":5: an entry of contexts has no name"),
    ("{cluster: lab, user: lab}", "null", ":5: there is no context in it"),
    ("{cluster: lab, user: lab}", "lab", ":6: context is not a mapping"),
    ("{cluster: lab,", "{cluster: other,", ":6: the cluster of the context is not among the"),
    ("server: http", "service: http", ":10: the cluster has no server"),
    ("server: http", "server: ftp", ":10: server is not the URL of an API server"),
    ("server: http", "proxy-url: gopher://x\n    server: http", ":10: the proxy's URL begins with"),
    ("token: first", "token: [first]", ":15: token is not a text"),
    ("token: first", "tokenFile: /nope", ":15: tokenFile names a file that does not exist"),
    ("token: first", "<<: 7", ":15: merges what is not a mapping"),
    ("token: first", "client-key-data: abc", ":15: client-key-data is not base64"),
    ("token: first", "exec: {command: x}", ":15: exec has no apiVersion"),
    (
        "token: first",
        "exec: {command: x, apiVersion: v1, env: [{name: a}]}",
        ":15: an entry of env",
    ),
]


@pytest.mark.parametrize(("before", "after", "words"), BROKEN)
def test_a_broken_kubeconfig_is_told_with_its_line(
    cluster: Cluster, path: Path, before: str, after: str, words: str
) -> None:
    text = good(cluster)
    assert before in text
    path.write_text(text.replace(before, after, 1))
    with pytest.raises(SourceError, match=re.escape(f"the kubeconfig {path}{words}")):
        ConfigMapSource(NAMESPACE, NAME, kubeconfig=str(path)).read()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", " is empty"),
        (b"# nothing", " is empty"),
        (b"- a", ":1: it is not a mapping"),
        (b"\xff\xfe", " cannot be read: it is not UTF-8 text"),
        (b"a: \x00", " cannot be read: it is not YAML"),
        (b"[" * 5000, " cannot be read: it is nested too deeply"),
        (b"a: &a [*a]\ncontexts: *a", ":1: an entry of contexts is not a mapping"),
        (b"? [a]\n: b\n", ":1: there is no current-context"),
    ],
)
def test_whatever_stands_in_a_kubeconfig_it_is_told(path: Path, content: bytes, words: str) -> None:
    path.write_bytes(content)
    with pytest.raises(SourceError, match=re.escape(f"the kubeconfig {path}{words}")):
        ConfigMapSource(NAMESPACE, NAME, kubeconfig=str(path)).read()


def test_a_kubeconfig_that_is_missing_or_a_directory_is_told(path: Path) -> None:
    with pytest.raises(SourceError, match=f"the kubeconfig {path} does not exist"):
        ConfigMapSource(NAMESPACE, NAME, kubeconfig=str(path)).read()
    path.mkdir()
    with pytest.raises(SourceError, match="cannot be read: Is a directory"):
        ConfigMapSource(NAMESPACE, NAME, kubeconfig=str(path)).read()


def test_merge_keys_and_several_files_are_read_as_the_client_reads_them(
    cluster: Cluster, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.put({"config": "first"})
    cluster.token = "first"
    server = f"server: http://127.0.0.1:{cluster.port}"
    text = good(cluster).replace(server, f"<<: {{{server}}}")
    head, users = text.split("users:")
    path.write_text(head)
    (path.parent / "users").write_text(f"users:{users}")
    missing = path.parent / "missing"
    monkeypatch.setenv("KUBECONFIG", f"{missing}:{path}:{path.parent / 'users'}")
    assert content_of(ConfigMapSource(NAMESPACE, NAME).read()) == b"first"


def test_after_a_repair_the_watch_lives_by_itself_and_at_once_when_it_is_asked(
    cluster: Cluster, path: Path
) -> None:
    cluster.put({"config": "first"})
    path.write_text("contexts: [")
    source, heard = ConfigMapSource(NAMESPACE, NAME, kubeconfig=str(path)), Heard()
    source.start(heard)
    try:
        heard.failure("is not YAML")
        source.refresh()
        heard.wait(lambda events: len(events) == 2)
        path.write_text(good(cluster))
        source.refresh()
        heard.content(b"first")
        established(cluster, heard)
    finally:
        source.stop()


def test_what_nobody_foresaw_ends_neither_the_watch_nor_a_refresh(
    cluster: Cluster, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.put({"config": "first"})
    path.write_text(good(cluster))
    source, heard = ConfigMapSource(NAMESPACE, NAME, kubeconfig=str(path)), Heard()
    with monkeypatch.context() as patch:
        patch.setattr(kube_watch, "list_all", lambda *asked: 1 // 0)
        source.start(heard)
        heard.failure("the thread ip-masq-agent-watch failed unexpectedly (ZeroDivisionError)")
        source.refresh()
        heard.wait(lambda events: len(events) == 2)
    source.refresh()
    heard.content(b"first")
    established(cluster, heard)
    source.stop()


# Proxies


class Through(Protocol):
    def __call__(self, url: str) -> ConfigMapSource: ...


@pytest.fixture(params=["in the kubeconfig", "in the environment"])
def through(
    request: pytest.FixtureRequest, cluster: Cluster, path: Path, monkeypatch: pytest.MonkeyPatch
) -> Through:
    def configure(url: str) -> ConfigMapSource:
        in_file = request.param == "in the kubeconfig"
        path.write_text(good(cluster, url if in_file else None))
        if not in_file:
            monkeypatch.setenv("ALL_PROXY", url)
        return ConfigMapSource(NAMESPACE, NAME, kubeconfig=str(path))

    return configure


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
@pytest.mark.parametrize("password", [None, "p@ss"])
def test_a_socks_proxy_leads_to_the_api(
    cluster: Cluster, path: Path, scheme: str, password: str | None, through: Through
) -> None:
    cluster.put({"config": "first"})
    with socks_proxy(password) as proxy:
        user = "user:p%40ss@" if password else ""
        source = through(f"{scheme}://{user}127.0.0.1:{proxy.port}")
        assert content_of(source.read()) == b"first"
        heard = Heard()
        source.start(heard)
        established(cluster, heard)
        assert proxy.connections >= 2
        source.stop()


def test_without_its_package_a_socks_proxy_is_refused_and_the_package_named(
    through: Through, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "socks", None)
    monkeypatch.delitem(sys.modules, "urllib3.contrib.socks", raising=False)
    source = through("socks5://user:secret@127.0.0.1:1")
    with pytest.raises(SourceError, match="PySocks") as refused:
        source.read()
    assert "pip install PySocks" in str(refused.value)
    assert "secret" not in str(refused.value)


class Forbidding(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(403, "Forbidden by policy")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_a_proxy_that_refuses_is_not_taken_for_the_api(
    cluster: Cluster, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_text(good(cluster))
    with http.server.HTTPServer(("127.0.0.1", 0), Forbidding) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.05,))
        thread.start()
        url = f"http://127.0.0.1:{proxy.server_port}"
        monkeypatch.setenv("HTTP_PROXY", url)
        try:
            with pytest.raises(SourceError) as refused:
                ConfigMapSource(NAMESPACE, NAME, kubeconfig=str(path)).read()
        finally:
            proxy.shutdown()
            thread.join()
    told = str(refused.value)
    assert f"through the proxy {url} is no Kubernetes API: Forbidden by policy (403)" in told
    assert "correct $HTTP_PROXY, or add 127.0.0.1 to $NO_PROXY" in told
    assert "Role" not in told


def test_a_proxy_that_does_not_know_us_or_is_away_is_named(cluster: Cluster, path: Path) -> None:
    with socks_proxy("right") as proxy:
        path.write_text(good(cluster, f"socks5://user:wrong@127.0.0.1:{proxy.port}"))
        source = ConfigMapSource(NAMESPACE, NAME, kubeconfig=str(path))
        way = f"cannot be reached through the proxy socks5://127.0.0.1:{proxy.port}: "
        with pytest.raises(SourceError, match=way) as refused:
            source.read()
        assert "wrong" not in str(refused.value)
    with pytest.raises(SourceError, match=f"{way}Connection refused") as refused:
        source.read()
    assert refused.value.remedy == (
        f"correct proxy-url of the kubeconfig {path}, or add 127.0.0.1 to $NO_PROXY to ask "
        "without it"
    )
