"""Draining: flows go on, new ones are left to others."""

from __future__ import annotations

import pytest
from scapy.packet import Raw

from tests.bpf import layout
from tests.bpf.datapath import Datapath
from tests.bpf.packets import Addresses, flow, frame, network, udp

PROTOCOLS = ("tcp", "udp", "echo")
UDP = 17
GRACE = 2


def drain(masq: Datapath, family: Addresses) -> None:
    masq.policy(
        family.number, {family.everything: layout.MASQUERADE}, flags=layout.DRAINING, generation=1
    )


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_flows_go_on_while_new_ones_are_left_to_others(
    masq: Datapath, family: Addresses, protocol: str
) -> None:
    masq.out(flow(protocol, family.pod, 1500, family.outside, 80))
    drain(masq, family)
    out = masq.out(flow(protocol, family.pod, 1500, family.outside, 80, "A"))
    assert out == frame(flow(protocol, family.node, 1500, family.outside, 80, "A"))
    back = masq.back(flow(protocol, family.outside, 80, family.node, 1500, reply=True))
    assert back == frame(flow(protocol, family.outside, 80, family.pod, 1500, reply=True))
    held = set(masq.flows(family.number))
    new = frame(flow(protocol, family.pod, 1501, family.outside, 80))
    assert masq.out(new) == new
    came = frame(flow(protocol, family.outside, 4000, family.pod, 8080))
    assert masq.back(came) == came
    assert set(masq.flows(family.number)) == held
    assert masq.counted(family.number)["OUT_KEPT_DRAINING"] == 1


def test_what_cannot_be_translated_is_left_to_others_while_draining(
    masq: Datapath, family: Addresses
) -> None:
    drain(masq, family)
    field = {"proto": 136} if family.v4 else {"nh": 136}
    packet = frame(network(family.pod, family.outside, **field) / Raw(bytes(32)))
    assert masq.out(packet) == packet


def test_expired_flows_are_left_to_others_while_draining(masq: Datapath, family: Addresses) -> None:
    masq.out(udp(family.pod, 1500, family.outside, 80))
    masq.let_expire(family.number)
    drain(masq, family)
    packet = frame(udp(family.pod, 1500, family.outside, 80))
    assert masq.out(packet) == packet
