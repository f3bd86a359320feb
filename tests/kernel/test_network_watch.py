"""Devices and routes of a real namespace: what iproute2 changes is told, and not too often."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from ipmasq_agent.errors import KernelReadError
from ipmasq_agent.host.devices import egress_devices, read_links
from ipmasq_agent.host.routes import preferred_sources
from ipmasq_agent.netlink.rt_events import Overrun
from ipmasq_agent.policy.addresses import Family, Prefix, parse_address
from ipmasq_agent.policy.facts import HOOKS, LINKS, ROUTES, Fact, Links
from ipmasq_agent.sources import FactEvent, NotLearnt, network
from ipmasq_agent.sources.facts import HostAndCluster
from ipmasq_agent.sources.network import LATE
from ipmasq_agent.sources.pace import Pace
from tests.kernel.running import Running
from tests.netns import Namespace
from tests.unit.sources.told import DEADLINE, Told
from tests.waiting import wait_until


def ip(ns: Namespace, *lines: str) -> None:
    """Run each line with ip(8), all in one process."""
    ns.run(["ip", "-batch", "-"], stdin="".join(f"{line}\n" for line in lines))


def veth(name: str, *more: str) -> tuple[str, ...]:
    """Return the lines that make a device which is up and has a carrier."""
    return (
        f"link add {name} type veth peer name {name}-far",
        f"link set {name}-far up",
        f"link set {name} up",
        *more,
    )


def test_devices_that_cannot_be_read_for_a_moment_are_told_again_though_they_are_the_same(
    in_ns: Namespace, watching: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    ip(in_ns, *veth("eth0", "addr add 192.0.2.2/24 dev eth0"))
    source, told = watching(LINKS)
    told.value(LINKS, lambda links: links.egress == ("eth0",))
    reads = iter([KernelReadError("not now"), ValueError("a secret")])

    def fails_twice() -> Links:
        for error in reads:
            raise error
        return read_links()

    monkeypatch.setattr(network, "READERS", {LINKS: fails_twice})
    source.refresh()
    told.value(LINKS, lambda _: len(told.events) == 4)
    first, second = (event for event in told.events if isinstance(event, NotLearnt))
    assert first.error.message == "not now"
    assert second.error.message == "the thread network-watch failed unexpectedly (ValueError)"


def contains(wanted: object, values: tuple[object, ...]) -> bool:
    return wanted in values


class Watching(Protocol):
    def __call__(self, *needs: Fact[Any]) -> tuple[HostAndCluster, Told]: ...


@pytest.fixture
def watching(in_ns: Namespace) -> Iterator[Watching]:
    sources = []

    def watch(*needs: Fact[Any]) -> tuple[HostAndCluster, Told]:
        source, told = HostAndCluster(), Told()
        sources.append(source)
        source.start(told)
        source.require(frozenset(needs))
        return source, told

    yield watch
    for source in sources:
        source.stop()


# Storms


def test_word_of_programs_that_are_taken_away_is_urgent(
    in_ns: Namespace, watching: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[bool] = []

    class Noting(Pace):
        def noted(self, now: float, *, urgent: bool = False) -> None:
            noted.append(urgent)
            super().noted(now, urgent=urgent)

    monkeypatch.setattr(network, "Pace", Noting)
    ip(in_ns, *veth("eth0", "addr add 192.0.2.2/24 dev eth0"))
    in_ns.run(["tc", "qdisc", "add", "dev", "eth0", "clsact"])
    _, told = watching(HOOKS)
    told.value(HOOKS, lambda _: True)
    in_ns.run(["tc", "qdisc", "del", "dev", "eth0", "clsact"])
    wait_until(lambda: True in noted, "it is noted as urgent")


# Reading once


PODS = 50


def add_pod(ns: Namespace, pods: Namespace, number: int) -> None:
    """Add the pair of a pod as CNI's ptp does: the host's end has the gateway's address."""
    name = f"gke{number:03}"
    ip(
        ns,
        f"link add {name} type veth peer name eth{number} netns {pods.name}",
        f"link set {name} up",
        f"addr add 10.244.0.1/32 dev {name}",
        f"addr add fd00:244::1/128 dev {name} nodad",
        f"route add 10.244.0.{number + 2}/32 dev {name} src 10.244.0.1",
        f"route add fd00:244::{number + 2:x}/128 dev {name}",
    )


def test_host_ends_of_pods_pairs_that_have_an_address_lead_to_their_pods(
    in_ns: Namespace, watching: Watching
) -> None:
    ip(in_ns, *veth("eth0", "addr add 192.0.2.2/24 dev eth0"))
    with Namespace("pods") as pods:
        for number in range(PODS):
            add_pod(in_ns, pods, number)
        assert egress_devices() == ("eth0",)
        _, told = watching(LINKS)
        told.value(LINKS, lambda links: len(links.names) > PODS)
        add_pod(in_ns, pods, PODS)
        more = told.value(LINKS, lambda links: f"gke{PODS:03}" in links.names)
        assert more.egress == ("eth0",)


@pytest.mark.parametrize("backend", ["iptables-nft", "iptables-legacy", "nftables", "bpf"])
def test_pods_that_come_change_no_rule(
    run: Callable[..., Running], in_ns: Namespace, tmp_path: Path, backend: str
) -> None:
    ip(in_ns, *veth("eth0", "addr add 192.0.2.2/24 dev eth0"))
    document = tmp_path / "config"
    document.write_text("egressInterfaces: auto\nresyncInterval: 1h\n")
    with Namespace("pods") as pods:
        add_pod(in_ns, pods, 0)  # with it comes the gateway's address, which is the node's
        agent = run("run", f"--config={document}", f"--backend={backend}", "--enable-ipv6")
        agent.wait_ready()
        before = agent.status()["changes"]
        for number in range(1, 5):
            add_pod(in_ns, pods, number)
        ip(in_ns, *veth("eth1", "addr add 198.51.100.2/24 dev eth1"))
        wait_until(lambda: agent.status()["changes"] > before, "eth1 is seen")
        wait_until(lambda: agent.status()["devices"] == ["eth0", "eth1"], "and told")
        status = agent.status()
        assert (status["changes"], status["heals"]) == (before + 1, 0)


def test_a_pair_to_another_namespace_leads_out_where_its_subnet_or_its_route_does(
    in_ns: Namespace,
) -> None:
    with Namespace("outside") as outside:
        for name in ("eth0", "eth1", "eth2", "eth3"):
            in_ns.veth(name, outside, name)
        ip(
            in_ns,
            "addr add 192.0.2.2/24 dev eth0",  # a node that is a container itself
            "addr add 198.51.100.2/32 dev eth1",
            "route add 198.51.100.1 dev eth1",
            "route add default via 198.51.100.1 dev eth1",
            "addr add 10.244.0.1/32 dev eth2",
            "addr add 203.0.113.2/24 dev eth2",
            "addr add fd00::1/128 dev eth3 nodad",
        )
        assert egress_devices() == ("eth0", "eth1", "eth2")


def test_an_end_in_the_same_namespace_is_no_pod(in_ns: Namespace) -> None:
    ip(in_ns, *veth("eth0", "addr add 192.0.2.2/32 dev eth0"))
    assert egress_devices() == ("eth0",)


def test_devices_with_an_address_or_a_default_route_lead_out(in_ns: Namespace) -> None:
    ip(
        in_ns,
        *veth("eth0", "addr add 192.0.2.2/24 dev eth0"),
        *veth("eth1", "addr add 2001:db8::2/64 dev eth1 nodad"),
        *veth("veth7", "addr add 10.244.0.1/32 dev veth7"),
        *veth("veth8", "route add default dev veth8"),
        *veth("bare"),
        "link add cbridge type bridge",
        "link set cbridge up",
        "addr add 10.245.0.1/24 dev cbridge",
    )
    assert egress_devices() == ("eth0", "eth1", "veth8")
    assert read_links().egress == ("eth0", "eth1", "veth8")
    assert set(read_links().names) >= {"lo", "eth0", "eth0-far", "bare", "cbridge"}


def test_each_way_of_a_multipath_default_route_leads_out(in_ns: Namespace) -> None:
    ip(
        in_ns,
        *veth("veth1"),
        *veth("veth2"),
        "route add default nexthop dev veth1 nexthop dev veth2",
    )
    assert egress_devices() == ("veth1", "veth2")


def test_link_local_addresses_lead_nowhere(in_ns: Namespace) -> None:
    ip(in_ns, *veth("eth0", "addr add 169.254.1.1/32 scope link dev eth0"))
    assert egress_devices() == ()


def shown() -> dict[str, str | None]:
    """Return destination → preferred source, as text."""
    return {
        str(prefix): None if source is None else prefix.family.show(source)
        for prefix, source in preferred_sources()
    }


def test_routes_are_told_with_the_source_they_prefer(in_ns: Namespace) -> None:
    ip(
        in_ns,
        *veth("eth0", "addr add 192.0.2.2/24 dev eth0", "addr add 198.51.100.9/32 dev lo"),
        "addr add 2001:db8::2/64 dev eth0 nodad",
        "addr add 2001:db8:9::9/128 dev lo nodad",
        "route add default via 192.0.2.1 src 198.51.100.9",
        "route add 203.0.113.0/24 via 192.0.2.1",
        "route add blackhole 203.0.113.128/25",
        "route add default via 192.0.2.1 src 192.0.2.2 metric 50",
        "route add 2001:db8:1::/48 via 2001:db8::1 src 2001:db8:9::9",
    )
    assert shown() == {
        "0.0.0.0/0": "198.51.100.9",
        "192.0.2.0/24": "192.0.2.2",
        "203.0.113.0/24": None,
        "2001:db8:1::/48": "2001:db8:9::9",
    }


def test_the_lowest_metric_and_the_main_table_win(in_ns: Namespace) -> None:
    ip(
        in_ns,
        *veth("eth0", "addr add 192.0.2.2/24 dev eth0", "addr add 192.0.2.3/24 dev eth0"),
        "route add 203.0.113.0/24 dev eth0 src 192.0.2.3 metric 20",
        "route add 203.0.113.0/24 dev eth0 src 192.0.2.2 metric 10",
        "route add 198.51.100.0/24 dev eth0 src 192.0.2.3 metric 9",
        "route add 198.51.100.0/24 dev eth0 src 192.0.2.2 table default",
        "route add 198.18.0.0/15 dev eth0 src 192.0.2.2 table default",
        "route add 198.18.0.0/16 dev eth0 src 192.0.2.3 table 77",
    )
    routes = shown()
    assert routes["203.0.113.0/24"] == "192.0.2.2"
    assert routes["198.51.100.0/24"] == "192.0.2.3"
    assert routes["198.18.0.0/15"] == "192.0.2.2"
    assert "198.18.0.0/16" not in routes


def test_routes_of_pods_say_nothing_that_the_route_around_them_does_not(
    in_ns: Namespace,
) -> None:
    ip(in_ns, *veth("veth1"), *(f"route add 10.244.0.{host}/32 dev veth1" for host in range(200)))
    assert shown() == {}


def test_gathering_answers_once(in_ns: Namespace) -> None:
    ip(in_ns, *veth("eth0", "addr add 192.0.2.2/24 dev eth0"))
    facts = HostAndCluster().gather(frozenset({LINKS, ROUTES}))
    assert facts.get(LINKS) == Links(("eth0", "eth0-far", "lo"), ("eth0",))
    assert [str(prefix) for prefix, _ in facts.get(ROUTES) or ()] == ["192.0.2.0/24"]


# Watching


def test_a_device_that_comes_and_goes_is_told(in_ns: Namespace, watching: Watching) -> None:
    _, told = watching(LINKS)
    assert told.value(LINKS, lambda links: True) == Links(("lo",), ())
    ip(in_ns, *veth("eth0"))
    told.value(LINKS, lambda links: "eth0" in links.names and links.egress == ())
    ip(in_ns, "addr add 192.0.2.2/24 dev eth0")
    told.value(LINKS, lambda links: links.egress == ("eth0",))
    ip(in_ns, "link set eth0 down", "link set eth0 name uplink0", "link set uplink0 up")
    told.value(LINKS, lambda links: links.egress == ("uplink0",))
    ip(in_ns, "link del uplink0")
    told.value(LINKS, lambda links: links == Links(("lo",), ()))


def test_a_default_route_that_comes_and_goes_is_told(in_ns: Namespace, watching: Watching) -> None:
    ip(in_ns, *veth("veth1"))
    _, told = watching(LINKS)
    told.value(LINKS, lambda links: links.egress == ())
    ip(in_ns, "route add ::/0 dev veth1")
    told.value(LINKS, lambda links: links.egress == ("veth1",))
    ip(in_ns, "route del ::/0 dev veth1")
    told.value(LINKS, lambda links: links.egress == ())


def test_a_preferred_source_that_changes_is_told(in_ns: Namespace, watching: Watching) -> None:
    ip(in_ns, *veth("eth0", "addr add 192.0.2.2/24 dev eth0", "addr add 192.0.2.3/24 dev eth0"))
    _, told = watching(ROUTES)
    told.value(ROUTES, lambda routes: len(routes) == 1)
    for source in ("192.0.2.3", "192.0.2.2"):
        ip(in_ns, f"route replace default via 192.0.2.1 src {source}")
        wanted = (Prefix(Family.IPV4, 0, 0), parse_address(source)[1])
        told.value(ROUTES, functools.partial(contains, wanted))


def test_pods_that_come_by_the_hundred_are_told_of_a_few_times(
    in_ns: Namespace, watching: Watching
) -> None:
    _, told = watching(LINKS, ROUTES)
    told.value(LINKS, lambda links: True)
    told.value(ROUTES, lambda routes: True)
    began = time.monotonic()
    for number in range(100):
        ip(in_ns, *veth(f"veth{number}", f"route add 10.244.0.{number} dev veth{number}"))
    told.value(LINKS, lambda links: len(links.names) == 201)
    seconds = time.monotonic() - began
    assert len(told.events) <= 3 + seconds / LATE * 2
    assert [each.fact for each in told.events].count(ROUTES) == 1


def test_what_is_no_longer_required_is_no_longer_told(in_ns: Namespace, watching: Watching) -> None:
    source, told = watching(LINKS)
    told.value(LINKS, lambda links: True)
    source.require(frozenset({ROUTES}))
    told.value(ROUTES, lambda routes: routes == ())
    ip(in_ns, *veth("eth0", "addr add 192.0.2.2/24 dev eth0"))
    told.value(ROUTES, lambda routes: len(routes) == 1)
    assert [each.fact for each in told.events].count(LINKS) == 1


def test_refresh_tells_again_what_has_not_changed(in_ns: Namespace, watching: Watching) -> None:
    source, told = watching(LINKS)
    told.value(LINKS, lambda links: True)
    source.refresh()
    told.wait(lambda: len(told.events) == 2)


def test_messages_that_were_lost_are_made_good_by_reading(
    in_ns: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The smallest buffer there is, and nobody who empties it until all has happened.
    monkeypatch.setattr("ipmasq_agent.netlink.rt_events._RECEIVE_BUFFER", 1)
    told, released = Told(), threading.Event()
    overruns: list[Overrun] = []

    class Counted(Overrun):
        def __init__(self) -> None:
            overruns.append(self)

    def held(event: FactEvent) -> None:
        told(event)
        released.wait(DEADLINE)

    monkeypatch.setattr("ipmasq_agent.netlink.rt_events.Overrun", Counted)
    source = HostAndCluster()
    source.start(held)
    source.require(frozenset({LINKS}))
    try:
        told.value(LINKS, lambda links: True)
        ip(in_ns, *(f"link add br{number} type bridge" for number in range(100)))
        released.set()
        told.value(LINKS, lambda links: len(links.names) == 101)
    finally:
        released.set()
        source.stop()
    assert overruns
