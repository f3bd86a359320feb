"""The story is consistent: with the topology, with itself, and with what documents mean."""

from __future__ import annotations

import pytest
import yaml

from ipmasq_agent.lab.by_hand import emptying
from ipmasq_agent.lab.mirror import mirrored
from ipmasq_agent.lab.scene import Scene, shown
from ipmasq_agent.lab.scenes import ROUTINGS, told
from ipmasq_agent.lab.topology import ENDPOINTS, HOSTS, NODES, POD_CIDRS, RETURN_ROUTES

SCENES = {scene.title: scene for routing in ROUTINGS for scene in told(routing)}.values()


def test_places_are_hosts_with_these_addresses() -> None:
    addresses = {host.name: set(host.addresses) for host in HOSTS if host.inhabited}
    for host, address in ENDPOINTS.values():
        assert {address, mirrored(address)} <= addresses[host]


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.title)
def test_a_scene_speaks_of_what_there_is(scene: Scene) -> None:
    nodes = {node.name for node in NODES}
    assert {scene.joins} <= nodes | {None}
    assert set(scene.bgp) <= nodes | {"router"}
    assert set(scene.nodes) <= nodes
    for expectation in scene.expect:
        assert {expectation.sender, expectation.to, expectation.seen_as} <= set(ENDPOINTS)
    for text in (*(scene.document or {}).values(), *(scene.second or {}).values()):
        for family in (text, mirrored(text)):
            assert isinstance(yaml.safe_load(family), dict)
    for place, key in scene.explains.items():
        assert place in ENDPOINTS
        assert key in (scene.document or {})


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.title)
def test_no_scene_can_be_passed_by_one_who_treats_all_packets_alike(scene: Scene) -> None:
    """Neither an agent that does nothing, nor one that masquerades everything."""
    assert {e.seen_as == e.sender for e in scene.expect} == {True, False}


def test_the_mirror_shows_every_address_and_prefix_in_ipv6() -> None:
    assert mirrored("10.10.0.0/16 via 192.168.10.200") == "fd00:10:10::/48 via fd00:192:168:10::200"
    assert mirrored("172.20.0.10 and 172.20.1.10") == "fd00:172:20::10 and fd00:172:20:1::10"
    assert mirrored("10.0.2.15/24 10.0.0.1/8") == "fd00:10:0:2::15/64 fd00:10::1/32"
    assert mirrored("0.0.0.0/0, 192.168.10.101/32") == "::/0, fd00:192:168:10::101/128"
    assert mirrored("resyncInterval: 1.5s, version 1.2.3") == "resyncInterval: 1.5s, version 1.2.3"


def test_the_router_learns_the_way_to_every_pod_network() -> None:
    assert RETURN_ROUTES == (
        "172.20.0.0/24 via 192.168.10.100",
        "172.20.1.0/24 via 192.168.10.101",
        "172.30.0.0/24 via 192.168.10.130",
    )


@pytest.mark.parametrize("routing", ROUTINGS)
def test_the_router_learns_its_way_back_after_replies_were_lost(routing: str) -> None:
    scenes = told(routing)
    lost = [n for n, scene in enumerate(scenes) if not all(e.reply for e in scene.expect)]
    learning = [n for n, scene in enumerate(scenes) if scene.bgp or scene.return_routes]
    assert lost[0] == learning[0] - 1
    assert lost[-1] < learning[-1]
    assert [scene.title for scene in scenes if scene.return_routes and scene.bgp] == []


def test_the_router_speaks_bgp_first_and_every_node_in_the_end() -> None:
    router, *nodes = [host for scene in told("bgp") for host in scene.bgp]
    assert router == "router"
    assert sorted(nodes) == sorted(POD_CIDRS)


def test_several_documents_are_shown_with_their_names() -> None:
    assert shown({"config": "a: 1\n"}) == "a: 1\n"
    both = shown({"20-team": "b: 2\n", "10-platform": "a: 1\n"})
    assert both == "--- # 10-platform\na: 1\n--- # 20-team\nb: 2\n"
    assert list(yaml.safe_load_all(both)) == [{"a": 1}, {"b": 2}]


@pytest.mark.parametrize(
    ("backend", "ipv6", "commands"),
    [
        ("iptables-nft", False, ["iptables-nft -t nat -F IP-MASQ"]),
        ("iptables-legacy", True, ["ip6tables-legacy -t nat -F IP-MASQ"]),
        ("ipset", True, ["ip6tables-nft -t nat -F IP-MASQ", "ipset flush"]),
        ("ipset-legacy", False, ["iptables-legacy -t nat -F IP-MASQ", "ipset flush"]),
        ("nftables", True, ["nft flush chain ip6 ip-masq postrouting"]),
    ],
)
def test_rules_are_emptied_where_the_backend_has_them(
    backend: str, ipv6: bool, commands: list[str]
) -> None:
    assert [" ".join(argv) for argv in emptying(backend, ipv6=ipv6)] == commands
