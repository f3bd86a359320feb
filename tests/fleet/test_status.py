"""``kubectl ipmasq status``: a line for each node, whatever becomes of some of them."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.fleet.agents import Agent
from tests.fleet.cluster import FleetCluster
from tests.fleet.conftest import Made, Plugin, few
from tests.fleet.plugin import PLUGIN, SCRIPTS, run, started
from tests.kube.cluster import write_kubeconfig

MEGABYTES = 200


def test_all_in_sync_is_a_line_for_each_node_and_exit_status_0(
    clusters: Made, plugin: Plugin
) -> None:
    done = plugin(clusters(few(3)), "status")
    assert done.code == 0, done.err
    head, *rows, empty, last = done.out.splitlines()
    assert head.split() == ["NODE", "PLANE", "SYNC", "HASH", "REVISION", "SINCE", "PORTS", "DRIFT"]
    assert [row.split()[:3] for row in rows] == [
        [node, "iptables-nft", "yes"] for node in ("n1", "n2", "n3")
    ]
    assert empty == ""
    assert last.startswith("3 of 3 nodes in sync with ConfigMap kube-system/ip-masq-agent (")


@pytest.mark.parametrize("port", [9797, None], ids=["proxy", "exec"])
def test_who_does_not_answer_is_told_with_the_reason_and_not_waited_for(
    clusters: Made, plugin: Plugin, port: int | None
) -> None:
    agents = few(6, port=port)
    agents[1].dead = agents[2].silent = True
    agents[3].phase = "Pending"
    agents[4].lag = 1
    cluster = clusters(agents)
    done = plugin(cluster, "status", "--patience", "0.5", "-o", "json")
    assert done.code == 1, done.err
    reasons = {row["node"]: row["reason"] for row in done.data["nodes"]}
    assert reasons.pop("n1") is reasons.pop("n6") is None
    assert "9797: refused" in reasons["n2"] or "no route to host" in reasons["n2"]
    assert reasons["n3"] == "there is no answer in time"
    assert reasons["n4"] == "its pod is Pending"
    assert "has not seen the cluster's document" in reasons["n5"]
    heard = {row["node"] for row in done.data["nodes"] if row["heard"]}
    assert heard == {"n1", "n5", "n6"}
    asked = "exec" if port is None else "proxy/status"
    assert any(path.endswith(asked) for _, path in cluster.requests)


def test_a_node_that_refuses_the_document_says_why(clusters: Made, plugin: Plugin) -> None:
    cluster = clusters(few(1))
    plugin(cluster, "status")
    cluster.put("ip-masq-agent", "nonMasqueradeCIDRs: [10.0.0.0/33]\n")
    done = plugin(cluster, "status")
    assert done.code == 1
    row = done.out.splitlines()[1]
    assert row.split()[2] == "no"
    assert "document:1:22: " in row
    assert "10.0.0.0/33" in row


def test_one_node_alone_is_asked_for(clusters: Made, plugin: Plugin) -> None:
    cluster = clusters(few(4))
    done = plugin(cluster, "status", "--node", "n3", "-o", "json")
    assert [row["node"] for row in done.data["nodes"]] == ["n3"]
    asked = [path for _, path in cluster.requests if "proxy" in path]
    assert len(asked) == 1
    done = plugin(cluster, "status", "--node", "n9")
    assert done.code == 2
    assert "on n9" in done.err


def test_a_watch_shows_the_nodes_that_change(clusters: Made, tmp_path: Path) -> None:
    cluster = clusters(few(3))
    kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", cluster.port)
    with started(kubeconfig, "status", "-w", "--every", "0.1") as child:
        assert child.stdout is not None
        try:
            while "nodes in sync" not in child.stdout.readline():
                assert child.poll() is None
            cluster.agents["ipmasq-agent-n2"].dead = True
            changed = child.stdout.readline()
        finally:
            child.kill()
            child.communicate()
    assert changed.startswith("n2 ")
    assert "refused (503)" in changed


@pytest.mark.parametrize(
    ("forbidden", "missing"),
    [("pods", "resources: [pods]"), ("proxy", "resources: [pods/proxy]"), ("exec", "[pods/exec]")],
)
def test_a_permission_that_is_missing_is_named(
    clusters: Made, plugin: Plugin, forbidden: str, missing: str
) -> None:
    cluster = clusters(few(3, port=None if forbidden == "exec" else 9797))
    cluster.forbidden = (forbidden,)
    done = plugin(cluster, "status")
    assert done.code == 2
    assert missing in done.err
    assert done.out == ""


def test_without_the_permission_to_read_the_document_nodes_are_told_all_the_same(
    clusters: Made, plugin: Plugin
) -> None:
    cluster = clusters(few(2))
    cluster.forbidden = ("configmaps",)
    done = plugin(cluster, "status")
    assert done.code == 0
    assert "2 of 2 nodes in sync" in done.out
    assert "resources: [configmaps]" in done.err


def test_kubectl_itself_finds_the_plugin_and_hands_it_its_credentials(
    clusters: Made, tmp_path: Path
) -> None:
    scripts = tomllib.loads(Path("pyproject.toml").read_text())["project"]["scripts"]
    module, function = scripts["kubectl-ipmasq"].split(":")
    (tmp_path / "kubectl-ipmasq").write_text(
        f"#!{sys.executable}\nfrom {module} import {function}\n{function}()\n"
    )
    (tmp_path / "kubectl-ipmasq").chmod(0o755)
    kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", clusters(few(2)).port)
    done = run(kubeconfig, "ipmasq", "status", program=[str(SCRIPTS / "kubectl")])
    assert done.code == 0, done.err
    assert "2 of 2 nodes in sync" in done.out
    listed = run(kubeconfig, "plugin", "list", program=[str(SCRIPTS / "kubectl")])
    assert str(tmp_path / "kubectl-ipmasq") in listed.out


def test_a_thousand_nodes_take_little_memory(clusters: Made, tmp_path: Path) -> None:
    agents = [Agent(f"node-{number:04}") for number in range(1000)]
    agents[41].dead = agents[42].silent = True
    cluster: FleetCluster = clusters(agents)
    kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", cluster.port)
    words = [*PLUGIN, "status", "--kubeconfig", str(kubeconfig)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        out = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 1
    assert "998 of 1000 nodes in sync" in out
    assert "of 2 nothing was heard" in out
    assert sum(path.endswith("/pods") for _, path in cluster.requests) == 2
    assert usage.ru_maxrss / 1024 < MEGABYTES
