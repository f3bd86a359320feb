"""A node between pods and the world: packets sent here are seen there, with their source.

::

    pods 172.20.0.10, 172.21.0.10 ── node ──┬── eth0 ──┐
                                            └── eth1 ──┴── the world: every address there is

The world has every address as its own, so a packet to anywhere arrives. Sockets stay in
the namespace in which they are made, so one thread can speak and listen everywhere.
"""

from __future__ import annotations

import ipaddress
import select
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from ipmasq_agent.policy.addresses import Family
from tests.netns import Namespace

PORT = 9999
_FIRST_PORT = 20_000
_PATIENCE = 5.0
_IP_PKTINFO, _IPV6_RECVPKTINFO, _IPV6_PKTINFO = 8, 49, 50  # linux/in.h, linux/in6.h


@dataclass(frozen=True)
class Plan:
    """The addresses of one family; what lies in ``through_eth1`` leaves through eth1."""

    kind: socket.AddressFamily
    pods: tuple[str, str]
    pod_networks: tuple[str, str]
    gateways: tuple[str, str]
    eth: tuple[str, str]
    next_hops: tuple[str, str]
    through_eth1: str
    length: int
    everything: str


PLANS = {
    Family.IPV4: Plan(
        socket.AF_INET,
        ("172.20.0.10", "172.21.0.10"),
        ("172.20.0.0/24", "172.21.0.0/24"),
        ("172.20.0.1", "172.21.0.1"),
        ("192.0.2.1", "198.51.100.1"),
        ("192.0.2.254", "198.51.100.254"),
        "64.0.0.0/2",
        24,
        "0.0.0.0/0",
    ),
    Family.IPV6: Plan(
        socket.AF_INET6,
        ("fd00:172:20::10", "fd00:172:21::10"),
        ("fd00:172:20::/64", "fd00:172:21::/64"),
        ("fd00:172:20::1", "fd00:172:21::1"),
        ("2001:db8:1::1", "2001:db8:2::1"),
        ("2001:db8:1::254", "2001:db8:2::254"),
        "3000::/4",
        64,
        "::/0",
    ),
}


class Arrival(NamedTuple):
    """The source with which a packet arrived."""

    source: str
    port: int


class Crossing:
    """The namespaces, joined and addressed for both families."""

    def __init__(self, pods: tuple[Namespace, Namespace], node: Namespace, world: Namespace):
        self.pods, self.node, self.world = pods, node, world
        for number in (0, 1):
            pods[number].veth("eth0", node, f"pod{number}")
            node.veth(f"eth{number}", world, f"node{number}")
        settings = ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"]
        node.run(["sysctl", "-q", "-w", *settings])
        # The world owns the senders' addresses as well, and must not mind.
        names = ("all", "default", "node0", "node1")
        settings = [f"net.ipv4.conf.{name}.accept_local=1" for name in names]
        settings += [f"net.ipv4.conf.{name}.rp_filter=0" for name in names]
        world.run(["sysctl", "-q", "-w", *settings])
        for plan in PLANS.values():
            self._address(plan)

    def _address(self, plan: Plan) -> None:
        dash = "-6" if plan.kind == socket.AF_INET6 else "-4"
        for number in (0, 1):
            self.pods[number].address("eth0", f"{plan.pods[number]}/{plan.length}")
            self.node.address(f"pod{number}", f"{plan.gateways[number]}/{plan.length}")
            self.node.address(f"eth{number}", f"{plan.eth[number]}/{plan.length}")
            self.world.address(f"node{number}", f"{plan.next_hops[number]}/{plan.length}")
            route = ["ip", dash, "route", "add", "default", "via", plan.gateways[number]]
            self.pods[number].run(route)
        for number, network in enumerate(("default", plan.through_eth1)):
            route = ["ip", dash, "route", "add", network, "via", plan.next_hops[number]]
            self.node.run(route)
        self.world.run(["ip", dash, "route", "add", "local", plan.everything, "dev", "lo"])

    @contextmanager
    def listening(self, family: Family) -> Iterator[socket.socket]:
        """Listen in the world for whatever is sent to any address of it."""
        kind = PLANS[family].kind
        with self.world.entered():
            listener = socket.socket(kind, socket.SOCK_DGRAM)
        with listener:
            if family is Family.IPV4:
                listener.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            else:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listener.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            listener.bind(("", PORT))
            yield listener

    def send(self, family: Family, sender: Namespace, destinations: Mapping[int, str]) -> None:
        """Send each number to its destination from a pod or the node, each as a new flow.

        The port comes from the number, so that no flow is one that the kernel remembers.
        """
        with sender.entered():
            for number, destination in destinations.items():
                with socket.socket(PLANS[family].kind, socket.SOCK_DGRAM) as out:
                    out.bind(("", _FIRST_PORT + number))
                    out.sendto(struct.pack("!Q", number), (destination, PORT))


def arrivals(listener: socket.socket, count: int) -> dict[int, tuple[str, Arrival]]:
    """Return number → (destination, source) of the next packets, waiting until all are there."""
    found: dict[int, tuple[str, Arrival]] = {}
    deadline = time.monotonic() + _PATIENCE
    while len(found) < count:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([listener], [], [], left)[0]:
            break
        data, ancillary, _, sender = listener.recvmsg(64, 256)
        destination = "nowhere"
        for level, kind, value in ancillary:
            if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
                destination = str(ipaddress.ip_address(value[8:12]))  # ipi_addr
            elif (level, kind) == (socket.IPPROTO_IPV6, _IPV6_PKTINFO):
                destination = str(ipaddress.ip_address(value[:16]))
        (number,) = struct.unpack("!Q", data)
        found[number] = (destination, Arrival(str(ipaddress.ip_address(sender[0])), sender[1]))
    return found


@contextmanager
def crossing() -> Iterator[Crossing]:
    """Make a node with its pods and its world, and remove them."""
    with ExitStack() as stack:
        pods = tuple(stack.enter_context(Namespace(f"pod{number}")) for number in (0, 1))
        node = stack.enter_context(Namespace("node"))
        world = stack.enter_context(Namespace("world"))
        yield Crossing((pods[0], pods[1]), node, world)
