"""Where a packet would leave, and with which address: as iproute2's routes have it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.facts import WayOut
from tests.kernel.ways import look_up
from tests.netns import Namespace

NOWHERE = WayOut()


@pytest.fixture
def node() -> Iterator[Namespace]:
    """A node between pods at cali0 and two gateways at eth0 and eth1, in both families."""
    with Namespace("node") as node, Namespace("far") as far:
        for device in ("cali0", "eth0", "eth1"):
            node.veth(device, far, device)
        for device, address in (
            ("cali0", "172.20.0.1/24"),
            ("eth0", "198.51.100.1/24"),
            ("eth0", "192.0.2.1/24"),
            ("eth0", "192.0.2.9/24"),
            ("eth1", "203.0.113.1/24"),
            ("cali0", "fd00:20::1/64"),
            ("eth0", "2001:db8::1/64"),
        ):
            node.address(device, address)
        for words in (
            "route add default via 192.0.2.2",
            "-6 route add default via 2001:db8::2",
            "route add 100.64.0.0/16 dev eth0 src 192.0.2.9",
            "route add blackhole 100.65.0.0/16",
            "route add unreachable 100.66.0.0/16",
            "route add prohibit 100.67.0.0/16",
            "-6 route add blackhole 2001:db8:65::/48",
            "-6 route add unreachable 2001:db8:66::/48",
            "-6 route add prohibit 2001:db8:67::/48",
            "route add default via 203.0.113.2 table 7",
            "rule add iif cali0 from 172.20.0.7 lookup 7",
        ):
            node.run(["ip", *words.split()])
        with node.entered():
            yield node


@pytest.mark.parametrize(
    ("destination", "source", "found"),
    [
        pytest.param("8.8.8.8", None, WayOut("eth0", "192.0.2.1"), id="gateway"),
        pytest.param("198.51.100.7", None, WayOut("eth0", "198.51.100.1"), id="on-link"),
        # MASQUERADE asks neither for the preferred source nor for a secondary address.
        pytest.param("100.64.0.1", None, WayOut("eth0", "198.51.100.1"), id="preferred source"),
        pytest.param("192.0.2.9", None, WayOut("lo", "192.0.2.9", True), id="local"),
        pytest.param("127.0.0.1", None, WayOut("lo", "127.0.0.1", True), id="loopback"),
        pytest.param("100.65.0.1", None, NOWHERE, id="blackhole"),
        pytest.param("100.66.0.1", None, NOWHERE, id="unreachable"),
        pytest.param("100.67.0.1", None, NOWHERE, id="prohibit"),
        pytest.param("100.66.0.1", "172.20.0.5", NOWHERE, id="unreachable for a pod"),
        pytest.param("8.8.8.8", "172.20.0.5", WayOut("eth0", "192.0.2.1"), id="pod"),
        pytest.param("8.8.8.8", "172.20.0.7", WayOut("eth1", "203.0.113.1"), id="pod of a rule"),
        pytest.param("8.8.8.8", "192.0.2.1", WayOut("eth0", "192.0.2.1"), id="source of the node"),
        pytest.param("8.8.8.8", "100.65.0.1", WayOut("eth0", "192.0.2.1"), id="source nowhere"),
        pytest.param("192.0.2.9", "172.20.0.5", WayOut("lo", "192.0.2.9", True), id="pod to node"),
    ],
)
def test_ipv4(node: Namespace, destination: str, source: str | None, found: WayOut) -> None:
    node.run(["sysctl", "-qw", "net.ipv4.ip_forward=1"])
    assert look_up(Family.IPV4, destination, source) == found


def test_a_source_that_is_not_forwarded_is_left_out_of_the_question(node: Namespace) -> None:
    node.run(["sysctl", "-qw", "net.ipv4.ip_forward=0"])
    assert look_up(Family.IPV4, "8.8.8.8", "172.20.0.7") == WayOut("eth0", "192.0.2.1")


def test_a_node_without_routes_leads_nowhere(in_ns: Namespace) -> None:
    assert look_up(Family.IPV4, "8.8.8.8", None) == NOWHERE
    assert look_up(Family.IPV6, "2001:db8::7", "fd00::1") == NOWHERE


@pytest.mark.parametrize(
    ("destination", "source", "found"),
    [
        pytest.param("2001:db8:1::7", None, WayOut("eth0", "2001:db8::1"), id="gateway"),
        pytest.param("2001:db8::7", None, WayOut("eth0", "2001:db8::1"), id="on-link"),
        pytest.param("2001:db8::1", None, WayOut("lo", "2001:db8::1", True), id="local"),
        pytest.param("2001:db8:65::1", None, NOWHERE, id="blackhole"),
        pytest.param("2001:db8:66::1", None, NOWHERE, id="unreachable"),
        pytest.param("2001:db8:67::1", None, NOWHERE, id="prohibit"),
        pytest.param("2001:db8:1::7", "fd00:20::5", WayOut("eth0", "2001:db8::1"), id="pod"),
        pytest.param("2001:db8::1", "fd00:20::5", WayOut("lo", "2001:db8::1", True), id="to node"),
    ],
)
def test_ipv6(node: Namespace, destination: str, source: str | None, found: WayOut) -> None:
    node.run(["sysctl", "-qw", "net.ipv6.conf.all.forwarding=1"])
    assert look_up(Family.IPV6, destination, source) == found
