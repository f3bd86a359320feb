"""The plugin with agents that are processes, each with the kernel of a namespace of its own."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipmasq_agent.cli import fleet_rolling
from ipmasq_agent.fleet.cluster import _UNTIL_CLOSED
from ipmasq_agent.fleet.published import digest_of
from tests.fleet.conftest import DOCUMENT, Made, Plugin
from tests.fleet.plugin import started
from tests.fleet.real import RealAgent, nodes, pod, rules
from tests.kube.cluster import write_kubeconfig
from tests.netns import Namespace
from tests.waiting import DEADLINE, wait_until

NEW = "nonMasqueradeCIDRs: [10.0.0.0/8, 172.16.0.0/12]\n"
BACKENDS = ("iptables-nft", "nftables")

pytestmark = pytest.mark.kernel


@pytest.fixture
def agents(tmp_path: Path) -> Iterator[list[RealAgent]]:
    with nodes(tmp_path, BACKENDS, DOCUMENT) as found:
        yield found


def test_real_agents_are_asked_told_and_taken_back(
    clusters: Made,
    plugin: Plugin,
    agents: list[RealAgent],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fleet_rolling, "PAUSE", 0.1)
    cluster = clusters(agents)
    new = tmp_path / "new.yaml"
    new.write_text(NEW)

    done = plugin(cluster, "status", "--patience", "60", "-o", "json")
    assert [row["plane"] for row in done.data["nodes"]] == list(BACKENDS)
    assert {row["hash"] for row in done.data["nodes"]} == {digest_of(DOCUMENT.encode())}

    done = plugin(cluster, "diff", "-f", str(new))
    assert done.code == 1, done.err
    assert "+nonMasqueradeCIDRs: [10.0.0.0/8, 172.16.0.0/12]" in done.out
    assert done.out.count("172.16.0.0/12  masquerade → non-masquerade") == len(BACKENDS)
    assert "+-A IP-MASQ -d 172.16.0.0/12" in done.out

    words = ("apply", "--yes", "--patience", "60", "-o", "json", "-f", str(new))
    done = plugin(cluster, *words)
    assert done.code == 0, done.err
    assert "172.16.0.0/12" in rules(agents[0], "iptables-nft", "-t", "nat", "-S", "IP-MASQ")

    cluster.pods["client"] = pod("client", "real-1", "192.0.2.7")
    done = plugin(cluster, "explain", "client", "172.16.0.9", "-o", "json")
    assert done.code == 0, done.err
    assert done.data["source"] == "192.0.2.7"
    assert done.data["verdict"] == "non-masquerade"
    assert "client is on real-1" in done.err

    done = plugin(cluster, "doctor", "-o", "json")
    assert done.code in (0, 1), done.err
    where = {each["id"]: each["nodes"] for each in done.data}
    assert where["forwarding-off"] == ["real-0", "real-1"]

    # One of them dies of the next document.
    def die(what: str) -> None:
        if cluster.document() == "nonMasqueradeCIDRs: []\n":
            agents[1].process.kill()

    cluster.after = die
    new.write_text("nonMasqueradeCIDRs: []\n")
    done = plugin(cluster, *words, "--grace", "0.5")
    assert done.code == 1
    assert "real-1" in done.data["failed"]
    assert "error trying to reach service: Connection refused" in done.data["failed"]["real-1"]
    assert cluster.document() == NEW
    assert "172.16.0.0/12" in rules(agents[0], "iptables-nft", "-t", "nat", "-S", "IP-MASQ")


# Each from another port, so that each begins a connection.
SENDING = """
import socket, time
while True:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.sendto(b"x", ("192.168.10.200", 5300))
    time.sleep(0.2)
"""


def test_connections_of_a_real_node_are_shown_until_nobody_looks(
    clusters: Made, tmp_path: Path
) -> None:
    with nodes(tmp_path, ["nftables"], DOCUMENT) as (agent,):
        namespace = agent.namespace
        namespace.popen([sys.executable, "-c", SENDING])
        kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", clusters([agent]).port)
        with started(kubeconfig, "observe", "-o", "json", "--", "--port", "5300") as child:
            assert child.stdout is not None
            try:
                told = json.loads(child.stdout.readline())
            finally:
                child.kill()
                child.communicate()
        assert told["node"] == "real-0"
        assert told["IP"]["destination"] == "192.168.10.200"
        assert told["IP"]["source"] == "192.168.10.100"
        wait_until(lambda: not observing(namespace), "its program on the node has ended")


def observing(namespace: Namespace) -> list[str]:
    """Return the programs in a namespace that observe."""
    done = subprocess.run(
        ["ip", "netns", "pids", namespace.name], capture_output=True, text=True, check=True
    )
    found = []
    for pid in done.stdout.split():
        with contextlib.suppress(OSError):  # it has ended meanwhile
            found.append(Path("/proc", pid, "cmdline").read_text())
    return [each for each in found if "observe" in each]


def test_what_is_followed_ends_with_the_connection_and_tells_its_own_end() -> None:
    argv = ["sh", "-c", _UNTIL_CLOSED, "ipmasq-agent"]
    with subprocess.Popen([*argv, "sleep", "1000"], stdin=subprocess.PIPE) as child:
        assert child.stdin is not None
        child.stdin.close()
        assert child.wait(DEADLINE) == 128 + 15
    with subprocess.Popen(
        [*argv, "sh", "-c", "echo said; exit 3"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.read() == b"said\n"
        assert child.wait(DEADLINE) == 3
