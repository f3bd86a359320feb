"""Live connections as the kernel lists them are those that the world heard."""

from __future__ import annotations

import socket

import pytest

from ipmasq_agent.planes.live import live_flows
from ipmasq_agent.planes.plane import Translator
from ipmasq_agent.policy.addresses import Family, parse_address
from tests.kernel.attacks.site import PLANS, site
from tests.kernel.talked import PODS, as_said, in_force, talking


@pytest.mark.parametrize("family", list(Family), ids=lambda family: family.value)
@pytest.mark.parametrize("plane", ["iptables-legacy", "iptables-nft", "nftables", "bpf"])
def test_live_connections_are_those_that_the_world_heard(plane: str, family: Family) -> None:
    with (
        site(PODS, 2) as where,
        in_force(where, plane) as at_work,
        talking(where, family, 8) as said,
    ):
        pods = {parse_address(PLANS[family].pod(n))[1] for n in range(PODS)}
        flows = [flow for flow in live_flows(at_work) if flow.source.address in pods]
        assert {as_said(flow) for flow in flows} == said
        assert len(flows) == len(said) == 3 * 16
        assert {flow.translated for flow in flows} == {True, False}
        assert all(flow.established for flow in flows)


SERVICE = """
table ip services {
    chain asked {
        type nat hook prerouting priority dstnat
        ip daddr 10.96.0.1 udp dport 53 dnat to 192.0.2.2:7777
    }
}
"""


@pytest.mark.parametrize("plane", ["nftables", "bpf"])
def test_a_connection_to_a_service_is_told_with_the_service_and_with_who_answers(
    plane: str,
) -> None:
    with site() as where, in_force(where, plane) as at_work:
        where.node.run(["nft", "-f", "-"], stdin=SERVICE)
        with where.pod.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.bind(("172.20.0.10", 5000))
            asking.sendto(b"question", ("10.96.0.1", 53))
        (flow,) = [flow for flow in live_flows(at_work) if flow.source.port == 5000]
    told = as_said(flow)
    assert (told.source, told.destination) == (("172.20.0.10", 5000), ("10.96.0.1", 53))
    assert told.heard[0] == "192.0.2.1"
    assert flow.reached.shown(flow.family) == "192.0.2.2:7777"
    assert not flow.established


@pytest.mark.parametrize("family", list(Family), ids=lambda family: family.value)
def test_what_a_plane_that_was_left_still_translates_is_told_once(family: Family) -> None:
    plan = PLANS[family]
    with (
        site(PODS, 2, tracked=True) as where,
        in_force(where, "bpf") as left,
        talking(where, family, 2) as said,
        in_force(where, "nftables") as at_work,
    ):
        assert isinstance(left, Translator)
        assert left.drain() > 0
        with where.pod.entered(), socket.socket(plan.kind, socket.SOCK_DGRAM) as asking:
            asking.bind((plan.pod(0), 5000))
            asking.sendto(b"question", (plan.server(0), 53))
        flows = [as_said(flow) for flow in live_flows(at_work, left=[left])]
        translated = {one for one in said if one.heard != one.source}
        port = min(one.heard[1] for one in translated)
        of_port = [as_said(flow) for flow in live_flows(at_work, port, [left])]
    assert sorted(flow for flow in flows if flow in said) == sorted(said)
    assert not {one._replace(heard=one.source) for one in translated} & set(flows)
    (new,) = [flow for flow in flows if flow.source == (plan.pod(0), 5000)]
    assert new.heard[0] == plan.node
    assert {one for one in of_port if one in said} == {one for one in said if one.heard[1] == port}


OTHERS = """
table inet others {
    chain masquerading {
        type nat hook postrouting priority srcnat
        udp sport 5000 masquerade
    }
}
"""


@pytest.mark.parametrize("family", list(Family), ids=lambda family: family.value)
def test_what_others_translate_before_programs_see_it_is_told_once(family: Family) -> None:
    plan = PLANS[family]
    with site(PODS, 2, tracked=True) as where, in_force(where, "bpf") as at_work:
        where.node.run(["nft", "-f", "-"], stdin=OTHERS)
        for port in (5000, 5001):
            with where.pod.entered(), socket.socket(plan.kind, socket.SOCK_DGRAM) as asking:
                asking.bind((plan.pod(0), port))
                asking.sendto(b"question", (plan.server(0), 53))
        flows = [as_said(flow) for flow in live_flows(at_work) if flow.destination.port == 53]
    assert sorted(flow.source for flow in flows) == [(plan.pod(0), 5000), (plan.pod(0), 5001)]
    assert {flow.heard[0] for flow in flows} == {plan.node}
