"""ConfigMapSource as a pod: TLS, and the token of a ServiceAccount."""

from __future__ import annotations

import base64
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kubernetes.config import incluster_config

from ipmasq_agent.errors import AccessDenied, SourceUnavailable
from ipmasq_agent.host import commands
from ipmasq_agent.sources import kube_watch
from ipmasq_agent.sources.configmap import ConfigMapSource
from tests.kube.cluster import NAME, NAMESPACE, Cluster, established
from tests.unit.sources.heard import Heard, content_of


def certify(directory: Path) -> Path:
    """Make a certificate for 127.0.0.1 that is its own authority; the key is beside it."""
    certificate = directory / "ca.crt"
    commands.run(
        [
            *("openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-days", "2"),
            *("-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", "/CN=127.0.0.1"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(directory / "key.pem"), "-out", str(certificate)),
        ]
    )
    return certificate


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    certificate = certify(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, tmp_path / "key.pem")
    cluster = Cluster(context)
    yield cluster
    cluster.close()


@pytest.fixture
def source(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ConfigMapSource]:
    (tmp_path / "token").write_text("first")
    cluster.token = "first"
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(cluster.port))
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    source = ConfigMapSource(NAMESPACE, NAME)
    yield source
    source.stop()


def test_a_pod_uses_the_token_of_its_service_account(
    cluster: Cluster, source: ConfigMapSource
) -> None:
    cluster.put({"config": "first"})
    assert content_of(source.read()) == b"first"


def test_a_token_that_was_rotated_is_read_anew_when_it_is_refused(
    cluster: Cluster, source: ConfigMapSource, tmp_path: Path
) -> None:
    cluster.put({"config": "first"})
    heard = Heard()
    source.start(heard)
    established(cluster, heard)
    (tmp_path / "token").write_text("second")
    cluster.token = "second"
    cluster.break_watches()
    cluster.wait(lambda calls: calls[-1].authorization == "bearer second")
    cluster.put({"config": "second"})
    heard.content(b"second")
    assert heard.contents == [b"second"]


def test_stop_in_the_middle_of_an_encrypted_watch_is_prompt(
    cluster: Cluster, source: ConfigMapSource
) -> None:
    cluster.put({"config": "first"})
    threads = set(threading.enumerate())
    heard = Heard()
    source.start(heard)
    established(cluster, heard)
    before = time.monotonic()
    source.stop()
    assert time.monotonic() - before < kube_watch.STOP_TIMEOUT
    assert set(threading.enumerate()) == threads


def test_a_server_that_another_authority_has_certified_is_not_trusted(
    cluster: Cluster, source: ConfigMapSource, tmp_path: Path
) -> None:
    certify(tmp_path)
    with pytest.raises(SourceUnavailable, match="certificate") as refused:
        source.read()
    assert refused.value.remedy == (
        f"compare what `openssl s_client -showcerts -connect 127.0.0.1:{cluster.port}` shows with "
        f"{tmp_path / 'ca.crt'}"
    )


def test_a_token_that_is_not_accepted_is_told_with_the_account_that_it_names(
    cluster: Cluster, source: ConfigMapSource, tmp_path: Path
) -> None:
    payload = base64.urlsafe_b64encode(b'{"sub": "system:serviceaccount:kube-system:masq"}')
    (tmp_path / "token").write_text(f"head.{payload.decode().rstrip('=')}.signature")
    heard = Heard()
    source.start(heard)
    error = heard.failure("401").error
    assert isinstance(error, AccessDenied)
    assert "the ServiceAccount of this pod (kube-system/masq)" in error.message
    assert "restart the pod for a new token" in str(error.remedy)
    assert "kubeconfig" not in str(error)
    (tmp_path / "token").write_text("first")
    heard.content(None)


def test_a_token_that_has_vanished_is_a_failure_with_its_reason(
    cluster: Cluster, source: ConfigMapSource, tmp_path: Path
) -> None:
    (tmp_path / "token").unlink()
    heard = Heard()
    source.start(heard)
    error = heard.failure("token file does not exist").error
    assert "automountServiceAccountToken" in str(error.remedy)
    (tmp_path / "token").write_text("first")
    heard.content(None)
