"""Who is in the lab, with which addresses, and what makes it so.

::

    curl-pod  webpod                     w1-pod                b-pod
        └──┬────┘ cni0                      │ cni0               │ cni0
        k8s-ctr ── eth1 ───┬────── eth1 ── k8s-w1      ┌─ eth1 ─ k8s-b1
           └ eth0 (management)     eth0 ────┘          │         another cluster
                           └──────────┬────────────────┘
                                    router: loop1, loop2, internet

Addresses are IPv4 here; each host has their mirror images in IPv6 too (``mirror.py``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ipmasq_agent.lab.mirror import mirrored


@dataclass(frozen=True, slots=True)
class Host:
    """A namespace of the lab.

    Attributes:
        name: of the host.
        links: device → ADDRESS/LENGTH.
        routes: in the syntax of ``ip``.
        second: device → a further address of it, which nothing takes unless told to.
        inhabited: somebody lives there, who serves and sends.
    """

    name: str
    links: dict[str, str]
    routes: tuple[str, ...] = ()
    second: dict[str, str] = field(default_factory=dict)
    inhabited: bool = True

    @property
    def addresses(self) -> tuple[str, ...]:
        """All addresses, in IPv4 and in IPv6, without their lengths."""
        given = [a.partition("/")[0] for a in (*self.links.values(), *self.second.values())]
        return (*given, *map(mirrored, given))


def _pod(name: str, subnet: str, number: int) -> Host:
    return Host(name, {"eth0": f"{subnet}.{number}/24"}, (f"default via {subnet}.1",))


# Node → the network of its pods, and its number on the two segments.
_PLAN = {"k8s-ctr": ("172.20.0", 0), "k8s-w1": ("172.20.1", 1), "k8s-b1": ("172.30.0", 30)}
_EGRESS_IP = "192.168.10.150"


def _node(name: str, **second: str) -> Host:
    pods, number = _PLAN[name]
    others = [plan for other, plan in _PLAN.items() if other != name]
    return Host(
        name,
        {
            "eth0": f"10.0.2.{15 + number}/24",
            "eth1": f"192.168.10.{100 + number}/24",
            "cni0": f"{pods}.1/24",
        },
        (
            "default via 10.0.2.2",
            "10.10.0.0/16 via 192.168.10.200",
            "203.0.113.0/24 via 192.168.10.200",
            *(f"{far}.0/24 via 192.168.10.{100 + there}" for far, there in others),
            # Only who asks for the route's own source takes it: MASQUERADE does not.
            *(f"10.10.2.0/24 via 192.168.10.200 src {address}" for address in second.values()),
        ),
        {device: f"{address}/24" for device, address in second.items()},
    )


# Holds the two segments that join the nodes; nobody lives there.
SWITCH = Host("switch", {"mgmt": "10.0.2.2/24"}, inhabited=False)
ROUTER = Host(
    "router",
    {
        "eth1": "192.168.10.200/24",
        "loop1": "10.10.1.200/24",
        "loop2": "10.10.2.200/24",
        "internet": "203.0.113.200/24",
    },
)
FIRST_CLUSTER = (_node("k8s-ctr", eth1=_EGRESS_IP), _node("k8s-w1"))
SECOND_CLUSTER = (_node("k8s-b1"),)
NODES = FIRST_CLUSTER + SECOND_CLUSTER
POD_CIDRS = {name: f"{pods}.0/24" for name, (pods, _) in _PLAN.items()}
PODS = {
    "k8s-ctr": (_pod("curl-pod", "172.20.0", 10), _pod("webpod", "172.20.0", 20)),
    "k8s-w1": (_pod("w1-pod", "172.20.1", 10),),
    "k8s-b1": (_pod("b-pod", "172.30.0", 10),),
}
HOSTS = (SWITCH, ROUTER, *NODES, *(pod for pods in PODS.values() for pod in pods))

# Where packets come from and go to, by the name that the story has: (host, address).
ENDPOINTS = {
    "curl-pod": ("curl-pod", "172.20.0.10"),
    "webpod": ("webpod", "172.20.0.20"),
    "w1-pod": ("w1-pod", "172.20.1.10"),
    "b-pod": ("b-pod", "172.30.0.10"),
    "k8s-ctr": ("k8s-ctr", "192.168.10.100"),
    "k8s-ctr/eth0": ("k8s-ctr", "10.0.2.15"),
    "egress-ip": ("k8s-ctr", _EGRESS_IP),
    "k8s-w1": ("k8s-w1", "192.168.10.101"),
    "k8s-w1/eth0": ("k8s-w1", "10.0.2.16"),
    "k8s-b1": ("k8s-b1", "192.168.10.130"),
    "router": ("router", "192.168.10.200"),
    "loop1": ("router", "10.10.1.200"),
    "loop2": ("router", "10.10.2.200"),
    "internet": ("router", "203.0.113.200"),
}

# Set in each namespace before any link is made there. A reply that comes back on another
# way than its request is part of the story, so reverse path filters are off; duplicate
# address detection would cost a second for each address.
SYSCTLS = (
    "net.ipv4.ip_forward=1",
    "net.ipv4.conf.all.rp_filter=0",
    "net.ipv4.conf.default.rp_filter=0",
    "net.ipv6.conf.all.disable_ipv6=0",
    "net.ipv6.conf.default.disable_ipv6=0",
    "net.ipv6.conf.all.forwarding=1",
    "net.ipv6.conf.default.accept_dad=0",
    "net.ipv6.conf.default.accept_ra=0",
)
# The router's way back to the pods, which the story adds in the middle.
RETURN_ROUTES = tuple(
    f"{POD_CIDRS[node.name]} via {node.links['eth1'].partition('/')[0]}" for node in NODES
)


def route_commands(host: str, routes: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Yield (host, line for ``ip -batch``) that adds routes in both families."""
    yield from ((host, f"route add {route}") for route in routes)
    yield from ((host, f"route add {mirrored(route)}") for route in routes)


def link_commands(namespace: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield (host, line for ``ip -batch``) that makes every link, address and route.

    Args:
        namespace: host → the name of its namespace.
    """
    # A bridge without ports stands for each network behind the router.
    for name, bridges in (
        ("switch", ("mgmt", "lan")),
        ("router", ("loop1", "loop2", "internet")),
        *((node.name, ("cni0",)) for node in NODES),
    ):
        for bridge in bridges:
            yield name, _bridge(bridge)
            yield name, f"link set {bridge} up"
    for node in NODES:
        for device, segment in (("eth0", "mgmt"), ("eth1", "lan")):
            yield from _cable(
                "switch", f"{node.name}.{device[-1]}", segment, node.name, device, namespace
            )
    yield from _cable("switch", "router.1", "lan", "router", "eth1", namespace)
    for node in NODES:
        for pod in PODS[node.name]:
            yield from _cable(node.name, f"veth-{pod.name}", "cni0", pod.name, "eth0", namespace)
    for host in HOSTS:
        yield host.name, "link set lo up"
        for device, address in host.links.items():
            yield host.name, f"addr add {address} dev {device}"
            yield host.name, f"addr add {mirrored(address)} dev {device} nodad"
        for device, address in host.second.items():
            yield host.name, f"addr add {address} dev {device}"
            # A deprecated one is no candidate for a source that is chosen (RFC 6724, rule 3).
            deprecated = f"{mirrored(address)} dev {device} nodad preferred_lft 0"
            yield host.name, f"addr add {deprecated}"
        yield from route_commands(host.name, host.routes)


def _bridge(name: str) -> str:
    # Without a forwarding delay, and without snooping, which would hold back neighbour
    # discovery until a querier was heard.
    return f"link add {name} type bridge forward_delay 0 mcast_snooping 0"


def _cable(
    bridge_host: str, port: str, bridge: str, host: str, device: str, namespace: dict[str, str]
) -> Iterator[tuple[str, str]]:
    """Join ``device`` of ``host`` to a bridge; neither end is ever seen outside the lab."""
    peer = f"{device} netns {namespace[host]}"
    yield bridge_host, f"link add {port} type veth peer name {peer}"
    yield bridge_host, f"link set {port} master {bridge} up"
    yield host, f"link set {device} up"
