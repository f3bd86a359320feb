"""A device without an address of its own: masquerading takes one of another device.

Each data plane takes the same one, which the world sees and answers to. What the kernel's own
MASQUERADE takes is the measure.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator, Mapping

import pytest

from ipmasq_agent.agent.intent import Intent
from ipmasq_agent.agent.reconcile import clean, reconcile
from ipmasq_agent.config.document import parse_document
from ipmasq_agent.config.model import Flags
from ipmasq_agent.planes import detect
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.facts import NO_FACTS
from tests.kernel.pins import placement
from tests.kernel.ways import look_up
from tests.netns import Namespace

BACKENDS = ("iptables-nft", "nftables", "bpf")
KIND = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
POD = {Family.IPV4: "172.20.0.10", Family.IPV6: "fd00:172:20::10"}
GATEWAY = {Family.IPV4: "172.20.0.1", Family.IPV6: "fd00:172:20::1"}
WORLD = {Family.IPV4: "203.0.113.1", Family.IPV6: "2001:db8:f::1"}
PORT = 9000


class Net:
    """A pod, its node, and a world that sends everything back to the node.

    Neither end of the way out has an address of its own but those of the link.
    """

    def __init__(self, pod: Namespace, node: Namespace, world: Namespace) -> None:
        self.pod, self.node, self.world = pod, node, world
        self._ports = iter(range(20_000, 21_000))
        pod.veth("eth0", node, "cali0")
        node.veth("eth0", world, "eth0")
        node.run(["sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"])
        pod.address("eth0", f"{POD[Family.IPV4]}/24", f"{POD[Family.IPV6]}/64")
        world.address("lo", f"{WORLD[Family.IPV4]}/32", f"{WORLD[Family.IPV6]}/128")
        for family, gateway in GATEWAY.items():
            node.address("cali0", f"{gateway}/{24 if family is Family.IPV4 else 64}")
            dash = "-4" if family is Family.IPV4 else "-6"
            pod.run(["ip", dash, "route", "add", "default", "via", gateway])
        for here, there in ((node, world), (world, node)):
            via = _of_link(there)
            here.run(["ip", "-6", "route", "add", "default", "via", via, "dev", "eth0"])
            here.run(["ip", "-4", "route", "add", "default", "via", "inet6", via, "dev", "eth0"])

    def source_of(self, family: Family) -> str:
        """Send something from the pod, answer it, and return the source that the world saw."""
        with contextlib.ExitStack() as stack:
            with self.world.entered():
                world = stack.enter_context(socket.socket(KIND[family], socket.SOCK_DGRAM))
            with self.pod.entered():
                pod = stack.enter_context(socket.socket(KIND[family], socket.SOCK_DGRAM))
            for one in (world, pod):
                one.settimeout(5)
            world.bind((WORLD[family], PORT))
            pod.bind(("", next(self._ports)))  # of no flow that connection tracking remembers
            pod.connect((WORLD[family], PORT))
            pod.send(b"question")
            _, sender = world.recvfrom(100)
            world.sendto(b"answer", sender)
            assert pod.recv(100) == b"answer"
        return str(sender[0])


def _of_link(ns: Namespace) -> str:
    shown = json.loads(ns.run(["ip", "-j", "-6", "addr", "show", "dev", "eth0"]).stdout)
    return next(str(one["local"]) for one in shown[0]["addr_info"] if one["scope"] == "link")


@pytest.fixture
def net() -> Iterator[Net]:
    with Namespace("pod") as pod, Namespace("node") as node, Namespace("world") as world:
        yield Net(pod, node, world)


def agree(net: Net, expected: Mapping[Family, str]) -> None:
    """Make sure that every data plane gives these sources, and that `explain` knows."""
    config = parse_document(b"nonMasqueradeCIDRs: []", "cm", Flags(enable_ipv6=True)).config
    seen = {}
    with net.node.entered():
        for name in BACKENDS:
            backend = detect.make(name, placement())
            with contextlib.closing(backend):
                outcomes = reconcile(backend, Intent(config, NO_FACTS))
                assert [one.error for one in outcomes.values() if one.error] == []
                seen[name] = {family: net.source_of(family) for family in expected}
                clean(backend, Family)
        seen["explain"] = {f: str(look_up(f, WORLD[f], POD[f]).address) for f in expected}
    assert all(found == expected for found in seen.values()), seen


def test_the_loopback_comes_first(net: Net) -> None:
    """As with kube-vip, or an address that BGP announces."""
    net.node.address("lo", "198.51.100.9/32", "2001:db8:9::9/128")
    agree(net, {Family.IPV4: "198.51.100.9", Family.IPV6: "2001:db8:9::9"})


def test_without_one_on_the_loopback_it_is_that_of_the_next_device(net: Net) -> None:
    net.node.run(["ip", "addr", "add", "198.51.100.9/32", "dev", "lo", "scope", "link"])
    net.node.run(["ip", "link", "add", "late", "type", "bridge"])
    net.node.address("late", "198.51.100.10/32", "fd00:9::9/128")
    agree(net, GATEWAY)


def test_an_address_of_the_site_is_none_to_masquerade_with(net: Net) -> None:
    net.node.run(["ip", "addr", "add", "198.51.100.9/24", "dev", "eth0", "scope", "site"])
    agree(net, {Family.IPV4: GATEWAY[Family.IPV4]})


def test_the_devices_own_comes_before_others_unless_in_ipv6_it_is_deprecated(net: Net) -> None:
    net.node.address("lo", "198.51.100.9/32", "2001:db8:9::9/128")
    for address in ("198.51.100.1/24", "2001:db8:9::1/64"):
        net.node.address("eth0", address)
    agree(net, {Family.IPV4: "198.51.100.1", Family.IPV6: "2001:db8:9::1"})
    for address in ("198.51.100.1/24", "2001:db8:9::1/64"):
        words = ["ip", "addr", "change", address, "dev", "eth0", "preferred_lft", "0"]
        net.node.run(words)
    agree(net, {Family.IPV4: "198.51.100.1", Family.IPV6: "2001:db8:9::9"})


def test_what_is_good_in_a_site_alone_gives_way_in_ipv6(net: Net) -> None:
    """To what is good everywhere, though it came first; the newest is listed first."""
    net.node.address("eth0", "2001:db8:9::1/64", "fd00:9::1/64")
    agree(net, {Family.IPV6: "2001:db8:9::1"})


def test_an_address_that_may_be_anothers_is_not_taken_yet(net: Net) -> None:
    net.node.address("lo", "2001:db8:9::9/128")
    net.node.run(["sysctl", "-qw", "net.ipv6.conf.eth0.accept_dad=1"])
    net.node.run(["sysctl", "-qw", "net.ipv6.conf.eth0.dad_transmits=1000"])
    net.node.run(["ip", "addr", "add", "2001:db8:9::1/64", "dev", "eth0"])
    shown = net.node.run(["ip", "-6", "addr", "show", "dev", "eth0"]).stdout
    assert "tentative" in shown
    agree(net, {Family.IPV6: "2001:db8:9::9"})
