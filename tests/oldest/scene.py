"""A node whose agent masquerades with the eBPF programs, on whatever kernel runs this.

It is meant for the guest of ``test_oldest``, which has Python, ``ip`` and ``tc`` alone.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ipmasq_agent.bpf.maps import open_pinned
from ipmasq_agent.planes.bpf.pins import PinDirectory
from ipmasq_agent.planes.bpf.plane import BpfPlane
from ipmasq_agent.policy.addresses import Family
from tests.kernel.pins import PINS, bpf_file_system
from tests.netns import Namespace

PORT = 7777
POD = {Family.IPV4: "172.20.0.10", Family.IPV6: "fd00:172:20::10"}
GATEWAY = {Family.IPV4: "172.20.0.1", Family.IPV6: "fd00:172:20::1"}
NODE = {Family.IPV4: "192.0.2.1", Family.IPV6: "2001:db8:1::1"}
NEXT_HOP = {Family.IPV4: "192.0.2.254", Family.IPV6: "2001:db8:1::254"}
MASQUERADED = {Family.IPV4: "203.0.113.5", Family.IPV6: "2001:db8:5::5"}
KEPT = {Family.IPV4: "10.9.8.7", Family.IPV6: "fd10:9::7"}
LENGTH = {Family.IPV4: 24, Family.IPV6: 64}
KIND = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
DOCUMENT = {"nonMasqueradeCIDRs": ["10.0.0.0/8", "fd10::/16"]}
WAYS = ("ingress", "egress")
ROUNDS = 3
PATIENCE = 120.0


class Net:
    """A pod, its node and the world; the agent is run on the node."""

    def __init__(self, pod: Namespace, node: Namespace, world: Namespace) -> None:
        self.pod, self.node, self.world = pod, node, world
        pod.veth("eth0", node, "pod0")
        node.veth("eth0", world, "eth0")
        node.run(["sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"])
        for family in Family:
            length = LENGTH[family]
            pod.address("eth0", f"{POD[family]}/{length}")
            node.address("pod0", f"{GATEWAY[family]}/{length}")
            node.address("eth0", f"{NODE[family]}/{length}")
            world.address("eth0", f"{NEXT_HOP[family]}/{length}")
            world.address("lo", MASQUERADED[family], KEPT[family])
            pod.run(["ip", "route", "add", "default", "via", GATEWAY[family]])
            node.run(["ip", "route", "add", "default", "via", NEXT_HOP[family]])
            world.run(["ip", "route", "add", POD[family], "via", NODE[family]])

    def verb(self, *words: str) -> str:
        """Run the agent, and return what it printed."""
        argv = [sys.executable, "-m", "ipmasq_agent", *words, "--backend", "bpf"]
        with self.node.entered():
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def filters(self) -> str:
        """Return what tc(8) shows of both directions of the device that leads out."""
        argv = ["tc", "filter", "show", "dev", "eth0"]
        return "".join(self.node.run([*argv, way]).stdout for way in WAYS)


def exchange(net: Net, family: Family, protocol: str, destination: str) -> str:
    """Let a pod send to a destination and get the same back; return as whom it is seen."""
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with net.world.entered():
        there = socket.socket(KIND[family], kind)
    with net.pod.entered():
        pod = socket.socket(KIND[family], kind)
    with there, pod:
        for one in (there, pod):
            one.settimeout(PATIENCE)
        there.bind((destination, PORT))
        if protocol == "tcp":
            there.listen()
        pod.connect((destination, PORT))
        if protocol == "udp":
            pod.send(b"first")
            _, seen = there.recvfrom(100)
            there.connect(seen)
            world = there
        else:
            world, seen = there.accept()
        with world:
            world.settimeout(PATIENCE)
            for number in range(ROUNDS):
                sent = bytes([number]) * 1000
                pod.sendall(sent)
                assert world.recv(2000) == sent
                world.sendall(sent[::-1])
                assert pod.recv(2000) == sent
    return str(seen[0])


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Net]:
    """A node on which `apply` has been, for both families."""
    document = tmp_path_factory.mktemp("document") / "config"
    document.write_text(json.dumps(DOCUMENT))
    with (
        Namespace("pod") as pod,
        Namespace("node") as node,
        Namespace("world") as world,
        bpf_file_system() as pins,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv(PINS, str(pins / "pins"))
        patch.setenv("IPMASQ_CONFIG", str(document))
        patch.setenv("IPMASQ_ENABLE_IPV6", "true")
        made = Net(pod, node, world)
        made.verb("apply")
        yield made


def has_tcx() -> bool:
    """Whether the agent attaches programs by links of tcx here: Linux 6.6 or newer."""
    major, minor, *_ = os.uname().release.split(".")
    return (int(major), int(minor)) >= (6, 6)


@pytest.mark.skipif(has_tcx(), reason="programs are not attached as filters")
def test_the_programs_are_filters_of_clsact(net: Net) -> None:
    assert net.filters().count("direct-action") == len(WAYS)


@pytest.mark.parametrize("protocol", ["udp", "tcp"])
@pytest.mark.parametrize("family", Family)
def test_a_flow_is_translated_both_ways(net: Net, family: Family, protocol: str) -> None:
    assert exchange(net, family, protocol, MASQUERADED[family]) == NODE[family]


@pytest.mark.parametrize("protocol", ["udp", "tcp"])
@pytest.mark.parametrize("family", Family)
def test_a_flow_keeps_its_source_both_ways(net: Net, family: Family, protocol: str) -> None:
    assert exchange(net, family, protocol, KEPT[family]) == POD[family]


def test_a_prefix_comes_and_goes_beside_others_of_its_block(net: Net) -> None:
    """The second one is written into blocks that packets are decided by already."""
    document = Path(os.environ["IPMASQ_CONFIG"])
    before, ours = DOCUMENT["nonMasqueradeCIDRs"], MASQUERADED[Family.IPV4]
    for more, seen in (
        (["203.0.113.64/26"], NODE),
        (["203.0.113.64/26", f"{ours}/32"], POD),
        (["203.0.113.64/26", "203.0.113.6/32"], NODE),
        ([], NODE),
    ):
        document.write_text(json.dumps({"nonMasqueradeCIDRs": [*before, *more]}))
        net.verb("apply")
        assert exchange(net, Family.IPV4, "udp", ours) == seen[Family.IPV4]
        net.verb("explain", ours)  # it would fail where what decides said otherwise


def test_flows_are_told_as_they_begin(net: Net) -> None:
    plane = BpfPlane(Path(os.environ[PINS]))
    with net.node.entered(), closing(plane.beginnings()) as news:
        for family in Family:
            for destination in (MASQUERADED[family], KEPT[family]):
                seen = exchange(net, family, "udp", destination)
                ((_, flow),) = news.read(PATIENCE)
                assert flow.family is family
                ends = flow.source, flow.destination, flow.left_as
                addresses = [family.show(end.address) for end in ends]
                assert addresses == [POD[family], destination, seen]
                assert flow.destination.port == PORT
        assert news.missed == 0


def test_flows_that_have_expired_are_collected(net: Net) -> None:
    pins = Path(os.environ[PINS])
    flows = open_pinned(PinDirectory(pins).objects / "flows")
    assert flows is not None
    with net.node.entered(), flows:
        plane = BpfPlane(pins)
        plane.sweep()
        held = dict(flows.entries())
        assert sum(plane.usage().tables[0].held.values()) == len(held) > 0
        for key, value in held.items():
            flows.update(key, value[:-8] + struct.pack("=Q", 1))
        plane.sweep()
        assert dict(flows.entries()) == {}


def test_the_verbs_read_the_policy_back_and_take_it_away(net: Net) -> None:
    assert net.verb("diff") == "nothing would change (bpf)\n"
    shown = net.verb("list")
    assert all(prefix in shown for prefix in DOCUMENT["nonMasqueradeCIDRs"])
    net.verb("cleanup")
    assert net.filters() == ""
