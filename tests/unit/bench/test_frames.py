"""Frames that are made by hand are what scapy makes, and are read back."""

from __future__ import annotations

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from ipmasq_agent.bench.testrun import frames
from ipmasq_agent.bench.testrun.frames import PacketEnds
from ipmasq_agent.policy.addresses import Family

ENDS = {
    Family.IPV4: PacketEnds(0xAC14000A, 1500, 0x01000123, 443),
    Family.IPV6: PacketEnds(0x20010DB8 << 96 | 10, 1500, 0xFD << 120 | 0x1234, 443),
}


@pytest.mark.parametrize("protocol", [frames.TCP, frames.UDP], ids=["tcp", "udp"])
@pytest.mark.parametrize("family", list(Family), ids=lambda family: family.value)
def test_a_frame_is_what_scapy_makes(family: Family, protocol: int) -> None:
    ends = ENDS[family]
    made = frames.frame(family, protocol, ends, frames.SYN)
    addresses = {"src": family.show(ends.source), "dst": family.show(ends.destination)}
    ports = {"sport": ends.source_port, "dport": ends.destination_port}
    network = IP(id=7, **addresses) if family is Family.IPV4 else IPv6(hlim=64, **addresses)
    if protocol == frames.TCP:
        transport = TCP(seq=1, ack=1, flags="S", window=65535, **ports)
    else:
        transport = UDP(**ports)
    link = Ether(src=frames.MAC, dst=frames.MAC)
    headers = len(bytes(link / network / transport))
    expected = bytes(link / network / transport / Raw(bytes(frames.SIZE - headers)))
    assert made == expected
    assert len(made) == frames.SIZE
    assert frames.ends_of(family, made) == ends


def test_an_answer_goes_the_other_way() -> None:
    assert ENDS[Family.IPV4].back == PacketEnds(0x01000123, 443, 0xAC14000A, 1500)
