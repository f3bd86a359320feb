"""``kubectl ipmasq diff``, ``explain``, ``doctor`` and ``observe``: many answers as one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.fleet.conftest import DOCUMENT, Made, Plugin, few
from tests.fleet.plugin import started
from tests.fleet.real import pod
from tests.kube.cluster import write_kubeconfig


def change(cidr: str) -> dict[str, Any]:
    decisions = [{"cidr": cidr, "from": "masquerade", "to": "non-masquerade"}]
    family = {"rules": {"add": [f"-A IP-MASQ -d {cidr}"], "remove": []}, "decisions": decisions}
    return {"changed": True, "families": {"ipv4": family}}


def test_a_diff_tells_equal_changes_once(clusters: Made, plugin: Plugin) -> None:
    agents = few(7)
    for agent in agents[:4]:
        agent.verbs["diff"] = 1, change("172.16.0.0/12")
    agents[4].verbs["diff"] = 1, change("192.168.0.0/16")
    agents[5].dead = True
    done = plugin(clusters(agents), "diff", "-f", "-", stdin="nonMasqueradeCIDRs: []\n")
    assert done.code == 2
    lines = done.out.splitlines()
    assert lines[2:5] == [
        "@@ -1 +1 @@",
        "-nonMasqueradeCIDRs: [10.0.0.0/8]",
        "+nonMasqueradeCIDRs: []",
    ]
    assert lines[5:] == [
        "would change on 4 nodes (n1, n2, n3 and 1 more):",
        "  172.16.0.0/12  masquerade → non-masquerade",
        "  +-A IP-MASQ -d 172.16.0.0/12",
        "would change on 1 node (n5):",
        "  192.168.0.0/16  masquerade → non-masquerade",
        "  +-A IP-MASQ -d 192.168.0.0/16",
        "nothing would change on 1 node (n7)",
        "n6 did not answer: error dialing backend: dial tcp 10.0.0.9:10250: no route to host (500)",
    ]


def test_with_the_clusters_own_document_nothing_differs(clusters: Made, plugin: Plugin) -> None:
    done = plugin(clusters(few(2)), "diff", "-f", "-", stdin=DOCUMENT)
    assert done.code == 0
    assert done.out == "nothing would change on 2 nodes (n1, n2)\n"


def finding(evidence: str, severity: str = "warning") -> dict[str, Any]:
    return {
        "id": "forwarding-off",
        "severity": severity,
        "title": "the node forwards no packets",
        "why": "pods reach nothing",
        "remedy": "switch it on",
        "evidence": [evidence],
        "page": "docs/doctor.md#forwarding-off",
    }


def test_what_several_nodes_have_is_one_finding(clusters: Made, plugin: Plugin) -> None:
    agents = few(5)
    for agent in agents:
        agent.verbs["doctor"] = 1, [finding(f"of {agent.node}")]
    agents[4].verbs["doctor"] = 0, []
    cluster = clusters(agents)
    done = plugin(cluster, "doctor")
    assert done.code == 1
    assert done.out.startswith(
        "warning: the node forwards no packets, on n1, n2, n3 and 1 more\n    of n1\n"
    )
    agents[1].verbs["doctor"] = 2, []
    agents[2].dead = agents[4].cuts = True
    done = plugin(cluster, "doctor", "-o", "json")
    assert done.code == 2
    assert [each["nodes"] for each in done.data] == [["n1", "n4"]]
    assert "n2 could not be looked at in full" in done.err
    assert "n3 could not be looked at in full: error dialing backend" in done.err
    assert "n5 could not be looked at in full: the connection to the program was closed" in done.err


def test_a_question_about_a_pod_is_put_to_its_node(clusters: Made, plugin: Plugin) -> None:
    agents = few(3)
    agents[1].verbs["explain"] = 0, {"verdict": "masquerade"}
    cluster = clusters(agents)
    cluster.pods["client"] = pod("client", "n2", "172.20.0.5")
    done = plugin(cluster, "explain", "default/client", "8.8.8.8", "-o", "json")
    assert (done.code, done.data) == (0, {"verdict": "masquerade"})
    assert cluster.ran[-1] == (
        *("n2", "ipmasq-agent", "explain", "8.8.8.8", "--src", "172.20.0.5", "-o", "json"),
    )
    cluster.pods["lonely"] = pod("lonely", "n9", "172.20.0.6")
    for name, reason in (("lonely", "no agent is there"), ("nobody", "not found")):
        done = plugin(cluster, "explain", name, "8.8.8.8")
        assert done.code == 2
        assert reason in done.err


def seen(second: int, pods: str) -> bytes:
    told = {
        "time": f"2026-11-27T10:00:{second:02}.000000Z",
        "verdict": "masquerade",
        "IP": {"source": "172.20.0.5", "destination": "8.8.8.8", "source_xlated": "192.0.2.1"},
        "l4": {"TCP": {"source_port": 40000, "destination_port": 443}},
        "source": {"namespace": "default", "pod_name": pods},
        "destination": {},
        "left_as": {"address": "192.0.2.1", "port": 1024},
        "reason": "rule 3",
    }
    return json.dumps(told).encode() + b"\n"


@pytest.mark.parametrize("output", ["text", "json"])
def test_connections_of_all_nodes_are_shown_by_their_time(
    clusters: Made, tmp_path: Path, output: str
) -> None:
    agents = few(3)
    agents[0].lines = (seen(1, "a") + seen(4, "d")[:20], seen(4, "d")[20:] + seen(6, "f"))
    agents[1].lines = (seen(2, "b"), seen(3, "c"), seen(5, "e"))
    agents[2].dead = True
    cluster = clusters(agents)
    kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", cluster.port)
    with started(kubeconfig, "observe", "-o", output, "--", "--to", "8.8.8.0/24") as child:
        assert child.stdout is not None
        try:
            lines = [child.stdout.readline() for _ in range(6)]
        finally:
            child.kill()
            _, err = child.communicate()
    assert "n3 cannot be observed: error dialing backend" in err
    if output == "json":
        told = [json.loads(line) for line in lines]
        assert [each["source"]["pod_name"] for each in told] == list("abcdef")
        assert [each["node"] for each in told] == ["n1", "n2", "n2", "n1", "n2", "n1"]
    else:
        assert lines[0] == (
            "n1  2026-11-27T10:00:01.000000Z  TCP  default/a:40000  →  8.8.8.8:443  as  "
            "192.0.2.1:1024  masquerade  rule 3\n"
        )
    words = cluster.ran[-1]
    assert words[-6:] == ("ipmasq-agent", "observe", "--to", "8.8.8.0/24", "-o", "json")
