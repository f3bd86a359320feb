"""A device's source changes under its flows: they go on, or begin anew, as with MASQUERADE.

iptables is the measure. A flow goes on with its address for as long as the node has that and
the flow leaves through the same device; otherwise what comes next of it begins a new one.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipmasq_agent.agent.reconcile import clean
from ipmasq_agent.config.model import Flags
from ipmasq_agent.planes import detect
from ipmasq_agent.planes.bpf.plane import BpfPlane
from ipmasq_agent.planes.plane import AnyPlane
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.model import PortRange
from tests.kernel.agent import status_of
from tests.kernel.crossing import PLANS, Crossing, arrivals, crossing
from tests.kernel.pins import placement
from tests.kernel.running import Running
from tests.kernel.test_bpf_survival import MASQUERADING, bring
from tests.netns import Namespace
from tests.waiting import wait_until

BACKENDS = ["iptables-nft", "bpf"]
WORLD = {Family.IPV4: "203.0.113.7", Family.IPV6: "2001:db8:f::7"}
SECOND = {Family.IPV4: "198.18.0.1", Family.IPV6: "2001:db8:3::1"}
SECOND_HOP = {Family.IPV4: "198.18.0.254", Family.IPV6: "2001:db8:3::254"}
PORT = 7000
Place = tuple[str, int]


class Udp:
    """A flow of UDP, from a pod or from the node."""

    def __init__(self, net: Net, host: Namespace) -> None:
        self._world = net.world
        with host.entered():
            self.socket = net.keep(socket.socket(net.kind, socket.SOCK_DGRAM))
        self.socket.settimeout(5)
        self.socket.connect((WORLD[net.family], PORT))

    def exchange(self) -> Place:
        """Send something, get the answer, and return whence the world saw it come."""
        self.socket.send(b"question")
        _, sender = self._world.recvfrom(100)
        self._world.sendto(b"answer", sender)
        assert self.socket.recv(100) == b"answer"
        return sender[0], sender[1]


class Tcp:
    """A connection, from a pod or from the node."""

    def __init__(self, net: Net, host: Namespace, source: str = "") -> None:
        with host.entered():
            self.socket = net.keep(socket.socket(net.kind, socket.SOCK_STREAM))
        self.socket.settimeout(5)
        self.socket.bind((source, 0))
        self.socket.connect((WORLD[net.family], PORT))
        accepted, sender = net.server.accept()
        self._accepted = net.keep(accepted)
        self._accepted.settimeout(5)
        self._sender: Place = sender[0], sender[1]

    def exchange(self) -> Place:
        """Send something there and back, and return whence the world saw it come at first."""
        for one, other in ((self.socket, self._accepted), (self._accepted, self.socket)):
            one.sendall(b"x")
            assert other.recv(1) == b"x"
        return self._sender

    def insist(self) -> None:
        """Send something, and wait for whatever comes."""
        self.socket.sendall(b"x")
        self.socket.recv(1)


class Net:
    """A node with two ways out, in one family, and a world that answers."""

    def __init__(self, lab: Crossing, family: Family, stack: contextlib.ExitStack) -> None:
        self.lab, self.family, self._stack = lab, family, stack
        self.plan = PLANS[family]
        self.kind = self.plan.kind
        self.first, self.other = self.plan.eth
        # With every address its own the world would answer itself.
        self.ip(lab.world, "route", "del", "local", self.plan.everything, "dev", "lo")
        lab.world.address("lo", f"{WORLD[family]}/{family.bits}")
        lab.world.address("node0", f"{SECOND_HOP[family]}/{self.plan.length}")
        with lab.world.entered():
            self.world = self.keep(socket.socket(self.kind, socket.SOCK_DGRAM))
            self.server = self.keep(socket.create_server((WORLD[family], PORT), family=self.kind))
        self.world.bind((WORLD[family], PORT))
        for one in (self.world, self.server):
            one.settimeout(5)

    def keep(self, made: socket.socket) -> socket.socket:
        return self._stack.enter_context(made)

    def flows(self, host: Namespace) -> list[Udp | Tcp]:
        return [Udp(self, host), Tcp(self, host)]

    def ip(self, host: Namespace, *words: str) -> None:
        host.run(["ip", "-4" if self.family is Family.IPV4 else "-6", *words])

    def default_route(self, via: str) -> None:
        self.ip(self.lab.node, "route", "replace", "default", "via", via)

    def give_second_address(self) -> None:
        """Give eth0 another address, and have the default route lead through its subnet."""
        self.lab.node.address("eth0", f"{SECOND[self.family]}/{self.plan.length}")
        self.default_route(SECOND_HOP[self.family])

    def prefer_second(self, preferred: bool) -> None:
        """Have the second address of eth0 be the source that it gives, or the first one."""
        if self.family is Family.IPV4:
            self.default_route(SECOND_HOP[self.family] if preferred else self.plan.next_hops[0])
            return
        words = f"{SECOND[self.family]}/{self.plan.length}", "dev", "eth0"
        life = "forever" if preferred else "0"
        self.ip(self.lab.node, "addr", "change", *words, "preferred_lft", life)

    def take_first_address(self) -> None:
        self.ip(self.lab.node, "addr", "del", f"{self.first}/{self.plan.length}", "dev", "eth0")


@pytest.fixture(params=list(Family), ids=lambda family: family.value)
def net(request: pytest.FixtureRequest) -> Iterator[Net]:
    with crossing() as lab, contextlib.ExitStack() as stack:
        made = Net(lab, request.param, stack)
        with lab.node.entered():
            yield made


@pytest.fixture(params=BACKENDS)
def plane(request: pytest.FixtureRequest, net: Net) -> Iterator[AnyPlane]:
    made = detect.make(request.param, placement())
    with contextlib.closing(made):
        bring(made, MASQUERADING)
        yield made
        clean(made, Family)


def begins_anew(flow: Udp | Tcp, source: str) -> None:
    """Make sure that a flow has left its address."""
    if isinstance(flow, Udp):
        # The kernel forgets what it masqueraded with an address that has gone in the background.
        wait_until(lambda: flow.exchange()[0] == source, "the flow has another address")
        return
    with pytest.raises(ConnectionResetError):  # the world knows none of that address
        flow.insist()


def test_flows_go_on_where_a_device_gets_another_source_and_leave_one_that_goes(
    net: Net, plane: AnyPlane
) -> None:
    pod, node = net.lab.pods[0], net.lab.node
    flows = [*net.flows(pod), *net.flows(node)]
    before = [flow.exchange() for flow in flows]
    assert {source for source, _ in before} == {net.first}

    net.give_second_address()
    bring(plane, MASQUERADING)
    assert [flow.exchange() for flow in flows] == before
    later = net.flows(pod)
    assert {flow.exchange()[0] for flow in later} == {SECOND[net.family]}
    assert [flow.exchange() for flow in flows] == before

    net.take_first_address()
    bring(plane, MASQUERADING)
    for flow in flows[:2]:
        begins_anew(flow, SECOND[net.family])
    assert {flow.exchange()[0] for flow in later} == {SECOND[net.family]}


def test_an_agent_does_so_at_the_kernels_word(net: Net, tmp_path: Path) -> None:
    document = tmp_path / "config"
    document.write_text(f"{MASQUERADING}\nresyncInterval: 1h\n")
    words = f"--config={document}", "--backend=bpf", "--enable-ipv6"
    agent = Running(tmp_path / "log", "run", *words)

    def in_step() -> bool:
        return status_of("diff", *words) == 0

    try:
        agent.wait_ready()
        flows = net.flows(net.lab.pods[0])
        before = [flow.exchange() for flow in flows]
        net.give_second_address()
        wait_until(in_step, "the other source is told")
        assert [flow.exchange() for flow in flows] == before
        assert Udp(net, net.lab.pods[0]).exchange()[0] == SECOND[net.family]
        net.take_first_address()
        wait_until(in_step, "the address is forgotten")
        for flow in flows:
            begins_anew(flow, SECOND[net.family])
    finally:
        agent.stop()


@pytest.mark.parametrize("moved", [False, True])
def test_flows_that_leave_through_another_device_begin_anew(
    net: Net, plane: AnyPlane, moved: bool
) -> None:
    flows = net.flows(net.lab.pods[0])
    before = [flow.exchange() for flow in flows]
    if moved:
        net.give_second_address()
        bring(plane, MASQUERADING)
        assert [flow.exchange() for flow in flows] == before
    net.default_route(net.plan.next_hops[1])
    if not isinstance(plane, BpfPlane):
        # nf_nat lets the packet go that tells it of another device.
        flows[0].socket.send(b"lost")
    for flow in flows:
        begins_anew(flow, net.other)


def test_flows_keep_their_port_when_the_policy_gives_others(net: Net) -> None:
    choices = [
        Flags(enable_ipv6=True),
        Flags(enable_ipv6=True, random_fully=False),
        Flags(enable_ipv6=True, to_ports=(PortRange(40_000, 40_099),)),
        Flags(enable_ipv6=True, to_ports=(PortRange(50_000, 50_009), PortRange(50_020, 50_119))),
        Flags(enable_ipv6=True),
    ]
    plane = detect.make("bpf", placement())
    with contextlib.closing(plane):
        flows: list[Udp | Tcp] = []
        before: list[Place] = []
        for flags in choices:
            bring(plane, MASQUERADING, flags)
            assert [flow.exchange() for flow in flows] == before
            for flow in (*net.flows(net.lab.pods[0]), *net.flows(net.lab.node)):
                flows.append(flow)
                before.append(flow.exchange())
        assert {port // 10_000 for _, port in before} >= {4, 5}
        clean(plane, Family)


def test_connections_of_the_node_from_before_go_on_whichever_its_address_is(net: Net) -> None:
    net.lab.node.address("eth0", f"{SECOND[net.family]}/{net.plan.length}")
    addresses = [net.first, SECOND[net.family]]
    flows = [Tcp(net, net.lab.node, source) for source in addresses]
    assert [flow.exchange()[0] for flow in flows] == addresses
    plane = detect.make("bpf", placement())
    with contextlib.closing(plane):
        bring(plane, MASQUERADING)
        assert [flow.exchange()[0] for flow in flows] == addresses
        clean(plane, Family)


CHANGES, MOST_FLOWS, PAUSE = 6, 500, 0.003


def test_flows_that_begin_while_a_source_changes_go_on_too(net: Net) -> None:
    """Each sends once while changes go on, and once more when they are over."""
    flows: dict[int, str] = {}
    pod, ended = net.lab.pods[0], threading.Event()

    def begin() -> None:
        while len(flows) < MOST_FLOWS and not ended.wait(PAUSE):
            number = len(flows)
            flows[number] = WORLD[net.family]
            net.lab.send(net.family, pod, {number: flows[number]})

    plane = detect.make("bpf", placement())
    with contextlib.closing(plane), net.lab.listening(net.family) as listener:
        bring(plane, MASQUERADING)
        net.lab.node.address("eth0", f"{SECOND[net.family]}/{net.plan.length}")
        beginning = threading.Thread(target=begin)
        beginning.start()
        try:
            for number in range(CHANGES):
                net.prefer_second(number % 2 == 0)
                bring(plane, MASQUERADING)
        finally:
            ended.set()
            beginning.join()
        before = arrivals(listener, len(flows))
        assert len(before) == len(flows) > 50
        assert {place.source for _, place in before.values()} == {net.first, SECOND[net.family]}
        net.lab.send(net.family, pod, flows)
        assert arrivals(listener, len(flows)) == before
        clean(plane, Family)
