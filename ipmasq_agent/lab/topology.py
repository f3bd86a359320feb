"""Who is in the lab, with which addresses, and what makes it so.

::

    curl-pod  webpod                              w1-pod
        └──┬────┘ cni0                               │ cni0
        k8s-ctr ── eth1 ───┬──────────┬─── eth1 ── k8s-w1
           └ eth0 (management)        │        eth0 ┘
                                    router: loop1, loop2

The IPv6 addresses mirror the IPv4 ones: 172.20.0.10 is fd00:172:20::10.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

POD_CIDRS = {"k8s-ctr": "172.20.0.0/24", "k8s-w1": "172.20.1.0/24"}
POD_CIDRS_V6 = {"k8s-ctr": "fd00:172:20::/64", "k8s-w1": "fd00:172:20:1::/64"}


@dataclass(frozen=True, slots=True)
class Address:
    """One address of a host in both families, with the lengths of their prefixes."""

    ipv4: str
    ipv6: str
    length: int = 24

    def prefixes(self) -> tuple[str, str]:
        """Return ``ADDRESS/LENGTH`` for IPv4 and for IPv6."""
        return f"{self.ipv4}/{self.length}", f"{self.ipv6}/64"


@dataclass(frozen=True, slots=True)
class Host:
    """A namespace of the lab: its links by name, and its routes in the syntax of ``ip``."""

    name: str
    links: dict[str, Address]
    routes: tuple[str, ...] = ()
    routes_v6: tuple[str, ...] = ()
    serves: bool = False


def _pod(name: str, node: int, number: int, *, serves: bool = True) -> Host:
    subnet = "172:20" if node == 0 else f"172:20:{node}"
    return Host(
        name,
        {"eth0": Address(f"172.20.{node}.{number}", f"fd00:{subnet}::{number}")},
        (f"default via 172.20.{node}.1",),
        (f"default via fd00:{subnet}::1",),
        serves,
    )


def _node(name: str, node: int, other: int) -> Host:
    own = "172:20" if node == 0 else f"172:20:{node}"
    far = "172:20" if other == 0 else f"172:20:{other}"
    return Host(
        name,
        {
            "eth0": Address(f"10.0.2.{15 + node}", f"fd00:10:0:2::{15 + node}"),
            "eth1": Address(f"192.168.10.{100 + node}", f"fd00:192:168:10::{100 + node}"),
            "cni0": Address(f"172.20.{node}.1", f"fd00:{own}::1"),
        },
        (
            "default via 10.0.2.2",
            "10.10.0.0/16 via 192.168.10.200",
            f"172.20.{other}.0/24 via 192.168.10.{100 + other}",
        ),
        (
            "default via fd00:10:0:2::2",
            "fd00:10:10::/48 via fd00:192:168:10::200",
            f"fd00:{far}::/64 via fd00:192:168:10::{100 + other}",
        ),
        serves=node == 1,
    )


# Holds the two segments that join the nodes; nobody lives there.
SWITCH = Host("switch", {"mgmt": Address("10.0.2.2", "fd00:10:0:2::2")})
ROUTER = Host(
    "router",
    {
        "eth1": Address("192.168.10.200", "fd00:192:168:10::200"),
        "loop1": Address("10.10.1.200", "fd00:10:10:1::200"),
        "loop2": Address("10.10.2.200", "fd00:10:10:2::200"),
    },
    serves=True,
)
NODES = (_node("k8s-ctr", 0, 1), _node("k8s-w1", 1, 0))
PODS = {
    "k8s-ctr": (_pod("curl-pod", 0, 10, serves=False), _pod("webpod", 0, 20)),
    "k8s-w1": (_pod("w1-pod", 1, 10),),
}
HOSTS = (SWITCH, ROUTER, *NODES, *PODS["k8s-ctr"], *PODS["k8s-w1"])

# Where traffic goes: name → (host that receives it, its address).
DESTINATIONS = {
    "webpod": ("webpod", PODS["k8s-ctr"][1].links["eth0"]),
    "w1-pod": ("w1-pod", PODS["k8s-w1"][0].links["eth0"]),
    "k8s-w1": ("k8s-w1", NODES[1].links["eth1"]),
    "router": ("router", ROUTER.links["eth1"]),
    "loop1": ("router", ROUTER.links["loop1"]),
    "loop2": ("router", ROUTER.links["loop2"]),
}

# Set in each namespace before any link is made there. A reply that comes back on another
# way than its request is part of the story, so reverse path filters are off; duplicate
# address detection would cost a second for each address.
SYSCTLS = {
    "net.ipv4.ip_forward": "1",
    "net.ipv4.conf.all.rp_filter": "0",
    "net.ipv4.conf.default.rp_filter": "0",
    "net.ipv6.conf.all.disable_ipv6": "0",
    "net.ipv6.conf.default.disable_ipv6": "0",
    "net.ipv6.conf.all.forwarding": "1",
    "net.ipv6.conf.default.accept_dad": "0",
    "net.ipv6.conf.default.accept_ra": "0",
}
# The router's way back to the pods, which the story adds in the middle.
RETURN_ROUTES = (
    "172.20.0.0/24 via 192.168.10.100",
    "172.20.1.0/24 via 192.168.10.101",
)
RETURN_ROUTES_V6 = (
    "fd00:172:20::/64 via fd00:192:168:10::100",
    "fd00:172:20:1::/64 via fd00:192:168:10::101",
)


def link_commands(namespace: dict[str, str], stub: str) -> Iterator[tuple[str, str]]:
    """Yield (host, line for ``ip -batch``) that makes every link, address and route.

    Args:
        namespace: host → the name of its namespace.
        stub: the link type that stands for a network behind the router: ``dummy``, or
            ``bridge`` (one without ports is as good) where the kernel has no dummy.
    """
    for segment in ("mgmt", "lan"):
        yield "switch", _bridge(segment)
        yield "switch", f"link set {segment} up"
    for node in NODES:
        for device, segment in (("eth0", "mgmt"), ("eth1", "lan")):
            yield from _cable(
                "switch", f"{node.name}.{device[-1]}", segment, node.name, device, namespace
            )
        yield node.name, _bridge("cni0")
        yield node.name, "link set cni0 up"
        for pod in PODS[node.name]:
            yield from _cable(node.name, f"veth-{pod.name}", "cni0", pod.name, "eth0", namespace)
    yield from _cable("switch", "router.1", "lan", "router", "eth1", namespace)
    for loop in ("loop1", "loop2"):
        yield "router", f"link add {loop} type {stub}"
        yield "router", f"link set {loop} up"
    for host in HOSTS:
        yield host.name, "link set lo up"
        for device, address in host.links.items():
            ipv4, ipv6 = address.prefixes()
            yield host.name, f"addr add {ipv4} dev {device}"
            yield host.name, f"addr add {ipv6} dev {device} nodad"
    for host in HOSTS:
        yield from ((host.name, f"route add {route}") for route in host.routes)
        yield from ((host.name, f"-6 route add {route}") for route in host.routes_v6)


def _bridge(name: str) -> str:
    # Without a forwarding delay, and without snooping, which would hold back neighbour
    # discovery until a querier was heard.
    return f"link add {name} type bridge forward_delay 0 mcast_snooping 0"


def _cable(
    bridge_host: str, port: str, bridge: str, host: str, device: str, namespace: dict[str, str]
) -> Iterator[tuple[str, str]]:
    """Join ``device`` of ``host`` to a bridge; neither end is ever seen outside the lab."""
    yield (
        bridge_host,
        f"link add {port} type veth peer name {device} netns {namespace[host]}",
    )
    yield bridge_host, f"link set {port} master {bridge} up"
    yield host, f"link set {device} up"
