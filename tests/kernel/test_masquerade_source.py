"""Which of a device's addresses masquerading gives: the same in every data plane."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from ipmasq_agent.agent.reconcile import clean, reconcile_family
from ipmasq_agent.config.assemble import assemble_family
from ipmasq_agent.config.document import parse_document
from ipmasq_agent.config.model import Flags
from ipmasq_agent.host.devices import list_devices
from ipmasq_agent.planes import detect
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.facts import WayOut
from tests.kernel.pins import placement
from tests.kernel.ways import look_up
from tests.netns import Namespace
from tests.waiting import wait_until

FLAGS = Flags()
BACKENDS = ["iptables-nft", "iptables-legacy", "nftables", "bpf"]


@pytest.fixture
def hosts() -> Iterator[tuple[Namespace, Namespace, Namespace]]:
    """Pod, node and world; the node has an address of a network without a gateway first."""
    with Namespace("pod") as pod, Namespace("node") as node, Namespace("world") as world:
        pod.veth("eth0", node, "cali0")
        node.veth("eth0", world, "eth0")
        node.run(["sysctl", "-qw", "net.ipv4.ip_forward=1"])
        for host, device, address in (
            (pod, "eth0", "172.20.0.10/24"),
            (node, "cali0", "172.20.0.1/24"),
            (node, "eth0", "198.51.100.1/24"),
            (node, "eth0", "192.0.2.1/24"),
            (node, "eth0", "192.0.2.9/24"),
            (world, "eth0", "192.0.2.2/24"),
            (world, "eth0", "203.0.113.1/32"),
        ):
            host.address(device, address)
        pod.run(["ip", "route", "add", "default", "via", "172.20.0.1"])
        node.run(["ip", "route", "add", "default", "via", "192.0.2.2"])
        world.run(["ip", "route", "add", "198.51.100.0/24", "via", "192.0.2.1"])
        yield pod, node, world


@pytest.mark.parametrize("lifetime", ["forever", "0"])
@pytest.mark.parametrize("name", BACKENDS)
def test_it_is_the_one_in_the_subnet_of_the_gateway_even_if_it_is_deprecated(
    hosts: tuple[Namespace, Namespace, Namespace], name: str, lifetime: str
) -> None:
    pod, node, world = hosts
    change = f"ip address change 192.0.2.1/24 dev eth0 preferred_lft {lifetime}"
    node.run(change.split())
    config = parse_document(b"nonMasqueradeCIDRs: []", "cm", FLAGS).config
    with node.entered(), contextlib.ExitStack() as stack:
        backend = detect.make(name, placement())
        stack.callback(backend.close)
        stack.callback(clean, backend, Family)
        policy = assemble_family(config, Family.IPV4, backend.capabilities(Family.IPV4))
        reconcile_family(backend, Family.IPV4, policy)
        with world.entered():
            server = stack.enter_context(socket.create_server(("", 80)))
        with pod.entered():
            client = stack.enter_context(socket.socket())
        wait_until(lambda: client.connect_ex(("203.0.113.1", 80)) in {0, 106}, "connected")
        accepted, (source, _) = server.accept()
        accepted.close()
    assert source == "192.0.2.1"
    with node.entered():
        assert look_up(Family.IPV4, "203.0.113.1", "172.20.0.10") == WayOut("eth0", source)


def test_each_device_of_a_multipath_route_has_a_gateway_of_its_own(in_ns: Namespace) -> None:
    for number in (1, 2):
        in_ns.run(["ip", "link", "add", f"eth{number}", "type", "veth", "peer", f"far{number}"])
        for device in (f"eth{number}", f"far{number}"):
            in_ns.run(["ip", "link", "set", device, "up"])
        in_ns.address(f"eth{number}", f"198.51.{number}.1/24")
        in_ns.address(f"eth{number}", f"192.0.{number}.1/24")
    hops = [word for n in (1, 2) for word in ("nexthop", "via", f"192.0.{n}.254", "dev", f"eth{n}")]
    in_ns.run(["ip", "route", "add", "default", *hops])
    # What an unreachable network has through the same device counts for less.
    in_ns.run(["ip", "route", "add", "default", "via", "198.51.1.254", "metric", "100"])
    found = list_devices().by_name
    sources = [Family.IPV4.show(found[f"eth{n}"].sources[Family.IPV4]) for n in (1, 2)]
    assert sources == ["192.0.1.1", "192.0.2.1"]
