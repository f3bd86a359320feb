"""Flows that begin anew with another address, and what is left of where they were."""

from __future__ import annotations

import struct

from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6

from tests.bpf import layout
from tests.bpf.datapath import Datapath, now
from tests.bpf.packets import LINK, Addresses, address, udp

GRACE = 2


def source_of(masq: Datapath, family: Addresses) -> str:
    """The source with which the pod's flow leaves."""
    out = masq.out(udp(family.pod, 1500, family.outside, 80))
    assert out is not None
    return str((IP if family.v4 else IPv6)(out[LINK:]).src)


def test_a_flow_is_found_where_it_began_anew_also_when_its_older_place_goes(
    masq: Datapath, family: Addresses
) -> None:
    assert source_of(masq, family) == family.node
    masq.index()
    everything = {family.everything: layout.MASQUERADE}
    masq.policy(family.number, everything, flags=layout.MANAGED | layout.INDEXING)
    masq.own(family.number, family.other_node)
    masq.device(family, source="other_node")
    assert source_of(masq, family) == family.other_node

    for key, value in masq.maps["flows"].entries().items():
        *owner, life = struct.unpack(layout.FLOW, value)
        if struct.unpack(layout.FLOW_KEY, key)[1] == address(family.node):
            life = life >> 32 << 32 | now() - GRACE
            masq.maps["flows"].put(key, struct.pack(layout.FLOW, *owner, life))
    assert masq.sweep() == 1
    assert len(masq.flows(family.number)) == 1
    masq.own(family.number, family.node)
    masq.device(family)
    assert source_of(masq, family) == family.other_node
