"""Captures for tests: a packet on its way through hosts, as devices would show it."""

from __future__ import annotations

from collections.abc import Iterable

from ipmasq_agent.lab.packets import Captured, Packet
from ipmasq_agent.lab.trace import Trace, follow

POD, NODE, LOOP = "172.20.0.10", "192.168.10.100", "10.10.1.200"
TOKEN = b"0123456789abcdef"
SYN, SYN_ACK = 0x02, 0x12
# curl-pod to loop1: the host, the device, whether it goes out there.
THERE = (
    ("curl-pod", "eth0", True),
    ("k8s-ctr", "veth-curl-pod", False),
    ("k8s-ctr", "cni0", False),
    ("k8s-ctr", "eth1", True),
    ("router", "eth1", False),
)
BACK = tuple((host, device, not out) for host, device, out in reversed(THERE))


def packet(protocol: str, source: str, destination: str, *, reply: bool = False) -> Packet:
    if protocol == "tcp":
        numbers = (SYN_ACK, 500, 101) if reply else (SYN, 100, 0)
        ports = (80, 10_000) if reply else (10_000, 80)
        return Packet("tcp", source, destination, *ports, b"", *numbers)
    asks = protocol == "udp" or not reply
    return Packet(protocol, source, destination, 10_000, 9000, TOKEN, asks=asks)


def masqueraded(protocol: str = "tcp") -> list[Captured]:
    """A request and its reply, masqueraded on the way out of the node."""
    request = [
        Captured(1_000 + 10 * number, *place, packet(protocol, source, LOOP))
        for number, (place, source) in enumerate(
            zip(THERE, (POD, POD, POD, NODE, NODE), strict=True)
        )
    ]
    reply = [
        Captured(1_500 + 10 * number, *place, packet(protocol, LOOP, destination, reply=True))
        for number, (place, destination) in enumerate(
            zip(BACK, (NODE, NODE, POD, POD, POD), strict=True)
        )
    ]
    return [*request, *reply]


def trace(captured: Iterable[Captured], protocol: str = "tcp", lost: tuple[str, ...] = ()) -> Trace:
    """What is found of a probe to loop1."""
    return follow(
        captured,
        protocol=protocol,
        destination=LOOP,
        token=TOKEN,
        by_opening=protocol == "tcp",
        lost=frozenset(lost),
    )
