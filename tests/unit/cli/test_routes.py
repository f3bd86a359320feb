"""``routes`` with nodes from flags and files; those of an API are tests/kube's."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ipmasq_agent import cli

Routes = Callable[..., tuple[int, str, str]]
FLAGS = (
    "--node",
    "k8s-ctr=192.168.10.100,172.20.0.0/24",
    "--node",
    "k8s-w1=192.168.10.101,172.20.1.0/24",
)
BGP = ("--bgp", "--asn", "64512", "--peer", "192.168.10.200=64513")


def node(name: str, *addresses: tuple[str, str], cidrs: tuple[str, ...]) -> dict[str, Any]:
    return {
        "kind": "Node",
        "metadata": {"name": name},
        "spec": {"podCIDR": cidrs[0], "podCIDRs": list(cidrs)},
        "status": {"addresses": [{"type": kind, "address": text} for kind, text in addresses]},
    }


NODES = {
    "kind": "List",
    "items": [
        node(
            "k8s-ctr",
            ("Hostname", "k8s-ctr"),
            ("ExternalIP", "203.0.113.1"),
            ("InternalIP", "192.168.10.100"),
            cidrs=("172.20.0.0/24",),
        ),
        node("k8s-w1", ("InternalIP", "192.168.10.101"), cidrs=("172.20.1.0/24",)),
    ],
}
CILIUM = {
    "kind": "CiliumNodeList",
    "items": [
        {
            "metadata": {"name": "k8s-ctr"},
            "spec": {
                "addresses": [
                    {"type": "CiliumInternalIP", "ip": "172.20.0.77"},
                    {"type": "InternalIP", "ip": "192.168.10.100"},
                ],
                "ipam": {"podCIDRs": ["172.20.0.0/24"]},
            },
        },
        {
            "metadata": {"name": "k8s-w1"},
            "spec": {
                "addresses": [{"type": "InternalIP", "ip": "192.168.10.101"}],
                "ipam": {"pools": {"allocated": [{"pool": "default", "cidrs": ["172.20.1.0/24"]}]}},
            },
        },
    ],
}
STATIC = """\
# needed by the routers toward 10.10.1.0/24
# k8s-ctr
ip route replace 172.20.0.0/24 via 192.168.10.100
# k8s-w1
ip route replace 172.20.1.0/24 via 192.168.10.101
"""


@pytest.fixture
def routes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Routes:
    """Run the verb beside a document: exit status, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    Path("config").write_text("nonMasqueradeCIDRs: [10.10.1.0/24]\n")

    def run(*words: str, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        with pytest.raises(SystemExit) as left:
            cli.main(["routes", "--config", "config", *words])
        captured = capsys.readouterr()
        assert isinstance(left.value.code, int)
        return left.value.code, captured.out, captured.err

    return run


def test_nodes_may_come_by_flag_file_or_pipe_as_json_or_yaml(routes: Routes) -> None:
    Path("nodes.json").write_text(json.dumps(NODES))
    Path("nodes.yaml").write_text(yaml.safe_dump(NODES))
    ways = (FLAGS, ("nodes.json",), ("nodes.yaml",))
    assert [routes(*way) for way in ways] == [(0, STATIC, "")] * 3
    for nodes in (NODES, CILIUM):
        assert routes("-", stdin=json.dumps(nodes)) == (0, STATIC, "")
    alone = routes("-", stdin=json.dumps(NODES["items"][0]))
    assert alone == (0, STATIC[: STATIC.index("# k8s-w1")], "")


def test_the_plain_list_is_json_or_yaml(routes: Routes) -> None:
    expected = {
        "needed": True,
        "needs": [
            {
                "family": "ipv4",
                "toward": ["10.10.1.0/24"],
                "routes": [
                    {"prefix": "172.20.0.0/24", "via": "192.168.10.100", "node": "k8s-ctr"},
                    {"prefix": "172.20.1.0/24", "via": "192.168.10.101", "node": "k8s-w1"},
                ],
            }
        ],
    }
    assert json.loads(routes(*FLAGS, "-o", "json")[1]) == expected
    assert yaml.safe_load(routes(*FLAGS, "-o", "yaml")[1]) == expected


def test_nothing_is_needed_where_all_is_masqueraded(routes: Routes) -> None:
    Path("config").write_text("nonMasqueradeCIDRs: []\n")
    status, told, _ = routes(*FLAGS, "--format", "cisco")
    assert (status, told) == (0, "! nothing is needed: no pod's own address is seen outside\n")
    for words in ((), ("--node-name", "k8s-w1"), ("--router",)):
        status, told, _ = routes(*FLAGS, *BGP, *words)
        assert (status, told) == (0, "! nothing is needed: no pod's own address is seen outside\n")
    assert json.loads(routes(*FLAGS, "-o", "json")[1]) == {"needed": False, "needs": []}


def test_configurations_are_all_written_unless_one_is_picked(routes: Routes) -> None:
    every = json.loads(routes(*FLAGS, *BGP, "-o", "json")[1])["bgp"]
    assert list(every) == ["node k8s-ctr", "node k8s-w1", "router of AS 64513"]
    for name, words in (
        ("node k8s-w1", ("--node-name", "k8s-w1")),
        ("router of AS 64513", ("--router",)),
    ):
        status, told, _ = routes(*FLAGS, *BGP, *words)
        assert status == 0
        assert told == f"! needed by the routers toward 10.10.1.0/24\n! {name}\n{every[name]}"
        assert told.count("\nrouter bgp ") == 1


def test_the_node_that_an_agents_environment_names_picks_nothing(
    routes: Routes, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = routes(*FLAGS, *BGP)
    monkeypatch.setenv("IPMASQ_NODE_NAME", "k8s-w1")
    assert routes(*FLAGS, *BGP) == every


def test_who_speaks_no_bgp_is_told_who_does(routes: Routes) -> None:
    for words, said in (
        (("--format", "iproute2"), "iproute2 does no BGP"),
        (("--format", "junos", "--node-name", "k8s-w1"), "no configuration of k8s-w1 in junos"),
        (("--node-name", "k8s-w9"), "no configuration of k8s-w9 in frr"),
    ):
        status, told, error = routes(*FLAGS, *BGP, *words)
        assert (status, told) == (2, "")
        assert said in error
    told = routes(*FLAGS, *BGP, "--format", "junos")[1]
    assert "set protocols bgp" in told
    assert "k8s-ctr" not in told


def test_a_family_without_a_peer_is_warned_of(routes: Routes) -> None:
    both = ("--node", "a=10.0.0.1,fd00::1,172.20.0.0/24,fd00:1::/64")
    _, told, error = routes(*both, *BGP)
    assert "nobody is told of ipv6" in error
    assert "fd00" not in told.partition("\nrouter bgp")[2]
    assert "without --enable-ipv6" in error


def test_devices_that_are_left_alone_are_warned_of(routes: Routes) -> None:
    Path("config").write_text("nonMasqueradeCIDRs: []\negressInterfaces: [eth1]\n")
    status, told, error = routes(*FLAGS)
    assert (status, told[:19]) == (0, "# nothing is needed")
    assert "other devices than eth1" in error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nodes", *FLAGS), "name nodes twice"),
        ((*FLAGS, "--bgp"), "--bgp needs --asn and --peer"),
        ((*FLAGS, "--router"), "are for --bgp"),
        (("--node", "a=1"), "--node: 'a=1'"),
        ((*FLAGS, "--pod-network", "10.0.0.1/8"), "did you mean 10.0.0.0/8?"),
        ((*FLAGS, *BGP, "--peer", "10.0.0.1=x"), "--peer: '10.0.0.1=x'"),
        (("absent",), "absent cannot be read"),
        (("config",), "config holds no nodes"),
        (("new",), "no node has pod CIDRs"),
        (("broken",), "broken holds no nodes"),
    ],
)
def test_what_cannot_be_meant_is_refused(routes: Routes, words: tuple[str, ...], said: str) -> None:
    Path("broken").write_text("- [\n")
    Path("new").write_text("kind: Node\nmetadata:\n  name: a\n")
    status, told, error = routes(*words)
    assert (status, told) == (2, "")
    assert said in error
