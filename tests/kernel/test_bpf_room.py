"""The tables of flows of the eBPF programs: expired flows go, and how full they are is told."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from ipmasq_agent.agent.reconcile import clean
from ipmasq_agent.bpf.maps import open_pinned
from ipmasq_agent.planes.bpf.pins import PinDirectory
from ipmasq_agent.planes.bpf.plane import BpfPlane
from ipmasq_agent.policy.addresses import Family
from tests.kernel.agent import status_of
from tests.kernel.pins import placement
from tests.kernel.running import Running
from tests.kernel.test_bpf_survival import (
    KIND,
    MASQUERADING,
    NODE,
    POD,
    WORLD,
    Connection,
    Net,
    bring,
)
from tests.netns import Namespace
from tests.waiting import wait_until

TCP = 6
SEEN_OUTWARD, SEEN_INWARD, CONFIRMED = 2, 4, 8
ESTABLISHED = SEEN_OUTWARD | SEEN_INWARD | CONFIRMED
PLACES = 64


def put(table: str, family: Family, numbers: range, seconds: int) -> None:
    """Put connections into a table, a port for each; they have so many seconds to live."""
    ends = [ip_address(of[family]).packed.ljust(16, b"\0") for of in (WORLD, NODE, POD)]
    expires = int(time.clock_gettime(time.CLOCK_MONOTONIC)) + seconds
    life = struct.pack("=Q", ESTABLISHED << 32 | expires)
    found = open_pinned(PinDirectory(Path(placement().pins)).objects / table)
    assert found is not None
    with found:
        for number in numbers:
            port = struct.pack(">H", number)
            of = struct.pack("=BB2x", TCP, family is Family.IPV6)
            key = ends[0] + ends[1] + struct.pack(">H", 443) + port + of
            owner = ends[2] + port + bytes(6) if table == "flows" else b""
            found.update(key, owner + life)


def held(table: str) -> int:
    """How many flows a table holds."""
    found = open_pinned(PinDirectory(Path(placement().pins)).objects / table)
    assert found is not None
    with found:
        return sum(1 for _ in found.entries())


@pytest.fixture
def net() -> Iterator[Net]:
    with Namespace("pod") as pod, Namespace("node") as node, Namespace("world") as world:
        made = Net(pod, node, world)
        with made.echoing(), node.entered():
            yield made


def test_an_agent_collects_what_has_expired_and_tells_how_full_the_tables_are(
    net: Net, tmp_path: Path
) -> None:
    bring(BpfPlane(Path(placement().pins), 2048), MASQUERADING)
    for family in Family:
        with net.pod.entered():
            one = socket.socket(KIND[family], socket.SOCK_DGRAM)
        with one:
            one.sendto(b"x", (WORLD[family], 9))
    put("flows", Family.IPV4, range(2000, 2100), -10)
    put("flows", Family.IPV6, range(2000, 2050), -10)
    put("flows", Family.IPV6, range(3000, 4700), 1000)
    put("kept", Family.IPV4, range(2000, 2200), -10)
    put("kept", Family.IPV4, range(3000, 3007), 1000)
    document = tmp_path / "config"
    document.write_text(MASQUERADING)
    flags = ("--backend", "bpf", "--config", str(document), "--enable-ipv6")
    agent = Running(tmp_path / "log", "run", *flags)
    try:
        agent.wait_ready()
        wait_until(lambda: held("flows") == 1702 and held("kept") == 7, "they are collected")
        tables = agent.status()["tables"]
        assert tables == [
            {"name": "flows", "capacity": 2048, "ipv4": 1, "ipv6": 1701},
            {"name": "kept", "capacity": 1024, "ipv4": 7, "ipv6": 0},
        ]
        assert any("`flows` is 83% full" in line for line in agent.status()["advice"])
        told = set(agent.get("/metrics")[1].splitlines())
    finally:
        agent.stop()
    assert told >= {
        'ipmasq_agent_table_flows{family="ipv6",table="flows"} 1701.0',
        'ipmasq_agent_table_capacity{table="kept"} 1024.0',
        'ipmasq_agent_flows_total{family="ipv4",outcome="collected"} 300.0',
        'ipmasq_agent_flows_total{family="ipv6",outcome="collected"} 50.0',
        'ipmasq_agent_flows_total{family="ipv6",outcome="shed"} 0.0',
        'ipmasq_agent_flows_total{family="ipv4",outcome="unrecorded"} 0.0',
        'ipmasq_agent_packets_total{family="ipv4",outcome="out_dropped_table"} 0.0',
    }


def test_the_verb_counts_by_itself(
    net: Net, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bring(BpfPlane(Path(placement().pins), PLACES), MASQUERADING)
    put("flows", Family.IPV4, range(3000, 3000 + PLACES - 8), 1000)
    put("kept", Family.IPV6, range(2000, 2003), -10)  # expired: nobody is in its way
    document = tmp_path / "config"
    document.write_text(MASQUERADING)
    flags = ("--backend", "bpf", "--config", str(document), "--enable-ipv6")
    assert status_of("status", *flags) == 0
    told = capsys.readouterr().out.splitlines()
    assert {"Table:        flows 56 of 64 (88%)", "Table:        kept 0 of 32 (0%)"} <= set(told)
    assert [line for line in told if "`flows` is 88% full" in line]


def test_connections_go_on_beside_a_full_table(net: Net) -> None:
    backend = BpfPlane(Path(placement().pins), PLACES)
    bring(backend, MASQUERADING)
    there = [Connection(net, family) for family in Family]
    assert [one.seen for one in there] == [NODE[family] for family in Family]
    others = range(2000, 2000 + PLACES - held("flows"))
    put("flows", Family.IPV4, others, 1000)
    for family in Family:
        with pytest.raises(TimeoutError):
            Connection(net, family, patience=1)
        assert backend.counters()[family, "out_dropped_table"] >= 1
    for one in there:
        one.exchange(b"z" * 100_000)
    assert backend.usage().tables[0].fill == 1
    put("flows", Family.IPV4, others, -10)
    assert backend.sweep() > 0
    for family in Family:
        assert Connection(net, family).seen == NODE[family]
    clean(backend, Family)
