"""A source address that the node has, has elsewhere, or does not have: on packets.

The world answers whom it can reach. A connection is made where replies come back, and what
the agent says of the address is what became of the connection.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ipmasq_agent.host.routes import Delivery, delivery
from ipmasq_agent.policy.addresses import Family, parse_address
from tests.kernel.running import Running
from tests.kernel.test_bpf_survival import KIND, NODE, Connection, Net
from tests.netns import Namespace
from tests.waiting import wait_until

NEAR = {Family.IPV4: "192.0.2.99", Family.IPV6: "2001:db8::99"}
FAR = {Family.IPV4: "203.0.113.5", Family.IPV6: "2001:db8:f::5"}
BACKENDS = ("iptables-nft", "iptables-legacy", "ipset", "nftables", "bpf")


@pytest.fixture
def net() -> Iterator[Net]:
    with Namespace("pod") as pod, Namespace("node") as node, Namespace("world") as world:
        made = Net(pod, node, world)
        with made.echoing(), node.entered():
            yield made


@pytest.fixture
def run(net: Net, tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Start an agent on the node; it ends with the test, and its rules with the node."""
    started: list[Running] = []

    def start(addresses: dict[Family, str], backend: str) -> Running:
        four, six = addresses[Family.IPV4], addresses[Family.IPV6]
        document = tmp_path / "config"
        document.write_text(
            "nonMasqueradeCIDRs: []\nresyncInterval: 1h\n"
            f"snatAddress: {{ipv4: {four}, ipv6: '{six}'}}\n"
        )
        words = ("run", f"--config={document}", f"--backend={backend}", "--enable-ipv6")
        started.append(Running(tmp_path / "log", *words))
        return started[-1]

    yield start
    for agent in started:
        agent.stop()


def ask(family: Family, text: str) -> Delivery:
    found, value = parse_address(text)
    assert found is family
    return delivery(family, value)


def give(ns: Namespace, family: Family, text: str, device: str) -> None:
    ns.address(device, f"{text}/{family.bits}")


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_address_that_nobody_answers_for_is_told_until_the_node_has_it(
    net: Net, run: Callable[..., Running], backend: str
) -> None:
    agent = run(NEAR, backend)
    wait_until(lambda: agent.status().get("unanswered", []) != [], "it is told")
    assert not agent.ready()
    told = agent.get("/readyz")[1]
    for family in Family:
        assert f"nobody answers for snatAddress {NEAR[family]}" in told
        with pytest.raises(OSError, match=r"timed out|unreachable|No route"):
            Connection(net, family, patience=1.0)
    for family in Family:
        give(net.node, family, NEAR[family], "eth0")
    wait_until(agent.ready, "ready, at the kernel's word")
    for family in Family:
        assert Connection(net, family).seen == NEAR[family]
    for family in Family:
        net.node.run(["ip", "addr", "del", f"{NEAR[family]}/{family.bits}", "dev", "eth0"])
    wait_until(lambda: not agent.ready(), "told again")


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_address_that_routers_send_here_works_and_is_a_warning(
    net: Net, run: Callable[..., Running], backend: str
) -> None:
    for family in Family:
        dash = "-4" if family is Family.IPV4 else "-6"
        net.world.run(["ip", dash, "route", "add", FAR[family], "via", NODE[family]])
    agent = run(FAR, backend)
    agent.wait_ready()
    for family in Family:
        assert Connection(net, family).seen == FAR[family]
        assert any(FAR[family] in line for line in agent.status()["advice"])
        net.node.run(["ip", "route", "add", "local", FAR[family], "dev", "lo"])
    for family in Family:
        assert ask(family, FAR[family]) is Delivery.HERE


@pytest.mark.parametrize("family", list(Family), ids=lambda family: family.value)
def test_an_address_on_the_loopback_is_answered_for_as_the_kernel_does(
    net: Net, family: Family
) -> None:
    """It is in IPv4, unless arp_ignore says otherwise; it is not in IPv6."""
    give(net.node, family, NEAR[family], "lo")
    assert ask(family, NEAR[family]) is _found(net, family)
    if family is Family.IPV4:
        assert ask(family, NEAR[family]) is Delivery.HERE
        net.node.run(["sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=1"])
    assert ask(family, NEAR[family]) is _found(net, family) is Delivery.NOWHERE


@pytest.mark.parametrize("family", list(Family), ids=lambda family: family.value)
def test_a_proxy_is_an_answer_where_the_kernel_gives_it(net: Net, family: Family) -> None:
    """In IPv4 it gives it only to those who ask on another device than the route's."""
    assert ask(family, NEAR[family]) is _found(net, family) is Delivery.NOWHERE
    net.node.run(["sysctl", "-qw", "net.ipv6.conf.eth0.proxy_ndp=1"])
    net.node.run(["ip", "neigh", "add", "proxy", NEAR[family], "dev", "eth0"])
    if family is Family.IPV4:
        assert ask(family, NEAR[family]) is _found(net, family) is Delivery.NOWHERE
        net.node.run(["ip", "route", "add", NEAR[family], "dev", "cali0"])
    assert ask(family, NEAR[family]) is _found(net, family) is Delivery.HERE


def test_other_kinds_of_routes(net: Net) -> None:
    family = Family.IPV4
    assert ask(family, NODE[family]) is Delivery.HERE
    assert ask(family, "192.0.2.255") is Delivery.NOWHERE  # broadcast
    assert ask(family, "198.51.100.1") is Delivery.BY_ROUTERS  # by the default route
    net.node.run(["ip", "route", "add", "blackhole", "198.51.100.1"])
    assert ask(family, "198.51.100.1") is Delivery.BY_ROUTERS  # as announced by BGP
    net.node.run(["ip", "route", "del", "default"])
    assert ask(family, "198.51.100.2") is Delivery.BY_ROUTERS


def _found(net: Net, family: Family) -> Delivery:
    """Return what a neighbour finds that looks for the address."""
    net.world.run(["ip", "neigh", "flush", "all"])
    with net.world.entered(), socket.socket(KIND[family], socket.SOCK_DGRAM) as out:
        out.sendto(b"x", (NEAR[family], 9))

    def shown() -> str:
        return net.world.run(["ip", "neigh", "show", NEAR[family], "dev", "eth0"]).stdout

    wait_until(lambda: "lladdr" in shown() or "FAILED" in shown(), "the neighbour is asked")
    return Delivery.HERE if "lladdr" in shown() else Delivery.NOWHERE
