"""New flows a second through one node, and TCP throughput, mode beside mode.

    .venv/bin/python -m bench.flows [--quick] [--rounds 5] [--packets 100000]

No NAT, iptables, sets and eBPF. A pod sends UDP packets as fast as it can, each to another
port or address and so each a new flow; the world counts what arrives, with the source that
it should have. Their destinations lie between the CIDRs of the largest policy, so that tries
and sets are searched to the end. Tables of flows begin empty and are larger than a run, but
where a mode says otherwise. Then one TCP stream of iperf3 from the pod to the world.

Modes take turns (A B C A B C), figures are medians of the rounds, and ratios are to no NAT
without connection tracking of the same round. CPU time is that of the whole machine. The
time of the eBPF program at egress is from packets of their own, as to measure it slows it
down. A run in which less than 99.5 % arrives gives no figure. All of it happens in network
namespaces that end with the program.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from bench.scale import FLAGS, document
from bench.support import (
    busy_seconds,
    inside_namespace,
    last_cpu,
    machine,
    program_time,
    timed_programs,
)
from ipmasq_agent.agent.reconcile import clean, reconcile_family
from ipmasq_agent.backends import detect
from ipmasq_agent.config.document import parse_document
from ipmasq_agent.dialects.iptables import Placement
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.assemble import assemble_family
from ipmasq_agent.policy.model import FamilyPolicy

DELIVERED = 0.995
POD, NODE, WORLD = "172.20.0.10", "192.0.2.1", "192.0.2.2"
TRACKING = "table inet tracking { chain c { type filter hook forward priority 0; ct state new; }; }"
STREAM_SECONDS = 5
# 250 addresses, each right behind a CIDR of `document`, which has a /28 in each /27 from
# 1.0.0.0 on: one in 400 of the first 100,000. Times the ports that are needed.
_SENDER = r"""
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#define BATCH 64
int main(int argc, char **argv) {
    long left = atol(argv[1]), number = atol(argv[2]);
    int out = socket(AF_INET, SOCK_DGRAM, 0);
    static struct sockaddr_in to[BATCH];
    static struct mmsghdr message[BATCH];
    struct iovec one = {"x", 1};
    struct timespec began, ended;
    clock_gettime(CLOCK_MONOTONIC, &began);
    while (left > 0) {
        for (int n = 0; n < BATCH; n++, number++) {
            to[n].sin_family = AF_INET;
            to[n].sin_addr.s_addr = htonl(0x01000010 + number % 250 * 400 * 32);
            to[n].sin_port = htons(1 + number / 250 % 65535);
            message[n].msg_hdr.msg_name = &to[n];
            message[n].msg_hdr.msg_namelen = sizeof(to[n]);
            message[n].msg_hdr.msg_iov = &one;
            message[n].msg_hdr.msg_iovlen = 1;
        }
        int sent = sendmmsg(out, message, BATCH, 0);
        if (sent < 0) { perror("sendmmsg"); return 1; }
        number -= BATCH - sent;
        left -= sent;
    }
    clock_gettime(CLOCK_MONOTONIC, &ended);
    printf("%.9f", ended.tv_sec - began.tv_sec + (ended.tv_nsec - began.tv_nsec) / 1e9);
    return 0;
}
"""


@dataclass(frozen=True)
class Mode:
    """A way to masquerade; without a backend nothing is.

    Attributes:
        flows: places in the table of the eBPF data plane; None for what suits the machine.
        quick, stream: it is measured with --quick, and with a TCP stream.
    """

    label: str
    backend: str | None = None
    cidrs: int = 0
    tracking: bool = False
    flows: int | None = None
    quick: bool = False
    stream: bool = False


MODES = (
    Mode("no NAT", quick=True, stream=True),
    Mode("no NAT, connections tracked", tracking=True),
    Mode("iptables-nft, 3 CIDRs", "iptables-nft", 3),
    Mode("iptables-nft, 64 CIDRs", "iptables-nft", 64, quick=True, stream=True),
    Mode("iptables-nft, 1,000 CIDRs", "iptables-nft", 1000),
    Mode("ipset, 10,000 CIDRs", "ipset-nft", 10_000),
    Mode("nftables, 10,000 CIDRs", "nftables", 10_000),
    Mode("bpf, 3 CIDRs", "bpf", 3),
    Mode("bpf, 64 CIDRs", "bpf", 64, quick=True, stream=True),
    Mode("bpf, 10,000 CIDRs", "bpf", 10_000),
    Mode("bpf, 100,000 CIDRs", "bpf", 100_000),
    Mode("bpf, 64 CIDRs, table of flows full", "bpf", 64, flows=1 << 14),
    Mode("bpf, 64 CIDRs, connections tracked", "bpf", 64, tracking=True, quick=True),
)


@dataclass(frozen=True)
class Figures:
    """What one run gave; None where packets were lost, or there is nothing to measure."""

    rate: float | None  # flows a second
    cpu: float  # microseconds a flow
    program: float | None  # nanoseconds of the eBPF program a packet
    stream: float | None  # Gbit/s


class Place:
    """The node, in whose namespace we are, with a pod and a world of processes' own."""

    def __init__(self, stack: contextlib.ExitStack, place: Path) -> None:
        self.pins = place / "bpf"
        self.pins.mkdir()
        # Of this mount namespace alone, which ends with us.
        _run("mount", "-t", "bpf", "bpf", str(self.pins))
        stack.callback(_run, "umount", str(self.pins))
        self.sender = place / "sender"
        source = place / "sender.c"
        source.write_text(_SENDER)
        _run("gcc", "-O2", "-o", str(self.sender), str(source))
        self.pod, self.world = (stack.enter_context(_namespace()) for _ in range(2))
        for device, peer in (("cali0", self.pod), ("eth0", self.world)):
            _run("ip", "link", "add", device, "type", "veth", "peer", "eth0", "netns", str(peer))
            _run("ip", "link", "set", device, "up")
            self.inside(peer, "ip", "link", "set", "eth0", "up")
        _run("ip", "address", "add", "172.20.0.1/24", "dev", "cali0")
        _run("ip", "address", "add", f"{NODE}/24", "dev", "eth0")
        _run("ip", "route", "add", "default", "via", WORLD)
        _run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        self.inside(self.pod, "ip", "address", "add", f"{POD}/24", "dev", "eth0")
        self.inside(self.pod, "ip", "route", "add", "default", "via", "172.20.0.1")
        self.inside(self.world, "ip", "address", "add", f"{WORLD}/24", "dev", "eth0")
        self.inside(self.world, "ip", "route", "add", "default", "via", NODE)
        counters = "".join(
            f"ip saddr {source} udp dport 1-65535 counter name {name} drop; "
            for name, source in (("pod", POD), ("node", NODE))
        )
        table = (
            "table ip seen { counter pod {}; counter node {}; chain c "
            f"{{ type filter hook prerouting priority raw; {counters}}}; }}"
        )
        self.inside(self.world, "nft", table)
        self._number = 0
        self._policies: dict[str, FamilyPolicy] = {}

    def inside(self, process: int, *argv: str) -> str:
        """Run a program in the namespace of a process."""
        return _run("nsenter", "--net", "--target", str(process), *argv)

    def arrived(self) -> dict[str, int]:
        """Return how many packets have arrived from the pod's address, and from the node's."""
        listed = json.loads(self.inside(self.world, "nft", "-j", "list", "counters"))["nftables"]
        return {c["counter"]["name"]: c["counter"]["packets"] for c in listed if "counter" in c}

    def send(self, mode: Mode, packets: int) -> float | None:
        """Return for how many seconds the pod was sending; None where packets are lost."""
        before = self.arrived()
        argv = [*last_cpu(), str(self.sender), str(packets), str(self._number)]
        took = float(self.inside(self.pod, *argv))
        self._number += packets
        source = "pod" if mode.backend is None else "node"
        arrived = self.arrived()[source] - before[source]
        return took if arrived >= DELIVERED * packets else None

    def measure(self, mode: Mode, packets: int) -> Figures:
        """Measure the mode that is in force."""
        self.send(mode, packets // 10)  # warm-up
        busy = busy_seconds()
        took = self.send(mode, packets)
        cpu = (busy_seconds() - busy) / packets * 1e6
        program = self._time_of_program(mode, packets // 4) if mode.backend == "bpf" else None
        stream = self._stream() if mode.stream else None
        return Figures(packets / took if took else None, cpu, program, stream)

    def _time_of_program(self, mode: Mode, packets: int) -> float:
        path = self.pins / "pins" / "outward"
        before = program_time(path)
        with timed_programs():
            self.send(mode, packets)
        took, runs = (a - b for a, b in zip(program_time(path), before, strict=True))
        return took / runs

    def _stream(self) -> float:
        """Return Gbit/s of one TCP stream from the pod to the world."""
        server = subprocess.Popen(
            ["nsenter", "--net", "--target", str(self.world), "iperf3", "-s", "-1"],
            stdout=subprocess.DEVNULL,
        )
        try:
            while ":5201" not in self.inside(self.world, "ss", "-Htln"):
                time.sleep(0.01)
            argv = [*last_cpu(), "iperf3", "-J", "-c", WORLD, "-t", str(STREAM_SECONDS)]
            told = json.loads(self.inside(self.pod, *argv))
            server.wait(10)
        finally:
            server.kill()
            server.wait()
        return float(told["end"]["sum_received"]["bits_per_second"]) / 1e9

    @contextlib.contextmanager
    def in_mode(self, mode: Mode) -> Iterator[None]:
        """Have the node masquerade that way while the block runs."""
        if mode.tracking:
            _run("nft", TRACKING)
        backend = None
        if mode.backend is not None:
            placement = Placement(pins=str(self.pins / "pins"), flows=mode.flows)
            backend = detect.make(mode.backend, placement)
            if mode.label not in self._policies:
                text = document(Family.IPV4, mode.cidrs)
                wish = parse_document(text.encode(), "bench", FLAGS).config.wish(FLAGS)
                capabilities = backend.capabilities(Family.IPV4)
                policy = assemble_family(wish, Family.IPV4, capabilities)
                self._policies[mode.label] = policy
            reconcile_family(backend, Family.IPV4, self._policies[mode.label])
        try:
            yield
        finally:
            if backend is not None:
                clean(backend, Family)
                backend.close()
            # The empty chains that iptables leaves are a detour for each packet after it, and
            # what one mode tracked is not to be found by the next one.
            _run("nft", "flush ruleset")
            _run("conntrack", "-F")


@contextlib.contextmanager
def _namespace() -> Iterator[int]:
    """Hold a network namespace by a process that sleeps in it."""
    process = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
    try:
        # It is there once the process has left ours.
        ours = Path("/proc/self/ns/net").readlink()
        while Path(f"/proc/{process.pid}/ns/net").readlink() == ours:
            time.sleep(0.01)
        yield process.pid
    finally:
        process.kill()
        process.wait()


def _run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(argv)} exited with {done.returncode}: {done.stderr}")
    return done.stdout


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _cell(value: float | None, form: str, width: int) -> str:
    return f"{'-' if value is None else format(value, form):>{width}}"


def _ratios(runs: Sequence[Figures], references: Sequence[Figures], what: str) -> list[float]:
    """Return how a mode compares to no NAT, round by round."""
    pairs = [(getattr(r, what), getattr(o, what)) for r, o in zip(runs, references, strict=True)]
    return [value / of for value, of in pairs if value and of]


def _spread(ratios: Sequence[float]) -> str:
    if not ratios:
        return f"{'-':>6}"
    return f"{statistics.median(ratios):6.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def report(found: dict[Mode, list[Figures]]) -> list[str]:
    """Return the tables of all that was measured; the first mode is what others compare to."""
    references = next(iter(found.values()))
    lines = [f"{'':36} flows/s  us of CPU  ns of program   ratio to no NAT (lowest-highest)"]
    for mode, runs in found.items():
        good = [run for run in runs if run.rate]
        lost = len(runs) - len(good)
        lines.append(
            f"{mode.label:36}"
            + _cell(_median([run.rate for run in good if run.rate]), ",.0f", 8)
            + _cell(_median([run.cpu for run in good]), ".2f", 11)
            + _cell(_median([run.program for run in good if run.program]), ",.0f", 15)
            + f"   {_spread(_ratios(runs, references, 'rate'))}"
            + (f"  packets were lost in {lost} of {len(runs)} rounds" if lost else "")
        )
    lines += ["", f"{'one TCP stream':36}  Gbit/s   ratio to no NAT (lowest-highest)"]
    for mode, runs in found.items():
        speeds = [run.stream for run in runs if run.stream]
        if speeds:
            ratios = _spread(_ratios(runs, references, "stream"))
            lines.append(f"{mode.label:36}{_cell(_median(speeds), '.2f', 8)}   {ratios}")
    return lines


def main() -> None:
    """Measure, and print tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="four modes, one round")
    parser.add_argument("--rounds", type=int, default=5, help="how often each mode has its turn")
    parser.add_argument("--packets", type=int, default=100_000, help="new flows in each run")
    options = parser.parse_args()
    inside_namespace()
    load = os.getloadavg()[0]
    modes = [mode for mode in MODES if mode.quick or not options.quick]
    rounds = 1 if options.quick else options.rounds
    found: dict[Mode, list[Figures]] = {mode: [] for mode in modes}
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        node = Place(stack, Path(place))
        for number in range(rounds):
            for mode in modes:
                print(f"round {number + 1} of {rounds}: {mode.label:40}", end="\r", flush=True)
                with node.in_mode(mode):
                    found[mode].append(node.measure(mode, options.packets))
    shared = "the sender has a CPU" if last_cpu() else "all share the CPUs"
    print(f"{'':60}\r{machine()}, {rounds} rounds, {datetime.now():%Y-%m-%d}")
    print(f"load before it {load:.2f}, {shared}, {options.packets:,} flows a run\n")
    print("\n".join(report(found)))


if __name__ == "__main__":
    main()
