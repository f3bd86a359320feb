"""Very many flows of pods beside others that leave with the node's address: each gets its own."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from ipmasq_agent.policy.addresses import Family
from tests.kernel.attacks.site import PLANS, PODS_ONLY, Plan, Site, flags, masquerading, site
from tests.kernel.attacks.talk import PORT, Asker, Outcome, Server, ask, askers
from tests.netns import Namespace
from tests.waiting import wait_until

FAMILIES = pytest.mark.parametrize("family", list(Family), ids=lambda family: family.value)
KINDS = pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM], ids=["udp", "tcp"])
PODS, SERVERS, ROUNDS = 20, 3, 3
# So few ports that those of pods and of the node must meet: a short test is as sure as a long one.
FEW = (40_000, 40_699)


@pytest.fixture(params=[True, False], ids=["conntrack", "no conntrack"])
def crowded(request: pytest.FixtureRequest) -> Iterator[Site]:
    with site(PODS, SERVERS, tracked=request.param) as made:
        yield made


def named(
    label: str, count: int, addresses: list[str], servers: list[str]
) -> list[tuple[str, str, str]]:
    """Return names, their addresses and their servers, in turn."""
    return [
        (f"{label}{n}", addresses[n % len(addresses)], servers[n // len(addresses) % len(servers)])
        for n in range(count)
    ]


def mixed(*groups: list[Asker]) -> list[Asker]:
    """Return all, those of each group spread over the whole."""
    placed = [(n / len(group), one) for group in groups for n, one in enumerate(group)]
    return [one for _, one in sorted(placed, key=lambda pair: (pair[0], pair[1].name))]


def answered(
    where: Site, plan: Plan, kind: socket.SocketKind, *, flows: int, own: int, servers: int
) -> None:
    """Make sure that all of pods and node are answered, they alone, and with the node's address."""
    there = [plan.server(n) for n in range(servers)]
    pods = named("pod", flows, [plan.pod(n) for n in range(PODS)], there)
    hosts = named("node", own, [plan.node], there)
    half = len(pods) // 2
    with (
        Server(where.world, there) as server,
        askers(where.pod, plan, kind, pods[:half]) as early,
        askers(where.node, plan, kind, hosts) as theirs,
        askers(where.pod, plan, kind, pods[half:]) as late,
    ):
        all_right(server, plan, mixed(early, theirs, late))


def all_right(server: Server, plan: Plan, everybody: list[Asker]) -> None:
    assert ask(everybody, ROUNDS) == Outcome()
    assert server.hosts(one.name for one in everybody) == {plan.node: len(everybody)}
    assert server.shared() == []


@FAMILIES
@KINDS
def test_pods_and_node_ask_the_same_servers(
    crowded: Site, family: Family, kind: socket.SocketKind
) -> None:
    crowded.pick_ports(*FEW)
    with masquerading(crowded, PODS_ONLY, flags([FEW])):
        answered(crowded, PLANS[family], kind, flows=500, own=150, servers=1)


@pytest.mark.long
@FAMILIES
@KINDS
def test_thousands_of_pods_and_node_ask_the_same_servers(
    crowded: Site, family: Family, kind: socket.SocketKind
) -> None:
    crowded.pick_ports(1024, 65535)
    with masquerading(crowded, PODS_ONLY):
        answered(crowded, PLANS[family], kind, flows=5000, own=1500, servers=SERVERS)


@FAMILIES
@KINDS
def test_the_node_wants_the_port_that_a_pod_has(family: Family, kind: socket.SocketKind) -> None:
    plan = PLANS[family]
    pod_ends = [("pod", plan.pod(0), plan.server(0))]
    node_ends = [("node", plan.node, plan.server(0))]
    with (
        site() as where,
        masquerading(where, PODS_ONLY, flags([(40_000, 40_001)])),
        Server(where.world, [plan.server(0)]) as server,
        askers(where.pod, plan, kind, pod_ends) as pod,
    ):
        assert ask(pod) == Outcome()
        ((_, taken, _),) = server.seen["pod"]
        with askers(where.node, plan, kind, node_ends, own_port=taken) as host:
            all_right(server, plan, [*host, *pod])


@FAMILIES
@KINDS
def test_the_node_wants_the_only_port_and_a_pod_has_it(
    family: Family, kind: socket.SocketKind
) -> None:
    plan = PLANS[family]
    with (
        site() as where,
        masquerading(where, PODS_ONLY, flags([(40_000, 40_000)])) as plane,
        Server(where.world, [plan.server(0)]) as server,
        askers(where.pod, plan, kind, [("pod", plan.pod(0), plan.server(0))]) as pod,
        socket.socket(plan.kind, kind) as host,
    ):
        assert ask(pod) == Outcome()
        host.bind((plan.node, 40_000))
        host.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            host.connect((plan.server(0), PORT))
        if kind == socket.SOCK_DGRAM:
            host.send(b"node")
        wait_until(lambda: plane.counters()[family, "out_dropped_ports"], "it is refused")
        assert ask(pod, ROUNDS) == Outcome()
        assert server.seen == {"pod": {(plan.node, 40_000, 0)}}
        with pytest.raises((BlockingIOError, ConnectionError)):
            host.recv(1)
        pod[0].socket.close()


@dataclass(frozen=True)
class Other:
    """Others whose packets the node gives its address: by rules of netfilter, before ours.

    Containers as Docker has them, and clients of a service as kube-proxy has them: what they
    send to the service goes to the first server, marked, and is masqueraded for its mark.
    """

    containers: str
    service: str


OTHERS = {
    Family.IPV4: Other("172.17.0.{}", "203.0.113.1"),
    Family.IPV6: Other("fd00:172:17::{}", "2001:db8:113::1"),
}
NETFILTER = """
table {word} others {{
    chain services {{
        type nat hook prerouting priority dstnat
        {word} daddr {service} meta mark set meta mark or 0x4000 dnat to {server}
    }}
    chain masqueraded {{
        type nat hook postrouting priority srcnat
        oifname != "eth0" return
        meta mark and 0x4000 == 0x4000 {protocol} masquerade to :{ports} fully-random
        {word} saddr {containers} {protocol} masquerade to :{ports}
    }}
}}
"""


@contextlib.contextmanager
def containers(where: Site, family: Family, ports: tuple[int, int]) -> Iterator[Namespace]:
    """Have containers on the node."""
    plan, other = PLANS[family], OTHERS[family]
    dash = "-4" if family is Family.IPV4 else "-6"
    with Namespace("containers") as inside:
        inside.veth("eth0", where.node, "docker0")
        inside.address("eth0", f"{other.containers.format(10)}/{plan.length}")
        where.node.address("docker0", f"{other.containers.format(1)}/{plan.length}")
        inside.run(["ip", dash, "route", "add", "default", "via", other.containers.format(1)])
        rules = NETFILTER.format(
            word="ip" if family is Family.IPV4 else "ip6",
            service=other.service,
            server=plan.server(0),
            containers=f"{other.containers.format(0)}/{plan.length}",
            ports=f"{ports[0]}-{ports[1]}",
            protocol="meta l4proto { tcp, udp }",
        )
        where.node.run(["nft", "-f", "-"], stdin=rules)
        yield inside


def beside_others(
    family: Family, kind: socket.SocketKind, ports: tuple[int, int], flows: int, each: int
) -> None:
    """Make sure that pods, the node, containers and a service's clients are all answered."""
    plan, other = PLANS[family], OTHERS[family]
    to, via = [plan.server(0)], [other.service]
    inside = [other.containers.format(10)]
    with contextlib.ExitStack() as stack:
        where = stack.enter_context(site(PODS))
        where.pick_ports(*ports)
        others = stack.enter_context(containers(where, family, ports))
        stack.enter_context(masquerading(where, PODS_ONLY, flags([ports])))
        server = stack.enter_context(Server(where.world, [plan.server(0)]))
        everybody = [
            stack.enter_context(askers(of, plan, kind, ends))
            for of, ends in (
                (where.pod, named("early", flows // 2, [plan.pod(n) for n in range(PODS)], to)),
                (where.node, named("node", each, [plan.node], to)),
                (others, named("container", each, inside, to)),
                (others, named("client", each, inside, via)),
                (where.pod, named("late", flows // 2, [plan.pod(n) for n in range(PODS)], to)),
            )
        ]
        all_right(server, plan, mixed(*everybody))


@FAMILIES
@KINDS
def test_pods_ask_beside_others_that_the_node_masquerades(
    family: Family, kind: socket.SocketKind
) -> None:
    beside_others(family, kind, FEW, flows=340, each=100)


@pytest.mark.long
@FAMILIES
@KINDS
def test_thousands_of_pods_ask_beside_others_that_the_node_masquerades(
    family: Family, kind: socket.SocketKind
) -> None:
    beside_others(family, kind, (1024, 65535), flows=5000, each=500)
