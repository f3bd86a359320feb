"""Tables of flows under attack, from outside and by a pod: what lives in them stays there."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest
from scapy.packet import Packet

from ipmasq_agent.planes.bpf.layout import FlowState, TrackedFlow
from ipmasq_agent.planes.bpf.maps import PinnedMaps
from ipmasq_agent.planes.bpf.pins import PinDirectory
from ipmasq_agent.policy.addresses import Family
from tests.bpf.packets import tcp, udp
from tests.kernel.attacks.flood import Flood, Varied, compile_flood
from tests.kernel.attacks.site import PLANS, Site, masquerading, site
from tests.kernel.attacks.talk import PORT, Asker, Outcome, Server, ask, askers, hear, kept_busy
from tests.kernel.attacks.test_crowds import FAMILIES, named
from tests.kernel.pins import placement
from tests.waiting import wait_until

# What goes to the second server keeps its source.
SPLIT = "nonMasqueradeCIDRs: [192.0.2.3/32, '2001:db8::3/128']"
# Networks that nobody has: sources of the one attack, destinations of the other.
NOBODY = {Family.IPV4: "198.18.0.0", Family.IPV6: "2001:db8:bad::"}
MANY = 1 << 16
KUBE_PROXY = """
table inet proxy {
    chain forward {
        type filter hook forward priority 0
        ct state invalid drop
    }
}
"""
SECONDS = 5  # of the short attack: longer than a flow has to be idle before it may go


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_flood(tmp_path_factory.mktemp("flood"))


class Groups(contextlib.ExitStack):
    """Connections of each kind that the tables know, half of them idle, in one family."""

    def __init__(self, where: Site, family: Family, each: int) -> None:
        super().__init__()
        self.idle: list[Asker] = []
        self.busy: list[Asker] = []
        self._servers: list[tuple[Server, list[Asker]]] = []
        self._where, self._plan, self._each = where, PLANS[family], each

    def __enter__(self) -> Groups:
        where, plan = self._where, self._plan
        pod, kept = [plan.pod(0)], [plan.server(1)]
        outside = self.enter_context(Server(where.world, [plan.server(0), plan.server(1)]))
        inside = self.enter_context(Server(where.pod, pod))
        stream = socket.SOCK_STREAM
        for label, of, kind, source, to, server in (
            ("translated", where.pod, stream, pod, [plan.server(0)], outside),
            ("answered", where.pod, socket.SOCK_DGRAM, pod, [plan.server(0)], outside),
            ("kept", where.pod, stream, pod, kept, outside),
            ("inbound", where.world, stream, [plan.server(0)], pod, inside),
            ("own", where.node, stream, [plan.node], [plan.server(0)], outside),
        ):
            for group, name in ((self.idle, "idle"), (self.busy, "busy")):
                ends = named(f"{label}-{name}", self._each, source, to)
                made = self.enter_context(askers(of, plan, kind, ends))
                group += made
                if group is self.idle:
                    self._servers.append((server, made))
        assert ask([*self.idle, *self.busy]) == Outcome()
        return self

    def go_on(self) -> None:
        """Have those that were idle hear from their servers first: their flows are still there."""
        for server, them in self._servers:
            server.repeat(one.name for one in them)
            assert hear(them) == Outcome()
        assert ask(self.idle) == Outcome()


def attacks(program: Path, where: Site, family: Family, count: int, rate: int) -> list[Flood]:
    """Start them all: from outside to node and pod with anybody's source, and by a pod."""
    plan, nobody = PLANS[family], NOBODY[family]
    pod = plan.pod(0)
    spoofed = Varied(source=MANY, source_port=MANY)
    scanning = Varied(destination=MANY, destination_port=MANY)
    from_outside = (
        udp(nobody, 1024, plan.node, 9),
        udp(nobody, 1024, pod, 9),
        tcp(nobody, 1024, pod, PORT, "S"),
        tcp(nobody, 1024, pod, PORT, "A"),
    )
    by_pod = udp(pod, 9, nobody, 9), tcp(pod, 9, nobody, 9)
    return [
        *(
            Flood(program, where.world, (where.node, "eth0"), packet, spoofed, count, rate)
            for packet in from_outside
        ),
        *(
            Flood(program, where.pod, (where.node, "cali0"), packet, scanning, count, rate)
            for packet in by_pod
        ),
    ]


def survive(
    program: Path, families: Sequence[Family], each: int, count: int, rate: int, flows: int | None
) -> None:
    """Have connections of all kinds, attack, and make sure that none of them has ended.

    Args:
        program: that sends.
        families: attacked at once.
        each: how many connections of each kind are idle, and are busy.
        count: how many packets each attack has.
        rate: how many a second; 0 for as many as can be.
        flows: how many the table holds.
    """
    with (
        site(servers=2) as where,
        masquerading(where, SPLIT, flows=flows) as plane,
        contextlib.ExitStack() as stack,
    ):
        groups = [stack.enter_context(Groups(where, family, each)) for family in families]
        with contextlib.ExitStack() as busy:
            for group in groups:
                busy.enter_context(kept_busy(group.busy))
            sent = [
                one for family in families for one in attacks(program, where, family, count, rate)
            ]
            for one in sent:
                one.over()
        counted = plane.counters()
        for family, group in zip(families, groups, strict=True):
            group.go_on()
            # There was no room indeed, and it was made.
            for full in ("out_dropped_table", "flows_unrecorded", "flows_shed"):
                assert counted[family, full] > 0, full
            plan = PLANS[family]
            late = named("late", each, [plan.pod(0)], [plan.server(0)])
            with askers(where.pod, plan, socket.SOCK_STREAM, late) as new:
                assert ask(new) == Outcome()


def test_floods_of_packets_end_no_connection(program: Path) -> None:
    survive(program, list(Family), 5, SECONDS * 4000, 4000, 2048)


@pytest.mark.long
@FAMILIES
def test_floods_of_a_million_packets_end_no_connection(program: Path, family: Family) -> None:
    survive(program, [family], 200, 1_000_000, 0, None)


@FAMILIES
def test_what_is_forged_from_outside_lives_no_longer_than_a_minute(
    program: Path, family: Family
) -> None:
    plan, nobody, many = PLANS[family], NOBODY[family], Varied(source=300)
    first = int(ipaddress.ip_address(nobody))
    with (
        site(tracked=True) as where,
        masquerading(where, SPLIT),
        Server(where.pod, [plan.pod(0)]),
    ):
        where.node.run(["nft", "-f", "-"], stdin=KUBE_PROXY)

        def sent(packet: Packet) -> None:
            Flood(program, where.world, (where.node, "eth0"), packet, many, many.source).over()

        def found() -> list[TrackedFlow]:
            with PinnedMaps(PinDirectory(Path(placement().pins)).objects) as maps:
                return [
                    one for one in maps.flows() if 0 <= one.flow.source.address - first < 1 << 16
                ]

        for packet in (udp(nobody, 1024, plan.node, 53), tcp(nobody, 1024, plan.node, 22, "S")):
            sent(packet)
        assert found() == []  # what answers these is told by itself
        sent(tcp(nobody, 1024, plan.pod(0), PORT, "S"))
        answered = FlowState.SEEN_OUTWARD | FlowState.SEEN_INWARD
        wait_until(
            lambda: sum(one.state & answered == answered for one in found()) == many.source,
            "the pod answers all",
        )
        # The pod would end at once what does not fit, but half of that never comes to it.
        sent(tcp(nobody, 1024, plan.pod(0), PORT, "A"))
        lives = [one.seconds for one in found()]
        assert len(lives) == many.source
        # Of 65,536 guesses one is right.
        assert sum(seconds > 60 for seconds in lives) <= 1
