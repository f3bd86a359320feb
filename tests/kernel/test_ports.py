"""`ports` counts what the world sees: how many source ports are in use toward each destination."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from ipmasq_agent.policy.addresses import Family
from tests.kernel.agent import status_of
from tests.kernel.attacks.site import EVERYTHING, PLANS, Site, site
from tests.kernel.running import Running
from tests.netns import Namespace
from tests.waiting import DEADLINE, wait_until

pytestmark = pytest.mark.kernel
BACKENDS = ("iptables-nft", "iptables-legacy", "ipset", "nftables", "bpf")
PORT, LOW, OWN = 7000, 7100, 7200
RANGES = ("--to-ports=2000-2049",)


class Packets:
    """UDP from pods to servers of the world, each packet from a socket of its own.

    Attributes:
        seen: server, its port and the source with which it saw a packet → which ports.
    """

    def __init__(self, where: Site) -> None:
        self._where = where
        self._held = contextlib.ExitStack()
        self._ears: dict[tuple[Family, int, int], socket.socket] = {}
        self.seen: dict[tuple[str, str], set[int]] = {}

    def send(
        self,
        family: Family,
        server: int,
        sources: Sequence[tuple[str, int]],
        *,
        port: int = PORT,
        sender: Namespace | None = None,
    ) -> None:
        """Send from each address and port to a server, and note what it sees."""
        plan = PLANS[family]
        there = plan.server(server)
        ear = self._ear(family, server, port)
        for source in sources:
            with (
                (sender or self._where.pod).entered(),
                socket.socket(plan.kind, socket.SOCK_DGRAM) as mouth,
            ):
                mouth.bind(source)
                mouth.sendto(b"x", (there, port))
            heard = ear.recvfrom(16)[1]
            self.seen.setdefault((shown(there, port), heard[0]), set()).add(heard[1])

    def _ear(self, family: Family, server: int, port: int) -> socket.socket:
        key = family, server, port
        if key not in self._ears:
            with self._where.world.entered():
                ear = self._held.enter_context(socket.socket(PLANS[family].kind, socket.SOCK_DGRAM))
            ear.settimeout(DEADLINE)
            ear.bind((PLANS[family].server(server), port))
            self._ears[key] = ear
        return self._ears[key]

    def close(self) -> None:
        self._held.close()


def shown(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


@contextlib.contextmanager
def masqueraded(path: Path, *flags: str) -> Iterator[tuple[Site, Packets]]:
    """Have everything masqueraded but what goes to 10.0.0.0/8 and the third server."""
    kept = ", ".join(f"'{PLANS[family].server(2)}/{family.bits}'" for family in Family)
    path.write_text(EVERYTHING.replace("10.0.0.0/8", f"10.0.0.0/8, {kept}"))
    with site(2, 3) as where, where.node.entered():
        assert status_of("apply", "--config", str(path), "--enable-ipv6", *flags) == 0
        packets = Packets(where)
        try:
            yield where, packets
        finally:
            packets.close()


def asked(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    capsys.readouterr()
    assert status_of("ports", "-o", "json", *words) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_counted_is_what_the_world_sees(
    backend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--backend", backend)
    with masqueraded(tmp_path / "cm", *flags) as (where, packets):
        for family in Family:
            plan = PLANS[family]
            # The same port of both pods, which cannot be kept for both.
            both = [(plan.pod(n), 20_000 + port) for port in range(12) for n in (0, 1)]
            packets.send(family, 0, both)
            packets.send(family, 0, both[:5], port=PORT + 1)
            packets.send(family, 1, both[:9])
            packets.send(family, 2, both)  # which is kept
            packets.send(family, 1, [(plan.pod(0), 700)], port=LOW)
            packets.send(family, 1, [(plan.node, 30_000)], port=OWN, sender=where.node)
        answer = asked(capsys, "--top", "50", *flags)
        sources = {PLANS[family].node for family in Family}
        expected = {
            there: len(ports)
            for there, ports in packets.seen.items()
            # What the node sends itself may get another port, or leave as it is.
            if there[1] in sources and not (there[0].endswith(f":{OWN}") and ports == {30_000})
        }
        rows = {(row["destination"], row["address"]): row for row in answer["ports"]}
        assert {there: row["used"] for there, row in rows.items()} == expected
        for (destination, _), row in rows.items():
            pool, of = "1024-65535", 64512
            if destination.endswith(f":{LOW}") and backend != "bpf":
                pool, of = "600-1023", 424  # connection tracking keeps a low port low
            assert (row["protocol"], row["ports"], row["of"]) == ("udp", pool, of)
            assert row["left"] == of - row["used"]
            assert row["grown"] is None
        packets.send(Family.IPV4, 0, [(PLANS[Family.IPV4].pod(0), 25_000)])
        later = asked(capsys, "--top", "50", *flags)
        assert later["secondsSince"] >= 0
        one = shown(PLANS[Family.IPV4].server(0), PORT)
        grown = {row["destination"]: row["grown"] for row in later["ports"]}
        assert grown == {destination: int(destination == one) for destination, _ in expected}
        assert status_of("ports", "--state-dir=/proc/nowhere", *flags) == 0
        captured = capsys.readouterr()
        assert "growth cannot be told" in captured.err
        assert one in captured.out


@pytest.mark.parametrize("backend", ["iptables-nft", "nftables", "bpf"])
def test_a_warning_comes_before_new_connections_fail(
    backend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--backend", backend, *RANGES)
    plan, path = PLANS[Family.IPV4], tmp_path / "cm"
    with masqueraded(path, *flags) as (_, packets):
        packets.send(Family.IPV4, 0, [(plan.pod(0), 20_000 + n) for n in range(39)])
        (row,) = asked(capsys, *flags)["ports"]
        assert (row["used"], row["of"], row["ports"]) == (39, 50, "2000-2049")
        assert "will fail" not in status(capsys, path, *flags)
        packets.send(Family.IPV4, 0, [(plan.pod(0), 21_000)])
        answer = asked(capsys, *flags)
        assert (answer["ports"][0]["used"], answer["ports"][0]["left"]) == (40, 10)
        (warning,) = answer["warnings"]
        assert "40 of 50 source ports (2000-2049) are in use for udp" in warning
        assert warning in status(capsys, path, *flags)


def status(capsys: pytest.CaptureFixture[str], path: Path, *flags: str) -> str:
    capsys.readouterr()
    assert status_of("status", "--config", str(path), "--enable-ipv6", *flags) == 0
    return capsys.readouterr().out


def test_the_agent_warns_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--backend", "nftables", *RANGES)
    plan, path = PLANS[Family.IPV4], tmp_path / "cm"
    with masqueraded(path, *flags) as (_, packets):
        packets.send(Family.IPV4, 0, [(plan.pod(0), 20_000 + n) for n in range(41)])
        agent = Running(tmp_path / "log", "run", "--config", str(path), "--enable-ipv6", *flags)
        try:
            wait_until(lambda: agent.status().get("ports"), "a look at the ports")
            told = agent.status()
            assert told["ports"][0]["used"] == 41
            assert any("41 of 50 source ports" in line for line in told["advice"])
            _, metrics = agent.get("/metrics")
            assert "ipmasq_agent_ports_used_ratio 0.82" in metrics
            assert 'ipmasq_agent_ports_used{address="192.0.2.1",destination="192.0.2.2:7000"' in (
                metrics
            )
            assert "source ports run out" in agent.log.read_text()
        finally:
            agent.stop(signal.SIGTERM)
