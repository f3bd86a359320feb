"""Connections are told as they are made: those that are told and those that are missed are all."""

from __future__ import annotations

import socket
import sys
import time
from contextlib import closing

import pytest

from ipmasq_agent.errors import HostError, KernelReadError
from ipmasq_agent.netlink import ct, ct_events
from ipmasq_agent.netlink.ct_events import NewConnections
from ipmasq_agent.planes.bpf import observing
from ipmasq_agent.planes.live import beginnings
from ipmasq_agent.planes.plane import AnyPlane, Beginnings, Translator
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.flows import Flow
from tests.kernel.attacks.site import PLANS, Site, site
from tests.kernel.talked import PODS, as_said, in_force, talking
from tests.netns import Namespace
from tests.waiting import DEADLINE

PLANES = pytest.mark.parametrize("plane", ["iptables-legacy", "nftables", "bpf"])
FAMILIES = pytest.mark.parametrize("family", list(Family), ids=lambda family: family.value)
# As many packets to a port each, from a port each, and so as many connections.
SENDER = """
import socket, sys
count, *servers = sys.argv[1:]
made = 0
while made < int(count):
    sender = socket.socket(socket.AF_INET6 if ":" in servers[0] else socket.AF_INET, 2)
    for port in range(1000, min(1000 + int(count) - made, 31000)):
        sender.sendto(b"x", (servers[port % 2], port))
        made += 1
"""
BURST = 8000
SILENCE = """
table inet silence {
    chain heard { type filter hook prerouting priority raw; udp dport >= 1000 drop; }
}
"""


def all_of(news: Beginnings, enough: int) -> list[tuple[float, Flow]]:
    """Read until as many are read, or missed."""
    found: list[tuple[float, Flow]] = []
    deadline = time.monotonic() + DEADLINE
    while len(found) + news.missed < enough:
        assert time.monotonic() < deadline, (len(found), news.missed, enough)
        found += news.read(0.1)
    return found


def send(where: Site, family: Family, count: int) -> None:
    """Have a pod begin so many flows, to two servers in turn."""
    servers = [PLANS[family].server(0), PLANS[family].server(1)]
    where.pod.run([sys.executable, "-c", SENDER, str(count), *servers])


def silent(where: Site) -> None:
    """Have the world answer nothing: an answer of ICMP would be a packet more to the node."""
    where.world.run(["nft", "-f", "-"], stdin=SILENCE)


def made(where: Site, plane: AnyPlane) -> int:
    """Return how many connections there were, as those count that make them."""
    if isinstance(plane, Translator):
        counters = plane.counters().items()
        return sum(n for (_, what), n in counters if what in ("flows_translated", "flows_kept"))
    return int(where.node.run(["conntrack", "-C"]).stdout)


@PLANES
@FAMILIES
def test_what_is_told_is_what_the_world_heard(plane: str, family: Family) -> None:
    with site(PODS, 2) as where, in_force(where, plane) as at_work:
        news = beginnings(at_work)
        try:
            before = time.time()
            with talking(where, family, 8) as said:
                found = all_of(news, len(said))
            assert {as_said(flow) for _, flow in found} == said
            assert len(found) == len(said)
            moments = [moment for moment, _ in found]
            assert moments == sorted(moments)
            # The clock may be set meanwhile, but not by that much.
            assert before - 5 < moments[0] <= moments[-1] < time.time() + 5
        finally:
            news.close()


@PLANES
@FAMILIES
def test_what_finds_no_room_is_counted_to_the_last_one(
    monkeypatch: pytest.MonkeyPatch, plane: str, family: Family
) -> None:
    monkeypatch.setattr(ct_events, "_ROOM", 1 << 20)
    monkeypatch.setattr(observing, "_SIZE", 1 << 18)
    with site(2, 2) as where, in_force(where, plane) as at_work:
        silent(where)
        news = beginnings(at_work)
        try:
            send(where, family, BURST)  # nobody reads meanwhile
            there = made(where, at_work)
            found = all_of(news, there)
            missed = news.missed
            assert len(found) + missed == there > BURST / 2
            assert min(len(found), missed) > 500
            send(where, family, 100)
            late = made(where, at_work) - there
            assert len(all_of(news, missed + late)) == late > 0
            assert news.missed == missed
            assert news.read(0) == []
        finally:
            news.close()


def test_observers_have_places_of_their_own_and_leave_them() -> None:
    with site(2, 2) as where, in_force(where, "bpf") as at_work:
        silent(where)
        every = [beginnings(at_work) for _ in range(4)]
        try:
            with pytest.raises(HostError, match="4 others observe"):
                beginnings(at_work)
            every.pop(1).close()
            send(where, Family.IPV4, 10)
            late = beginnings(at_work)
            every.append(late)
            assert late.read(0) == []
            send(where, Family.IPV4, 10)
            assert [len(all_of(news, 10)) for news in every] == [20, 20, 20, 10]
        finally:
            for news in every:
                news.close()


def test_what_programs_told_can_be_read_after_they_have_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with site(2, 2) as where, where.node.entered():
        silent(where)
        with in_force(where, "bpf") as at_work:
            news = beginnings(at_work)
            send(where, Family.IPV4, 10)
        with closing(news):
            monkeypatch.setattr(news, "_looked", 0.0)  # as if the last look was long ago
            news.stop()
            assert len(news.read(0)) == 10
            assert news.read(0) == []


def test_what_comes_from_outside_leaves_no_node_and_is_not_told() -> None:
    plan = PLANS[Family.IPV4]
    with site(tracked=True) as where, in_force(where, "bpf") as at_work:
        news = beginnings(at_work)
        try:
            with where.pod.entered():
                listener = socket.create_server((plan.pod(0), 80))
            with listener, where.world.entered(), socket.create_connection((plan.pod(0), 80)):
                assert isinstance(at_work, Translator)
                assert at_work.counters()[Family.IPV4, "flows_from_outside"] == 1
                assert list(at_work.flows()) == []
                assert news.read(0) == []
        finally:
            news.close()


NOBODY = 200 << 8  # a part of the kernel that there is not, as one whose module is not loaded


def test_a_kernel_that_tracks_but_cannot_tell_of_it_is_not_taken_for_one_that_tracks_nothing(
    in_ns: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(ct.tracked()) == []
    monkeypatch.setattr(ct, "_GET", NOBODY | 1)
    with pytest.raises(KernelReadError) as unread:
        list(ct.tracked())
    NewConnections().close()
    monkeypatch.setattr(ct_events, "_GET_COUNT", NOBODY | 5)
    with pytest.raises(HostError) as unheard:
        NewConnections()
    for told in (unread, unheard):
        assert "load nf_conntrack_netlink" in (told.value.remedy or "")


def test_without_events_it_is_said_how_to_turn_them_on(in_ns: Namespace) -> None:
    in_ns.run(["sysctl", "-qw", "net.netfilter.nf_conntrack_events=0"])
    with pytest.raises(HostError) as told:
        NewConnections()
    assert told.value.remedy is not None
    command = told.value.remedy.split("`")[1]
    in_ns.run(command.split())
    NewConnections().close()
