"""A secret goes to the API server and to nobody else, whatever fails on the way."""

from __future__ import annotations

import base64
import http.client
import io
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ipmasq_agent import logs
from ipmasq_agent.agent.http import Door, HttpServer, data, listen
from ipmasq_agent.agent.introduction import PAGE, Introducer
from ipmasq_agent.agent.metrics import Metrics
from ipmasq_agent.agent.reception import answers
from ipmasq_agent.sources.configmap import ConfigMapSource
from ipmasq_agent.sources.kube_words import bare, said, why
from tests.kernel.agent import status_of
from tests.kube.cluster import DEADLINE, NAME, NAMESPACE, Cluster
from tests.unit.agent.support import Bench

CANARY = "canary-5e6f"
IN_BASE64 = base64.b64encode(f"user:{CANARY}".encode()).decode()
ECHO = f"who sends Authorization: Bearer {CANARY} is not known\n"

# What is put into a kubeconfig: parts of the cluster's and of the user's entry, or a whole one.
Case = Callable[[Cluster, Path], str]


def entry(
    cluster: Cluster,
    *,
    server: str | None = None,
    also: str = "",
    user: str = f"token: {CANARY}",
) -> str:
    server = server or f"http://127.0.0.1:{cluster.port}"
    return (
        "current-context: lab\n"
        "contexts: [{name: lab, context: {cluster: lab, user: lab}}]\n"
        f"clusters:\n- name: lab\n  cluster:\n    server: {server}\n    {also}\n"
        f"users:\n- name: lab\n  user:\n    {user}\n"
    )


def refusing(status: int, verb: str) -> Case:
    def case(cluster: Cluster, _: Path) -> str:
        cluster.refusals[verb] = (status, ECHO)
        return entry(cluster)

    return case


def plugin(script: str) -> Case:
    def case(cluster: Cluster, directory: Path) -> str:
        (directory / "plugin").write_text(f"#!/bin/sh\n{script}\n")
        (directory / "plugin").chmod(0o755)
        version = "client.authentication.k8s.io/v1"
        command = f"exec: {{command: {directory}/plugin, apiVersion: {version}, args: [{CANARY}]}}"
        return entry(cluster, user=command)

    return case


def away(cluster: Cluster, _: Path) -> str:
    cluster.down()
    return entry(cluster, server=f"http://user:{CANARY}@127.0.0.1:{cluster.port}/path?t={CANARY}")


def token_file(content: bytes) -> Case:
    def case(cluster: Cluster, directory: Path) -> str:
        (directory / "token").write_bytes(content)
        return entry(cluster, user=f"tokenFile: {directory}/token")

    return case


def password(cluster: Cluster, _: Path) -> str:
    cluster.token = "another"
    return entry(cluster, user=f"{{username: user, password: {CANARY}}}")


CASES: dict[str, Case] = {
    "a token in two lines": lambda c, _: entry(c, user=f"token: |\n      {CANARY}\n      more"),
    "a token that is no ASCII": lambda c, _: entry(c, user=f"token: {CANARY}é€"),
    "a token file in two lines": token_file(f"{CANARY}\nx: {CANARY}\n".encode()),
    "a token file that is no text": token_file(CANARY.encode() + b"\xff\xfe"),
    "a password in the server's URL": away,
    "a server that is no URL": lambda c, _: entry(c, server=f"http://u:{CANARY}@[::1"),
    "a server that is no web server": lambda c, _: entry(c, server=f"ftp://u:{CANARY}@x/"),
    "a proxy that is away": lambda c, _: entry(c, also=f"proxy-url: http://u:{CANARY}@127.0.0.1:1"),
    "a SOCKS proxy that is away": lambda c, _: entry(
        c, also=f"proxy-url: socks5://u:{CANARY}@127.0.0.1:1"
    ),
    "a proxy of another kind": lambda c, _: entry(c, also=f"proxy-url: gopher://u:{CANARY}@x"),
    "a proxy that is no URL": lambda c, _: entry(c, also=f"proxy-url: 'http://u:{CANARY}@['"),
    "not YAML": lambda c, _: entry(c, user=f"token: *{CANARY}"),
    "not YAML at all": lambda c, _: f"token: '{CANARY}",
    "no text at all": lambda c, _: f"token: {CANARY}\nx: \x01",
    "a text": lambda c, _: CANARY,
    "a token that is a mapping": lambda c, _: entry(c, user=f"token: {{{CANARY}: {CANARY}}}"),
    "a user that is a text": lambda c, _: entry(c).replace("user:\n    token: ", "user: "),
    "a name that is missing": lambda c, _: entry(c).replace("- name: lab\n  user", "- user"),
    "a key that is not base64": lambda c, _: entry(
        c, user=f"{{client-key-data: {CANARY}=, client-certificate-data: {CANARY}}}"
    ),
    "a certificate that is none": lambda c, _: entry(
        c, server="https://127.0.0.1:1", also=f"certificate-authority-data: {IN_BASE64}"
    ),
    "a key for a file's name": lambda c, _: entry(c, user=f"client-key: {CANARY}"),
    "a plugin that fails": plugin(f"echo {CANARY}; echo {CANARY} >&2; exit 3"),
    "a plugin that says something else": plugin(f"echo {CANARY}"),
    "a plugin that is a text": lambda c, _: entry(c, user=f"exec: {CANARY}"),
    "a password": password,
    "a server that refuses the list": refusing(403, "list"),
    "a server that does not know us": refusing(401, "list"),
    "a server that fails": refusing(500, "list"),
    "a server that refuses the watch": refusing(403, "watch"),
}


@pytest.fixture(params=list(CASES.values()), ids=list(CASES))
def kubeconfig(request: pytest.FixtureRequest, cluster: Cluster, tmp_path: Path) -> Path:
    path = tmp_path / "kubeconfig"
    case: Case = request.param
    path.write_text(case(cluster, tmp_path))
    return path


@contextmanager
def log_at_debug() -> Iterator[io.StringIO]:
    """All that the agent logs; what others log goes to standard error."""
    before = list(logs.logger.handlers), logs.logger.level, logs.logger.propagate
    stream = io.StringIO()
    logs.configure("text", "debug", stream)
    try:
        yield stream
    finally:
        logs.logger.handlers[:], logs.logger.propagate = before[0], before[2]
        logs.logger.setLevel(before[1])


def everything_it_says(bench: Bench) -> str:
    listener = listen("127.0.0.1:0")
    port = listener.getsockname()[1]
    introduction = Introducer(bench.agent, {})
    pages = {**answers(bench.agent), PAGE: lambda _: data(introduction.as_data())}
    server = HttpServer([Door(listener, pages)])
    try:
        said = []
        for path in pages:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
            connection.request("GET", path)
            said.append(connection.getresponse().read().decode())
            connection.close()
    finally:
        server.close()
    return "\n".join([*said, bench.agent.status.as_text(), repr(bench.agent.status)])


def test_no_failure_shows_a_secret_in_log_status_or_metrics(
    cluster: Cluster, kubeconfig: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cluster.put({"config": "nonMasqueradeCIDRs: [10.0.0.0/8]"})
    bench = Bench()
    bench.agent.metrics = Metrics()
    source = ConfigMapSource(NAMESPACE, NAME, kubeconfig=str(kubeconfig))
    with log_at_debug() as log:
        source.start(bench.agent.events.put)
        try:
            bench.turn_until(lambda: bench.agent.status.config.error is not None)
            said = everything_it_says(bench)
        finally:
            source.stop()
    captured = capfd.readouterr()
    shown = "\n".join([said, log.getvalue(), captured.out, captured.err])
    for secret in (CANARY, IN_BASE64, "0x7f", "Traceback"):
        assert secret not in shown
    # It says something, and the same thing each time: what differs would be logged each time.
    assert len(bench.agent.status.config.error or "") > 40
    assert log.getvalue().count("document cannot be read") == 1


def test_no_verb_shows_a_secret_on_the_terminal(
    cluster: Cluster, kubeconfig: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cluster.put({"config": "nonMasqueradeCIDRs: [10.0.0.0/8]"})
    where = (f"--configmap={NAMESPACE}/{NAME}", f"--kubeconfig={kubeconfig}")
    status = status_of("config", "validate", *where)
    said = capfd.readouterr()
    assert status == (0 if "watch" in cluster.refusals else 2), said.err
    for secret in (CANARY, IN_BASE64, "0x7f", "Traceback"):
        assert secret not in said.out + said.err
    assert said.err.startswith("error: ") or status == 0


@pytest.mark.parametrize(
    "user",
    [
        f"token: |\n      {CANARY}\n",
        f"token: '  {CANARY} '",
        "tokenFile: token",
        "exec: {command: ./plugin, apiVersion: client.authentication.k8s.io/v1}",
    ],
    ids=["in the kubeconfig", "between blanks", "in a file", "from a plugin"],
)
def test_white_space_around_a_token_is_not_part_of_it(
    cluster: Cluster, tmp_path: Path, user: str
) -> None:
    answer = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {"token": f"{CANARY}\n"},
    }
    (tmp_path / "token").write_text(f"{CANARY}\n")
    (tmp_path / "plugin").write_text(f"#!/bin/sh\ncat <<'EOF'\n{json.dumps(answer)}\nEOF\n")
    (tmp_path / "plugin").chmod(0o755)
    (tmp_path / "kubeconfig").write_text(entry(cluster, user=user))
    cluster.token = CANARY
    cluster.put({"config": "first"})
    source = ConfigMapSource(NAMESPACE, NAME, kubeconfig=str(tmp_path / "kubeconfig"))
    assert source.read().parts[0].content == b"first"


def test_a_plugin_that_fails_is_told_with_its_status(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "kubeconfig").write_text(plugin("exit 3")(cluster, tmp_path))
    source = ConfigMapSource(NAMESPACE, NAME, kubeconfig=str(tmp_path / "kubeconfig"))
    with pytest.raises(Exception, match="its plugin plugin exits with 3; run it by hand"):
        source.read()
    assert not logging.getLogger().filters


def test_what_a_library_says_is_never_a_reason() -> None:
    assert why(ValueError(f"Invalid header value b'{CANARY}'")) == "it fails with a ValueError"
    assert why(OSError(f"cannot read {CANARY}")) == "it fails with a OSError"
    assert why(OSError(13, CANARY)) == "Permission denied"
    assert why(OSError("Tunnel connection failed: 407 x")) == "it answers 407"


def test_urls_are_shown_without_what_may_be_secret_in_them() -> None:
    assert bare("https://u:p@api.example:6443/path?token=x#y") == "https://api.example:6443/path"
    assert bare("https://u:p@x@api.example") == "https://api.example"
    assert bare("u:p@api.example:1080") == "api.example:1080"


def test_a_servers_words_are_one_line_of_some_length_without_our_credentials() -> None:
    assert said(f"a\n\x1b[2J{CANARY}b", f"Bearer {CANARY}") == "a [2J[withheld]b"
    assert said(f"of {CANARY}", f"Basic {IN_BASE64}") == "of [withheld]"
    assert len(said("x" * 10000, None)) < 700
