"""Connections of the node itself from before the eBPF programs: they go on, with their ports."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from ipmasq_agent.agent.reconcile import clean
from ipmasq_agent.config.model import Flags
from ipmasq_agent.errors import KernelReadError
from ipmasq_agent.netlink.sockets import ConnectedSocket, list_connected
from ipmasq_agent.planes.bpf import own_flows
from ipmasq_agent.policy.addresses import Family, parse_address
from ipmasq_agent.policy.model import PortRange
from tests.kernel.test_bpf_survival import (
    KIND,
    MASQUERADING,
    NODE,
    PORT,
    WORLD,
    Connection,
    Net,
    bring,
    made,
)
from tests.netns import Namespace

TAKEN = 40000
PROTOCOLS = {
    socket.SOCK_STREAM: socket.IPPROTO_TCP,
    socket.SOCK_DGRAM: socket.IPPROTO_UDP,
}


@pytest.fixture
def net() -> Iterator[Net]:
    with Namespace("pod") as pod, Namespace("node") as node, Namespace("world") as world:
        found = Net(pod, node, world)
        with found.echoing():
            yield found


@contextlib.contextmanager
def of_node(net: Net, family: Family, kind: socket.SocketKind) -> Iterator[socket.socket]:
    """A socket of the node that is connected to the world, from the port TAKEN."""
    with net.node.entered():
        one = socket.socket(KIND[family], kind)
    with one:
        one.bind((NODE[family], TAKEN))
        one.settimeout(5)
        one.connect((WORLD[family], PORT))
        yield one


def ports(first: int, last: int) -> Flags:
    return Flags(enable_ipv6=True, to_ports=(PortRange(first, last),))


@pytest.mark.parametrize("family", list(Family), ids=lambda family: family.value)
def test_no_pod_gets_the_port_of_an_idle_connection(net: Net, family: Family) -> None:
    with of_node(net, family, socket.SOCK_STREAM) as own:
        assert own.recv(100).decode().strip() == NODE[family]
        with net.node.entered():
            plane = made()
            bring(plane, MASQUERADING, ports(TAKEN, TAKEN))
            with pytest.raises(TimeoutError):
                Connection(net, family, patience=0.5)
            assert plane.counters()[family, "out_dropped_ports"]
            own.sendall(b"x")
            assert own.recv(1) == b"x"
            clean(plane, Family)


@pytest.mark.parametrize("family", list(Family), ids=lambda family: family.value)
def test_no_pod_gets_the_port_of_a_connected_udp_socket(net: Net, family: Family) -> None:
    with net.world.entered():
        server = socket.socket(KIND[family], socket.SOCK_DGRAM)
    with net.pod.entered():
        pod = socket.socket(KIND[family], socket.SOCK_DGRAM)
    with server, pod, of_node(net, family, socket.SOCK_DGRAM) as own, net.node.entered():
        server.bind((WORLD[family], PORT))
        server.settimeout(5)
        plane = made()
        bring(plane, MASQUERADING, ports(TAKEN, TAKEN))
        pod.sendto(b"pod", (WORLD[family], PORT))
        own.send(b"node")
        data, address = server.recvfrom(100)
        assert (data, address[1]) == (b"node", TAKEN)
        server.sendto(b"answer", address)
        assert own.recv(100) == b"answer"
        clean(plane, Family)


@pytest.mark.parametrize("kind", PROTOCOLS, ids=["tcp", "udp"])
@pytest.mark.parametrize("family", list(Family), ids=lambda family: family.value)
def test_a_port_that_the_policy_does_not_have_stays_that_of_its_connection(
    net: Net, family: Family, kind: socket.SocketKind
) -> None:
    with net.world.entered():
        server = socket.socket(KIND[family], kind)
    with server:
        server.bind((WORLD[family], PORT + 1))
        with net.node.entered():
            own = socket.socket(KIND[family], kind)
        with own, contextlib.ExitStack() as stack:
            own.bind((NODE[family], TAKEN))
            if kind is socket.SOCK_STREAM:
                server.listen()
            own.connect((WORLD[family], PORT + 1))
            there = server
            if kind is socket.SOCK_STREAM:
                there = stack.enter_context(server.accept()[0])
            with net.node.entered():
                plane = made()
                bring(plane, MASQUERADING, ports(50000, 50010))
                there.settimeout(5)
                own.send(b"x")
                data, address = there.recvfrom(1)
                assert data == b"x"
                if kind is socket.SOCK_DGRAM:
                    assert address[1] == TAKEN
                clean(plane, Family)


@pytest.mark.parametrize("kind", PROTOCOLS, ids=["tcp", "udp"])
@pytest.mark.parametrize("family", list(Family), ids=lambda family: family.value)
def test_connected_sockets_are_listed(
    in_ns: Namespace, family: Family, kind: socket.SocketKind
) -> None:
    host, mapped = ("127.0.0.1", "::ffff:127.0.0.1") if family is Family.IPV4 else ("::1", "::1")
    with (
        socket.socket(KIND[family], kind) as server,
        socket.socket(socket.AF_INET6, kind) as client,
        socket.socket(KIND[family], kind) as unconnected,
    ):
        server.bind((host, 0))
        unconnected.bind((host, 0))
        if kind is socket.SOCK_STREAM:
            server.listen()
        client.connect((mapped, server.getsockname()[1]))
        _, number = parse_address(host)
        here, there = ((number, one.getsockname()[1]) for one in (client, server))
        found = list_connected()
        assert ConnectedSocket(family, PROTOCOLS[kind], here, there, False) in found
        assert all(unconnected.getsockname()[1] != one.local[1] for one in found)


def test_a_kernel_that_lists_no_sockets_is_no_obstacle(
    net: Net, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse() -> list[ConnectedSocket]:
        raise KernelReadError("no sock_diag here")

    monkeypatch.setattr(own_flows, "list_connected", refuse)
    with net.node.entered():
        plane = made()
        bring(plane, MASQUERADING)
        assert Connection(net, Family.IPV4).seen == NODE[Family.IPV4]
        clean(plane, Family)
    assert "connections of the node may meet" in caplog.text
