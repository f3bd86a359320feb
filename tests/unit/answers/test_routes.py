"""Which routes the network outside needs, and who announces and accepts them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipmasq_agent.answers.route_formats import FORMATS
from ipmasq_agent.answers.routes import (
    Accepted,
    Need,
    Peer,
    needed,
    parse_node,
    parse_peer,
    routers,
    speakers,
)
from ipmasq_agent.config.assemble import assemble_family
from ipmasq_agent.config.document import parse_document
from ipmasq_agent.config.model import Flags
from ipmasq_agent.policy.addresses import Family, Prefix, range_text
from ipmasq_agent.policy.cidrs import parse_cidr
from ipmasq_agent.policy.decisions import Verdict
from ipmasq_agent.policy.facts import NODE_ADDRESSES, OWN_POD_CIDRS, ClusterNode, Facts
from ipmasq_agent.policy.model import Capabilities, FamilyPolicy
from tests.golden.routes.cases import FOLDER, GOLDEN, texts
from tests.unit.strategies import FAMILIES, policies

CTR = parse_node("k8s-ctr=192.168.10.100,172.20.0.0/24")
W1 = parse_node("k8s-w1=192.168.10.101,172.20.1.0/24")
NODES = (CTR, W1)
TEXTS = dict(texts())
PARSERS = {
    "frr": ["vtysh", "-C", "-f"],
    "bird": ["bird", "-p", "-c"],
    "gobgp": ["gobgpd", "--dry-run", "-f"],
}
# Its static routes are commands.
PARSED = [n for n in TEXTS if n.rpartition(".")[2] in PARSERS and n != "static.gobgp"]


def policy(document: str, nodes: tuple[ClusterNode, ...] = NODES) -> dict[Family, FamilyPolicy]:
    """Return what a document decides about IPv4, and that the cluster has no IPv6."""
    facts = Facts(
        {
            NODE_ADDRESSES: frozenset(a for node in nodes for a in node.addresses),
            OWN_POD_CIDRS: tuple(p for node in nodes for p in node.pod_cidrs),
        }
    )
    config = parse_document(document.encode(), "doc", Flags()).config
    return {Family.IPV4: assemble_family(config, Family.IPV4, Capabilities(), facts)}


def told(needs: list[Need]) -> list[tuple[list[str], list[str]]]:
    """Return each need's destinations and routes as text."""
    return [
        (
            [range_text(need.family, *each) for each in need.toward],
            [f"{route.prefix} via {route.next_hop}" for route in need.routes],
        )
        for need in needs
    ]


BOTH = ["172.20.0.0/24 via 192.168.10.100", "172.20.1.0/24 via 192.168.10.101"]


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ("nonMasqueradeCIDRs: []", []),
        # Pods and nodes of the cluster find the way by themselves.
        ("nonMasqueradeCIDRs: [172.20.0.0/23, 192.168.10.100/31]", []),
        ("nonMasqueradeCIDRs: []\nexemptNodeIPs: true", []),
        ("nonMasqueradeCIDRs: [127.0.0.0/8, 224.0.0.0/4]", []),
        ("nonMasqueradeCIDRs: [10.10.1.0/24]", [(["10.10.1.0/24"], BOTH)]),
        # More than the pods that there are: what else it is, who knows.
        ("nonMasqueradeCIDRs: [172.20.0.0/22]", [(["172.20.0.0/22"], BOTH)]),
        (
            "nonMasqueradeCIDRs: [10.0.0.0/8]\nmasqueradeCIDRs: [10.128.0.0/9]",
            [(["10.0.0.0/9"], BOTH)],
        ),
        (
            "defaultAction: keep\nmasqueradeCIDRs: [10.10.2.0/24]",
            [(["0.0.0.0-10.10.1.255", "10.10.3.0-255.255.255.255"], BOTH)],
        ),
        ("nonMasqueradeCIDRs: []\npodCIDRs: auto", []),
        # Whom the guard leaves out keeps its address everywhere.
        (
            "nonMasqueradeCIDRs: [10.0.0.0/8]\npodCIDRs: [172.20.1.0/24]",
            [(["0.0.0.0/0"], BOTH[:1]), (["10.0.0.0/8"], BOTH[1:])],
        ),
    ],
)
def test_routes_are_needed_where_a_destination_outside_is_kept(
    document: str, expected: list[tuple[list[str], list[str]]]
) -> None:
    needs, missing = needed(NODES, policy(document))
    assert told(needs) == expected
    assert missing == []


def test_a_pod_network_that_is_given_counts_as_inside() -> None:
    cluster = policy("nonMasqueradeCIDRs: [172.20.0.0/16]")
    assert needed(NODES, cluster)[0] != []
    assert needed(NODES, cluster, [parse_cidr("172.20.0.0/16")])[0] == []


@given(st.data(), FAMILIES)
def test_every_kept_destination_outside_has_its_routes(data: st.DataObject, family: Family) -> None:
    either = data.draw(policies(family))
    pods = data.draw(st.integers(0, family.last_address >> 16)) << 16
    node = ClusterNode("a", ((family, 5),), (Prefix(family, pods, family.bits - 16),))
    toward = [
        (first, last)
        for need in needed([node], {family: either})[0]
        for first, last in need.toward
        if need.family is family
    ]
    guards = either.guards.sources
    for first, last, verdict, _ in either.decisions.ranges:
        for address in {first, last}:
            told = any(low <= address <= high for low, high in toward)
            if verdict is Verdict.NON_MASQUERADE and not inside(family, address, node):
                assert told
            elif verdict is Verdict.MASQUERADE and guards is None:
                assert not told


def inside(family: Family, address: int, node: ClusterNode) -> bool:
    unrouted = ("127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "::1/128", "fe80::/10", "ff00::/8")
    prefixes = [*map(parse_cidr, unrouted), *node.pod_cidrs]
    ours = any(p.family is family and p.first <= address <= p.last for p in prefixes)
    return ours or (family, address) in node.addresses


def test_a_family_that_nobody_manages_is_kept_everywhere() -> None:
    both = parse_node("a=10.0.0.1,fd00::1,172.20.0.0/24,fd00:1::/64")
    needs, missing = needed([both], policy("nonMasqueradeCIDRs: []", (both,)))
    assert told(needs) == [(["::/0"], ["fd00:1::/64 via fd00::1"])]
    assert missing == []


def test_a_node_without_pods_or_without_an_address_of_their_family_is_told() -> None:
    nodes = (ClusterNode("new", CTR.addresses, ()), parse_node("six=fd00::1,172.20.9.0/24"))
    needs, missing = needed(nodes, policy("nonMasqueradeCIDRs: [10.0.0.0/8]", nodes))
    assert needs == []
    assert missing == [
        "six has no address by which 172.20.9.0/24 is reached",
        "new has no pod CIDRs",
    ]


def kept() -> list[Need]:
    return needed(NODES, policy("nonMasqueradeCIDRs: [10.0.0.0/8]"))[0]


def test_each_node_announces_its_own_pods_to_the_peers_of_their_family() -> None:
    peers = [parse_peer("192.168.10.200=65000", 64512), parse_peer("fd00::200", 64512)]
    assert peers[1] == Peer(Family.IPV6, 0xFD00 << 112 | 0x200, 64512)
    found = list(speakers(kept(), 64512, peers))
    assert [(node.name, *map(str, node.announces[Family.IPV4])) for node in found] == [
        ("k8s-ctr", "172.20.0.0/24"),
        ("k8s-w1", "172.20.1.0/24"),
    ]
    assert [node.router_id for node in found] == ["192.168.10.100", "192.168.10.101"]
    assert all(node.peers == (peers[0],) for node in found)


def test_the_router_names_no_node() -> None:
    [router] = routers(kept(), 64512, [parse_peer("192.168.10.200=65000", 64512)])
    assert (router.asn, router.nodes_asn) == (65000, 64512)
    [(listens, accepts)] = router.families.values()
    assert [*map(str, listens)] == ["192.168.10.0/24"]
    assert accepts == [Accepted(parse_cidr("172.20.0.0/16"), 24, 24)]
    [router] = routers(
        kept(),
        64512,
        [parse_peer("192.168.10.200=65000", 64512)],
        [parse_cidr("192.168.8.0/21")],
        [parse_cidr("172.16.0.0/12"), parse_cidr("172.20.7.0/28")],
    )
    [(listens, accepts)] = router.families.values()
    assert [*map(str, listens)] == ["192.168.8.0/21"]
    assert accepts == [Accepted(parse_cidr("172.16.0.0/12"), 24, 24)]


@pytest.mark.parametrize("name", FORMATS)
def test_a_family_without_pods_is_not_spoken_of(name: str) -> None:
    peers = [parse_peer(text, 64512) for text in ("192.168.10.200", "fd00:192:168:10::200")]
    speaks = FORMATS[name].router
    if speaks is not None:
        [router] = routers(kept(), 64512, peers, [parse_cidr("fd00:192:168:10::/64")])
        text = "\n".join(speaks(router))
        assert "172.20.0.0/16" in text
        assert "v6" not in text
        assert "inet6" not in text
        assert "fd00:" not in text


def test_nodes_of_ipv6_alone_have_identifiers_too() -> None:
    six = (parse_node("a=fd00::a:1,fd00:1::/64"), parse_node("b=fd00::,fd00:2::/64"))
    found = speakers(needed(six, {})[0], 64512, [parse_peer("fd00::200", 64512)])
    assert [node.router_id for node in found] == ["0.10.0.1", "0.0.0.1"]


@pytest.mark.parametrize(
    "text", ["", "a", "a=", "a=10.0.0.1", "a=172.20.0.0/24", "=10.0.0.1,172.20.0.0/24"]
)
def test_what_names_no_node_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"NAME=ADDRESS,PODCIDR|not appear to be"):
        parse_node(text)


@pytest.mark.parametrize("text", ["x", "10.0.0.1=", "10.0.0.1=0", "10.0.0.1=4294967296"])
def test_what_names_no_peer_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"autonomous|not appear to be"):
        parse_peer(text, 1)


@pytest.mark.parametrize("name", [name for name in TEXTS if name.endswith(GOLDEN)])
def test_what_is_written_for_a_router_is_exactly_that_of_the_golden_file(name: str) -> None:
    assert TEXTS[name] == (FOLDER / name).read_text()


def test_no_golden_file_is_of_nothing() -> None:
    files = {path.name for path in FOLDER.iterdir() if path.suffix in GOLDEN}
    assert files == {name for name in TEXTS if name.endswith(GOLDEN)}


@pytest.mark.parametrize("name", PARSED)
def test_those_who_are_to_read_it_take_it(name: str, tmp_path: Path) -> None:
    file = tmp_path / "config"
    file.write_text(TEXTS[name])
    argv = [*PARSERS[name.rpartition(".")[2]], str(file)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    # And would not take anything.
    file.write_text(TEXTS[name] + "\nno such word\n")
    assert subprocess.run(argv, capture_output=True, check=False).returncode != 0
