"""The plugin over TLS: the server's certificate, and streams inside it."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from tests.fleet.conftest import Made, Plugin, few
from tests.kube.test_in_cluster import certify


@pytest.mark.parametrize("trusted", [True, False])
def test_programs_are_run_over_tls_with_servers_that_are_trusted(
    clusters: Made, plugin: Plugin, tmp_path: Path, trusted: bool
) -> None:
    certificate = certify(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, tmp_path / "key.pem")
    cluster = clusters(few(9, port=None), tls=context)
    if not trusted:
        certify(tmp_path)
    other = tmp_path / "other"
    other.write_text(
        "apiVersion: v1\nkind: Config\ncurrent-context: none\n"
        "contexts: [{name: lab, context: {cluster: lab, user: lab}}]\n"
        f"clusters: [{{name: lab, cluster: {{server: 'https://127.0.0.1:{cluster.port}', "
        f"certificate-authority: '{certificate}'}}}}]\n"
        "users: [{name: lab, user: {token: secret}}]\n"
    )
    done = plugin(cluster, "status", "--kubeconfig", str(other), "--context", "lab")
    if trusted:
        assert done.code == 0, done.err
        assert "9 of 9 nodes in sync" in done.out
    else:
        assert done.code == 2
        assert "certificate is not trusted" in done.err
