"""A node between pods and servers, with the eBPF programs on the device that leads out.

::

    pods 172.20.0.10, .11, ... ── cali0 ─ node ─ eth0 ── eth0 ─ world: 192.0.2.2, .3, ...
                                   192.0.2.1

The world knows the way to the pods: a packet that keeps its source is answered as well, and
so told from one that is lost.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ipmasq_agent.agent.intent import Intent
from ipmasq_agent.agent.reconcile import clean, reconcile
from ipmasq_agent.config.document import parse_document
from ipmasq_agent.config.model import Flags
from ipmasq_agent.host.devices import read_links
from ipmasq_agent.planes.bpf.plane import BpfPlane
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.facts import LINKS, NO_FACTS
from ipmasq_agent.policy.model import PortRange
from tests.kernel.pins import placement
from tests.netns import Namespace

EVERYTHING = "nonMasqueradeCIDRs: [10.0.0.0/8]"
"""A document by which all packets are masqueraded, the node's own too."""
PODS_ONLY = f"{EVERYTHING}\npodCIDRs: [172.20.0.0/16, 'fd00:172:20::/48']"
"""The same for packets from pods; those of the node itself are none of it."""
TRACKING = """
table inet tracking {
    chain passing { type filter hook forward priority 0; ct state new; }
    chain own { type filter hook output priority 0; ct state new; }
}
"""


@dataclass(frozen=True)
class Plan:
    """The addresses of one family."""

    kind: socket.AddressFamily
    pods: str
    gateway: str
    node: str
    servers: str
    pod_network: str
    length: int

    def pod(self, number: int) -> str:
        """Return the address of a pod, counted from 0."""
        return self.pods.format(10 + number)

    def server(self, number: int) -> str:
        """Return an address of the world, counted from 0."""
        return self.servers.format(2 + number)


PLANS = {
    Family.IPV4: Plan(
        *(socket.AF_INET, "172.20.0.{}", "172.20.0.1", "192.0.2.1", "192.0.2.{}"),
        *("172.20.0.0/16", 24),
    ),
    Family.IPV6: Plan(
        *(socket.AF_INET6, "fd00:172:20::{}", "fd00:172:20::1", "2001:db8::1", "2001:db8::{}"),
        *("fd00:172:20::/48", 64),
    ),
}


@dataclass(frozen=True)
class Site:
    """The namespaces, joined and addressed; all pods are in one."""

    pod: Namespace
    node: Namespace
    world: Namespace

    def track(self) -> None:
        """Have the node track connections, as kube-proxy and firewalls do."""
        self.node.run(["nft", "-f", "-"], stdin=TRACKING)

    def pick_ports(self, first: int, last: int) -> None:
        """Let sockets of the node that name no port have one of these."""
        self.node.run(["sysctl", "-qw", f"net.ipv4.ip_local_port_range={first} {last}"])


@contextlib.contextmanager
def site(pods: int = 1, servers: int = 1, *, tracked: bool = False) -> Iterator[Site]:
    """Make a site, and remove it."""
    with Namespace("pod") as pod, Namespace("node") as node, Namespace("world") as world:
        pod.veth("eth0", node, "cali0")
        node.veth("eth0", world, "eth0")
        forward = ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"]
        node.run(["sysctl", "-qw", *forward])
        for family, plan in PLANS.items():
            dash = "-4" if family is Family.IPV4 else "-6"
            _batch(
                pod,
                dash,
                *(f"address add {plan.pod(n)}/{plan.length} dev eth0" for n in range(pods)),
                f"route add default via {plan.gateway}",
            )
            _batch(
                node,
                dash,
                f"address add {plan.gateway}/{plan.length} dev cali0",
                f"address add {plan.node}/{plan.length} dev eth0",
                f"route add default via {plan.server(0)}",
            )
            _batch(
                world,
                dash,
                *(f"address add {plan.server(n)}/{plan.length} dev eth0" for n in range(servers)),
                f"route add {plan.pod_network} via {plan.node}",
            )
        made = Site(pod, node, world)
        if tracked:
            made.track()
        yield made


def _batch(where: Namespace, dash: str, *lines: str) -> None:
    where.run(["ip", dash, "-batch", "-"], stdin="\n".join(lines))


def flags(ports: Iterable[tuple[int, int]] = (), *, random_fully: bool = True) -> Flags:
    """Return what the command line says: both families, and ports to choose from."""
    ranges = tuple(PortRange(first, last) for first, last in ports)
    return Flags(enable_ipv6=True, to_ports=ranges, random_fully=random_fully)


def bring(plane: BpfPlane, text: str, said: Flags | None = None) -> None:
    """Put a document in force, in the namespace in which the caller is."""
    config = parse_document(text.encode(), "cm", said or flags()).config
    outcomes = reconcile(plane, Intent(config, NO_FACTS.with_(LINKS, read_links())))
    errors = [str(one.error) for one in outcomes.values() if one.error]
    assert not errors, errors


@contextlib.contextmanager
def masquerading(
    where: Site, text: str, said: Flags | None = None, *, flows: int | None = None
) -> Iterator[BpfPlane]:
    """Have the programs masquerade on the node; the caller is there meanwhile.

    Args:
        where: the site.
        text: the document.
        said: the command line.
        flows: how many the table has room for.
    """
    with where.node.entered():
        plane = BpfPlane(Path(placement().pins), flows)
        try:
            bring(plane, text, said)
            yield plane
        finally:
            clean(plane, Family)
