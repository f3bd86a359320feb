"""The verb `observe`, on nodes where pods really talk."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ipmasq_agent.planes.live import live_flows
from ipmasq_agent.policy.addresses import Family
from tests.kernel.agent import status_of
from tests.kernel.attacks.site import PLANS, site
from tests.kernel.running import Running
from tests.kernel.talked import PODS, Said, as_said, in_force, talking
from tests.netns import Namespace
from tests.waiting import DEADLINE, wait_until

PLANES = pytest.mark.parametrize("plane", ["iptables-nft", "nftables", "bpf"])
FAMILIES = pytest.mark.parametrize("family", list(Family), ids=lambda family: family.value)


def names(place: Path, family: Family) -> Path:
    """Write a file with the names of the pods."""
    path = place / "pods"
    lines = (f"{PLANS[family].pod(n)} default/pod-{n}\n" for n in range(PODS))
    path.write_text("# made up\n" + "".join(lines))
    return path


class Observer:
    """The verb as a process, which listens once it is there; what it said, once it has ended."""

    def __init__(self, *words: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ipmasq_agent", "observe", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        while "Ctrl-C" not in line:  # notes come before it
            assert line, "it has ended"
            line = self.process.stderr.readline()

    def end(self) -> tuple[str, str]:
        """End it as a terminal does; return what it wrote to either stream."""
        self.process.send_signal(signal.SIGINT)
        out, err = self.process.communicate(timeout=DEADLINE)
        assert self.process.returncode == 0, err
        return out, err


@contextlib.contextmanager
def observing(*words: str) -> Iterator[Observer]:
    observer = Observer(*words)
    try:
        yield observer
    finally:
        observer.process.kill()
        observer.process.communicate()


def as_told(data: dict[str, Any]) -> Said:
    """Return what a test compares of an object that was printed."""
    ((layer, ports),) = data["l4"].items()
    protocol = {"TCP": "tcp", "UDP": "udp", "ICMPv4": "icmp", "ICMPv6": "icmpv6"}[layer]
    return Said(
        protocol,
        (data["IP"]["source"], ports.get("source_port", ports.get("id"))),
        (data["IP"]["destination"], ports.get("destination_port", 0)),
        (data["left_as"]["address"], data["left_as"]["port"]),
    )


@PLANES
@FAMILIES
def test_each_connection_is_told_with_its_pod_and_with_what_decides(
    plane: str, family: Family, tmp_path: Path
) -> None:
    plan = PLANS[family]
    with (
        site(PODS, 2) as where,
        in_force(where, plane),
        observing("--backend", plane, "--pods", str(names(tmp_path, family)), "-o", "json") as told,
    ):
        with talking(where, family, 4) as said:
            out, err = told.end()
        objects = [json.loads(line) for line in out.splitlines()]
        assert {as_told(data) for data in objects} == said
        assert err.splitlines()[-1].startswith(f"{len(said)} connections seen, {len(said)} shown, ")
        assert " 0 missed" in err
    for data in objects:
        pod = next(n for n in range(PODS) if plan.pod(n) == data["IP"]["source"])
        assert data["source"] == {"namespace": "default", "pod_name": f"pod-{pod}"}
        kept = data["IP"]["destination"] == plan.server(1)
        assert data["verdict"] == ("keep" if kept else "masquerade")
        # The kept server's prefix is what decides about it, and about nothing else.
        assert (plan.server(1) in data["reason"]) == kept, data["reason"]
        assert data["time"].endswith("Z")


@PLANES
@FAMILIES
def test_who_had_an_address_and_port_is_told_from_what_lives(
    plane: str, family: Family, capsys: pytest.CaptureFixture[str]
) -> None:
    with site(PODS, 2) as where, in_force(where, plane), talking(where, family, 4) as said:
        for each in sorted(said)[::6]:
            shown = [one for one in said if one.heard == each.heard]
            assert was(plane, each, capsys) == (0, set(shown))
        nobody = Said("udp", ("", 0), ("", 0), (PLANS[family].node, 1))
        assert was(plane, nobody, capsys) == (1, set())


def was(
    plane: str, said: Said, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[int, set[Said]]:
    """Ask who had an address and port; return the status, and all that are answered."""
    address, port = said.heard
    end = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    status = status_of("observe", "--backend", plane, "--was", end, "-o", "json", *words)
    printed = capsys.readouterr().out
    return status, {as_told(json.loads(line)) for line in printed.splitlines()}


@pytest.mark.long
@pytest.mark.parametrize("plane", ["iptables-legacy", "iptables-nft", "nftables", "bpf"])
@FAMILIES
def test_who_had_any_of_ten_thousand(
    plane: str, family: Family, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        site(PODS, 2) as where,
        in_force(where, plane) as at_work,
        talking(where, family, 2500, echoes=5000) as said,
    ):
        translated = {one for one in said if one.heard[0] != one.source[0]}
        assert len(translated) >= 10_000
        live = [as_said(flow) for flow in live_flows(at_work) if flow.translated]
        assert len(live) == len(set(live))
        assert translated <= set(live)
        for each in sorted(translated)[::500]:
            _, answered = was(plane, each, capsys)
            assert each in answered
            assert answered == {one for one in said if one.heard == each.heard}


@FAMILIES
def test_filters_leave_what_is_meant(
    family: Family, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, pods = PLANS[family], str(names(tmp_path, family))

    def told(*words: str) -> set[Said]:
        options = ("--backend", "nftables", "--pods", pods, "-o", "json", "--last", "1000")
        assert status_of("observe", *options, *words) == 0
        printed = capsys.readouterr().out.splitlines()
        return {as_told(json.loads(line)) for line in printed}

    with site(PODS, 2) as where, in_force(where, "nftables"), talking(where, family, 4) as said:
        assert told() == said
        assert told("--protocol", "tcp") == {one for one in said if one.protocol == "tcp"}
        assert told("--verdict", "keep") == {one for one in said if one.heard == one.source}
        of_pod = {one for one in said if one.source[0] == plan.pod(1)}
        for pod in ("pod-1", "default/pod-1", plan.pod(1)):
            assert told("--pod", pod) == of_pod
        to = {one for one in said if one.destination[0] == plan.server(0)}
        for prefix in (plan.server(0), f"{plan.server(0)}/{family.bits}"):
            assert told("--to", prefix) == to
        assert told("--port", "7777") == {one for one in said if one.destination[1] == 7777}
        assert told("--port", "80") == set()
        assert len(told("--last", "5")) == 5
        # Of those that are kept no record tells.
        nowhere = ("--record", str(tmp_path / "nowhere"))
        assert told("--verdict", "keep", *nowhere) == told("--verdict", "keep")
        assert status_of("observe", "--backend", "nftables", "--last", "1", *nowhere) == 2
        assert "ask in there: `kubectl exec`" in capsys.readouterr().err


def test_columns_fit_a_terminal_and_are_coloured_only_there(tmp_path: Path) -> None:
    family = Family.IPV4
    with site(PODS, 2) as where, in_force(where, "nftables"), talking(where, family, 2):
        options = ["--backend", "nftables", "--pods", str(names(tmp_path, family)), "--last", "40"]
        argv = [sys.executable, "-m", "ipmasq_agent", "observe", *options]
        plain = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
        assert "\x1b" not in plain
        assert max(map(len, plain.splitlines())) > 120
        for width, environment in ((100, {}), (72, {"NO_COLOR": "1"})):
            shown = on_terminal(argv, width, environment)
            lines = [line.rstrip("\r") for line in shown.splitlines()]
            bare = [re.sub("\x1b.*?m", "", line) for line in lines]
            assert len(lines) == len(plain.splitlines())
            assert max(map(len, bare)) <= width
            assert any("default/pod-" in line and " as 192.0.2.1:" in line for line in bare)
            assert ("\x1b[" in shown) == (not environment)


def on_terminal(argv: list[str], width: int, environment: dict[str, str]) -> str:
    """Run a program on a terminal of so many columns; return what it wrote there."""
    master, slave = os.openpty()
    variables = {**os.environ, "COLUMNS": str(width), **environment}
    child = subprocess.Popen(argv, stdout=slave, stderr=subprocess.DEVNULL, env=variables)
    os.close(slave)
    written = b""
    with contextlib.suppress(OSError):  # the other end is closed once the program has ended
        while some := os.read(master, 65536):
            written += some
    os.close(master)
    assert child.wait() == 0
    return written.decode()


@FAMILIES
@pytest.mark.parametrize("plane", ["iptables-nft", "bpf"])
def test_the_agent_records_and_the_verb_reads_it_when_all_has_ended(
    plane: str, family: Family, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record, document = tmp_path / "record", tmp_path / "config"
    document.write_text("nonMasqueradeCIDRs: [192.0.2.3/32, '2001:db8::3/128']")
    with site(PODS, 2) as where, where.node.entered():
        agent = Running(
            tmp_path / "log",
            *("run", "--config", str(document), "--enable-ipv6", "--backend", plane),
            *("--record", record.name),
            under=("/usr/bin/env", "-C", str(tmp_path)),
        )
        try:
            agent.wait_ready()
            wait_until(lambda: listens(agent.process.pid, plane), "it listens")
            with talking(where, family, 4) as said:
                translated = {one for one in said if one.heard[0] != one.source[0]}
                wait_until(lambda: count(record) >= len(translated), "all are recorded")
            # The agent tells where its record is, wherever it is asked from.
            assert status_of("observe", "--last", "9", "-o", "json") == 0
            lasted = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
            assert len({as_told(data) for data in lasted} & translated) == 9
            assert agent.stop() == 0
        finally:
            agent.process.kill()
            agent.process.wait()
        assert count(record) == len(translated)
        where.node.run(["conntrack", "-F"], check=False)
        for each in sorted(translated)[::5]:
            then = {one for one in translated if one.heard == each.heard}
            for at, expected in (("2999-01-01", (0, then)), ("2000-01-01", (2, set()))):
                words = ("--record", str(record), "--at", at)
                assert was(plane, each, capsys, *words) == expected


def test_a_record_that_cannot_be_written_harms_nothing_and_is_told(tmp_path: Path) -> None:
    document = tmp_path / "config"
    document.write_text("nonMasqueradeCIDRs: [192.0.2.3/32]")
    with site(PODS, 2) as where, where.node.entered():
        agent = Running(
            tmp_path / "log",
            *("run", "--config", str(document), "--backend", "nftables", "--record", "/dev/full"),
        )
        try:
            agent.wait_ready()
            wait_until(lambda: listens(agent.process.pid, "nftables"), "it listens")
            with talking(where, Family.IPV4, 1):
                wait_until(lambda: agent.status()["advice"], "it tells")
            assert agent.status()["advice"] == [
                "translations are not recorded: No space left on device"
            ]
            assert agent.ready()
            assert agent.stop() == 0
        finally:
            agent.process.kill()
            agent.process.wait()
        assert (tmp_path / "log").read_text().count("translations are not recorded") == 1


RECORD = """\
2026-11-27T14:00:00.000Z listening
2026-11-27T14:01:00.000Z udp 172.20.0.10:4000 192.0.2.2:53 192.0.2.1:4000
2026-11-27T14:02:10.000Z udp 172.20.0.11:4000 192.0.2.2:53 192.0.2.1:4000
2026-11-27T14:02:40.000Z udp 172.20.0.12:4000 192.0.2.2:53 192.0.2.1:4000
2026-11-27T14:30:00.000Z listening
2026-11-27T14:31:00.000Z tcp 172.20.0.13:4000 192.0.2.2:53 192.0.2.1:4000
"""


@pytest.mark.parametrize(
    ("end", "at", "status", "pods", "said"),
    [
        ("192.0.2.1:4000", "2026-11-27T13:59Z", 2, [], "not known: the record"),
        ("192.0.2.1:9", "2026-11-27T13:59Z", 2, [], "begins at"),
        ("192.0.2.1:4000", "2026-11-27T14:00Z", 1, [], "nobody is recorded with it by"),
        ("192.0.2.1:4000", "2026-11-27T14:02:20Z", 0, [11], ""),
        ("192.0.2.1:4000", "2026-11-27T14:02Z", 0, [12, 11, 10], ""),  # whoever had it meanwhile
        ("192.0.2.1:4000", "2026-11-27 14:02:41Z", 0, [12], ""),
        ("192.0.2.1:4000", "2026-11-27T14:30:01Z", 0, [12], "nobody recorded for a while"),
        ("192.0.2.1:9", "2026-11-27T14:30:01Z", 1, [], "nobody recorded for a while"),
        ("192.0.2.1:4000", "2026-11-28", 0, [13, 12], "nobody recorded for a while"),
    ],
)
def test_what_the_record_cannot_know_is_not_taken_for_nobody(
    in_ns: Namespace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    end: str,
    at: str,
    status: int,
    pods: list[int],
    said: str,
) -> None:
    # The first lines were rotated away; who asks about one end is told by all.
    newest, older = tmp_path / "record", tmp_path / "record.1"
    lines = RECORD.splitlines(keepends=True)
    older.write_text("".join(lines[:3]))
    newest.write_text("".join(lines[3:]))
    words = ("--was", end, "--record", str(newest), "--at", at, "-o", "json")
    assert status_of("observe", "--backend", "nftables", *words) == status
    out, err = capsys.readouterr()
    objects = [json.loads(line) for line in out.splitlines()]
    assert [data["IP"]["source"] for data in objects] == [f"172.20.0.{n}" for n in pods]
    assert said in err if said else not err


def count(record: Path) -> int:
    lines = record.read_text().splitlines() if record.exists() else []
    return sum(not line.endswith(" listening") for line in lines)


def listens(pid: int, plane: str) -> bool:
    """Whether the agent has begun to listen: to netlink's group, or with a ring of its own."""
    if plane == "bpf":
        return any("bpf-map" in target and ring(pid, number) for number, target in opened(pid))
    sockets = Path(f"/proc/{pid}/net/netlink").read_text().splitlines()[1:]
    fields = (line.split() for line in sockets)
    return any(words[1] == "12" and int(words[3], 16) & 1 for words in fields)


def opened(pid: int) -> Iterator[tuple[str, str]]:
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            yield path.name, os.readlink(path)


def ring(pid: int, number: str) -> bool:
    with contextlib.suppress(OSError):
        return "map_type:\t27\n" in Path(f"/proc/{pid}/fdinfo/{number}").read_text()
    return False
