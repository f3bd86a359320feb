"""What the benchmark measures is right, and what went wrong gives no figure."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipmasq_agent.bench import equality, machine
from ipmasq_agent.bench.machine import Ends
from ipmasq_agent.bench.modes import MODES
from ipmasq_agent.bench.node import AgentOnNode
from ipmasq_agent.bench.policies import BlockPolicy
from ipmasq_agent.bench.rig import Rig
from ipmasq_agent.bench.udp import Udp
from ipmasq_agent.bench.workload import Measured
from ipmasq_agent.bench.workloads import connections, latency, streams
from ipmasq_agent.bench.workloads.change import change
from ipmasq_agent.bench.workloads.flows import flows
from ipmasq_agent.bench.workloads.packets import packets
from ipmasq_agent.errors import BenchError
from ipmasq_agent.policy.addresses import Family
from tests.waiting import wait_until

AGENT = (sys.executable, "-m", "ipmasq_agent")
FLOWS = 2000
BY_NAME = {mode.name: mode for mode in MODES}


@pytest.fixture(params=list(Family), ids=lambda family: family.value)
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    with Rig(request.param, tmp_path, tracking=False) as made:
        yield made


def lose(rig: Rig) -> None:
    """Lose one in twenty of the packets that leave the node for the world.

    As netem does, which not every kernel has.
    """
    chain = "type filter hook egress device eth0 priority 0; numgen random mod 20 0 drop;"
    rig.node.run("nft", f"table netdev lossy {{ chain c {{ {chain} }}; }}")


@pytest.mark.parametrize("name", [mode.name for mode in MODES])
def test_every_mode_decides_as_its_document_says(rig: Rig, name: str) -> None:
    mode, policy = BY_NAME[name], BlockPolicy(rig.family, 64 if BY_NAME[name].backend else 0)
    if mode.backend is not None:
        assert AgentOnNode(rig, AGENT, mode.backend).load(policy) > 0
    found = equality.check(rig, mode, policy)
    assert found.wrong == ()
    assert found.destinations >= 8
    values = {
        reading.measure: reading
        for reading in flows(Udp(rig, masqueraded=mode.backend is not None), FLOWS)
    }
    assert {reading.problem for reading in values.values()} == {None}
    assert (values["flows"].value or 0) > 100
    assert list(values) == ["flows", "flows-cpu"]


def test_a_missing_rule_is_caught_by_packets(rig: Rig) -> None:
    mode, policy = BY_NAME["iptables-nft"], BlockPolicy(rig.family, 64)
    AgentOnNode(rig, AGENT, "iptables-nft").load(policy)
    program = "iptables-nft" if rig.family is Family.IPV4 else "ip6tables-nft"
    first = rig.family.show(1 << 24 if rig.family is Family.IPV4 else 0xFD << 120)
    length = 28 if rig.family is Family.IPV4 else 64
    rule = ["IP-MASQ", "-d", f"{first}/{length}", "-j", "RETURN"]
    listed = rig.node.run(program, "-t", "nat", "-S", "IP-MASQ").splitlines()
    (spec,) = (line.split() for line in listed if f"{rule[2]} " in line)
    rig.node.run(program, "-t", "nat", "-D", *spec[1:])
    wrong = equality.check(rig, mode, policy).wrong
    assert len(wrong) == 4  # its first and its last address, by UDP and by TCP
    assert all("seen" in one for one in wrong)


def test_a_mode_that_does_nothing_is_caught_by_its_packets(rig: Rig) -> None:
    for reading in flows(Udp(rig, masqueraded=True), FLOWS):
        assert reading.value is None
        assert reading.problem == f"{FLOWS:,} of {FLOWS:,} packets had the wrong source"


def test_lost_packets_give_no_figure(rig: Rig) -> None:
    lose(rig)
    sent = Udp(rig, masqueraded=False)
    for reading in (*flows(sent, FLOWS), packets(sent, FLOWS)):
        assert reading.value is None
        assert "packets were lost" in (reading.problem or "")


def test_packets_of_one_flow(rig: Rig) -> None:
    reading = packets(Udp(rig, masqueraded=False), 5000)
    assert reading.problem is None
    assert (reading.value or 0) > 1000


def test_a_mode_takes_turns_with_another_one(rig: Rig, tmp_path: Path) -> None:
    with Rig(rig.family, tmp_path / "beside", tracking=True) as other:
        beside = Udp(other, masqueraded=False, whose="in the rig beside: ")
        rate, cpu = flows(Udp(rig, masqueraded=False), FLOWS, beside)
        assert rate.problem is cpu.problem is None
        assert 0.1 < (rate.ratio or 0) < 10
        lose(other)
        for reading in flows(Udp(rig, masqueraded=False), FLOWS, beside):
            assert reading.value is None
            assert re.match(r"in the rig beside: .* were lost", reading.problem or "")
        other.pod.run("ip", "link", "set", "eth0", "down")
        with pytest.raises(BenchError, match="in the rig beside: packets cannot be sent"):
            list(flows(Udp(rig, masqueraded=False), FLOWS, beside))


def test_a_sender_that_cannot_send_says_why(rig: Rig) -> None:
    rig.pod.run("ip", "link", "set", "eth0", "down")
    with pytest.raises(BenchError, match=r"(?s)cannot be sent: .*unreachable"):
        list(flows(Udp(rig, masqueraded=False), FLOWS))


def test_connections(rig: Rig) -> None:
    reading = connections.connections(rig, Ends(), 1)
    assert reading.problem is None
    assert (reading.value or 0) > 100


def test_segments_that_are_lost_give_no_figure(rig: Rig) -> None:
    lose(rig)
    reading = connections.connections(rig, Ends(), 1)
    assert reading.value is None
    assert "segments were sent again" in (reading.problem or "")


def test_throughput_and_its_cpu(rig: Rig) -> None:
    readings = {r.measure: r for r in streams.streams(rig, Ends(), 1)}
    assert list(readings) == ["stream", "stream-cpu", "streams"]
    assert all(reading.problem is None for reading in readings.values())
    assert all((readings[name].value or 0) > 1e6 for name in ("stream", "streams"))


def test_half_load_where_packets_are_lost_is_half_of_the_lowest_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "_FEWEST_REQUESTS", 1000.0)
    with Rig(Family.IPV4, tmp_path, tracking=False) as rig:
        lose(rig)
        assert latency.half_load(rig, Ends()) == 500.0


@pytest.mark.parametrize(("most", "half"), [(900, 500.0), (3000, 1000.0), (10**9, 2000.0)])
def test_half_load_is_half_of_the_highest_rate_that_goes_without_loss(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, most: float, half: float
) -> None:
    # How much a machine can take depends on what else it does; here it is said.
    def losing(rig: Rig, ends: Ends, rate: float, seconds: float) -> list[Measured]:
        return [Measured("latency-p50", 1.0, "lost" if rate > most else None)]

    monkeypatch.setattr(latency, "_FEWEST_REQUESTS", 1000.0)
    monkeypatch.setattr(latency, "_MOST_REQUESTS", 4000.0)
    monkeypatch.setattr(latency, "latency", losing)
    assert latency.half_load(rig, Ends()) == half


def test_latency(rig: Rig) -> None:
    told = rig.pod.run("sockperf", "--version")
    assert latency.speaks(rig) == (rig.family is Family.IPV4 or "3.7" not in told)
    if latency.speaks(rig):
        median, worst = latency.latency(rig, Ends(), 200, 1)
        assert (median.measure, worst.measure) == ("latency-p50", "latency-p99")
        assert median.problem is worst.problem is None
        assert 0 < (median.value or 0) <= (worst.value or 0) < 1


def test_a_starved_receiver_gives_no_figure(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    for each in (connections, latency, streams):
        monkeypatch.setattr(each, "SLACK", 1.0)
    serving = rig.world.serving

    def starved(argv: list[str], protocol: str, port: int) -> object:
        """The server, which is stopped once it listens."""

        class Stopped:
            def __enter__(self) -> None:
                self.inner = serving(argv, protocol, port)
                os.kill(self.inner.__enter__().pid, signal.SIGSTOP)

            def __exit__(self, *_: object) -> None:
                self.inner.__exit__(None, None, None)

        return Stopped()

    monkeypatch.setattr(rig.world, "serving", starved)
    readings = [connections.connections(rig, Ends(), 1), *streams.streams(rig, Ends(), 1)]
    readings += latency.latency(rig, Ends(), 200, 1) if latency.speaks(rig) else []
    assert {reading.value for reading in readings} == {None}
    assert all(reading.problem for reading in readings)


@pytest.mark.parametrize("backend", ["nftables", "bpf"])
def test_a_change_holds_after_a_while(rig: Rig, backend: str) -> None:
    reading = change(rig, AgentOnNode(rig, AGENT, backend), BlockPolicy(rig.family, 64))
    assert reading.problem is None
    assert 0 < (reading.value or 0) < 60


def test_a_server_that_does_not_start_says_why(rig: Rig) -> None:
    with (
        pytest.raises(BenchError, match=r"does not serve: .*bogus"),
        rig.world.serving(["ls", "--bogus"], "tcp", 80),
    ):
        pass


def test_the_nodes_work_can_be_kept_off_the_cpus_of_the_ends(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert (machine.node_cpus(), machine.ends()) == (0, Ends())
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert (machine.node_cpus(), machine.ends()) == (0b111111, Ends("6", "7"))
    rig.steer(1)
    said = rig.node.run("sh", "-c", "cat /sys/class/net/*/queues/rx-*/rps_cpus").split()
    assert {int(mask.replace(",", ""), 16) for mask in said} == {1}
    assert len(said) >= 3  # lo, and both devices of the node


def test_a_rig_leaves_nothing(tmp_path: Path) -> None:
    with Rig(Family.IPV4, tmp_path, tracking=True) as rig:
        held = [host.pid for host in (rig.pod, rig.node, rig.world)]
        rig.world.start("sleep", "1000")
    assert not any(Path(f"/proc/{pid}").exists() for pid in held)


def test_a_rig_goes_with_who_made_it_however_that_ends(tmp_path: Path) -> None:
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from ipmasq_agent.bench.rig import Rig\n"
        "from ipmasq_agent.policy.addresses import Family\n"
        "rig = Rig(Family.IPV4, Path(sys.argv[1]), tracking=False)\n"
        "server = rig.world.start('sleep', '1000')\n"
        "print(rig.pod.pid, rig.node.pid, rig.world.pid, server.pid, flush=True)\n"
        "time.sleep(1000)\n"
    )
    argv = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        held = process.stdout.readline().split()
        process.kill()
    assert len(held) == 4
    wait_until(lambda: not any(Path("/proc", pid).exists() for pid in held), "all have ended")


def test_a_socket_is_of_its_host(rig: Rig) -> None:
    here = os.stat("/proc/self/ns/net").st_ino
    with rig.world.socket(rig.family, socket.SOCK_STREAM) as server:
        server.bind(("", 4321))
        server.listen()
        assert rig.world.listens("tcp", 4321)
        assert not rig.pod.listens("tcp", 4321)
    assert os.stat("/proc/self/ns/net").st_ino == here
