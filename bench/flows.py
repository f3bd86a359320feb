"""New flows a second through one node, mode beside mode: no NAT, iptables, sets, eBPF.

    .venv/bin/python -m bench.flows [--quick] [--rounds 5] [--packets 300000]

A pod sends UDP packets as fast as it can, each to another port or address and so each a new
flow; the world counts what arrives, with the source that it should have. Modes take turns
(A B C A B C), figures are medians of the rounds, and ratios are to no NAT without connection
tracking of the same round. A run in which less than 99.5 % arrives gives no figure. All of
it happens in network namespaces that end with the program.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from bench.scale import FLAGS, document
from bench.support import inside_namespace, machine
from ipmasq_agent.agent.reconcile import clean, reconcile_family
from ipmasq_agent.backends import detect
from ipmasq_agent.config.document import parse_document
from ipmasq_agent.dialects.iptables import Placement
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.assemble import assemble_family

DELIVERED = 0.995
POD, NODE = "172.20.0.10", "192.0.2.1"
TRACKING = "table inet tracking { chain c { type filter hook forward priority 0; ct state new; }; }"
# 250 addresses of 198.18.0.0/15, the network of RFC 2544, times the ports that are needed.
_SENDER = r"""
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#define BATCH 64
int main(int argc, char **argv) {
    long left = atol(argv[1]), number = atol(argv[2]);
    int out = socket(AF_INET, SOCK_DGRAM, 0);
    static struct sockaddr_in to[BATCH];
    static struct mmsghdr message[BATCH];
    struct iovec one = {"x", 1};
    while (left > 0) {
        for (int n = 0; n < BATCH; n++, number++) {
            to[n].sin_family = AF_INET;
            to[n].sin_addr.s_addr = htonl(0xC6120001 + number % 250);
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
    return 0;
}
"""


@dataclass(frozen=True)
class Mode:
    """A way to masquerade; without a backend nothing is."""

    label: str
    backend: str | None = None
    cidrs: int = 0
    tracking: bool = False


MODES = (
    Mode("no NAT"),
    Mode("no NAT, connections tracked", tracking=True),
    Mode("iptables-nft, 3 CIDRs", "iptables-nft", 3),
    Mode("iptables-nft, 64 CIDRs", "iptables-nft", 64),
    Mode("iptables-nft, 1,000 CIDRs", "iptables-nft", 1000),
    Mode("ipset, 10,000 CIDRs", "ipset-nft", 10_000),
    Mode("nftables, 10,000 CIDRs", "nftables", 10_000),
    Mode("bpf, 3 CIDRs", "bpf", 3),
    Mode("bpf, 64 CIDRs", "bpf", 64),
    Mode("bpf, 10,000 CIDRs", "bpf", 10_000),
    Mode("bpf, 100,000 CIDRs", "bpf", 100_000),
    Mode("bpf, 64 CIDRs, connections tracked", "bpf", 64, tracking=True),
)
QUICK = {"no NAT", "iptables-nft, 64 CIDRs", "bpf, 64 CIDRs", "bpf, 64 CIDRs, connections tracked"}


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
        _run("ip", "route", "add", "default", "via", "192.0.2.2")
        _run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        self.inside(self.pod, "ip", "address", "add", f"{POD}/24", "dev", "eth0")
        self.inside(self.pod, "ip", "route", "add", "default", "via", "172.20.0.1")
        self.inside(self.world, "ip", "address", "add", "192.0.2.2/24", "dev", "eth0")
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

    def inside(self, process: int, *argv: str) -> str:
        """Run a program in the namespace of a process."""
        return _run("nsenter", "--net", "--target", str(process), *argv)

    def arrived(self) -> dict[str, int]:
        """Return how many packets have arrived from the pod's address, and from the node's."""
        listed = json.loads(self.inside(self.world, "nft", "-j", "list", "counters"))["nftables"]
        return {c["counter"]["name"]: c["counter"]["packets"] for c in listed if "counter" in c}

    def rate(self, mode: Mode, packets: int) -> tuple[float, float] | None:
        """Return flows a second and microseconds of CPU a flow; None where packets are lost."""
        before, busy = self.arrived(), _busy()
        began = time.perf_counter()
        self.inside(self.pod, str(self.sender), str(packets), str(self._number))
        took, worked = time.perf_counter() - began, _busy() - busy
        self._number += packets
        after = self.arrived()
        source = "pod" if mode.backend is None else "node"
        if after[source] - before[source] < DELIVERED * packets:
            return None
        return packets / took, worked / packets * 1e6

    @contextlib.contextmanager
    def in_mode(self, mode: Mode) -> Iterator[None]:
        """Have the node masquerade that way while the block runs."""
        if mode.tracking:
            _run("nft", TRACKING)
        backend = None
        if mode.backend is not None:
            backend = detect.make(mode.backend, Placement(pins=str(self.pins / "pins")))
            text = document(Family.IPV4, mode.cidrs)
            wish = parse_document(text.encode(), "bench", FLAGS).config.wish(FLAGS)
            capabilities = backend.capabilities(Family.IPV4)
            policy = assemble_family(wish, Family.IPV4, capabilities)
            reconcile_family(backend, Family.IPV4, policy)
        try:
            yield
        finally:
            if backend is not None:
                clean(backend, Family)
                backend.close()
            if mode.tracking:
                _run("nft", "delete table inet tracking")
            # What an earlier mode tracked is not to be found by the next one.
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


def _busy() -> float:
    """Return the seconds for which all CPUs together were not idle."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / 100


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="four modes, one round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--packets", type=int, default=300_000, help="new flows in each run")
    options = parser.parse_args()
    inside_namespace()
    modes = [mode for mode in MODES if not options.quick or mode.label in QUICK]
    rounds = 1 if options.quick else options.rounds
    figures: dict[str, list[tuple[float, float, float] | None]] = {m.label: [] for m in modes}
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        node = Place(stack, Path(place))
        for number in range(rounds):
            reference = 0.0
            for mode in modes:
                print(f"round {number + 1} of {rounds}: {mode.label:40}", end="\r", flush=True)
                with node.in_mode(mode):
                    node.rate(mode, options.packets // 10)  # warm-up
                    found = node.rate(mode, options.packets)
                if found is None:
                    figures[mode.label].append(None)
                    continue
                reference = reference or found[0]
                figures[mode.label].append((*found, found[0] / reference))
    print(f"{'':60}\r{machine()}, {rounds} rounds, {datetime.now():%Y-%m-%d}\n")
    print(f"{'':36} flows/s    us of CPU   ratio to no NAT (lowest - highest)")
    for label, found_ones in figures.items():
        good = [one for one in found_ones if one is not None]
        if len(good) < len(found_ones):
            print(f"{label:36} packets were lost in {len(found_ones) - len(good)} of them")
        if good:
            rate, cpu, ratio = (statistics.median(column) for column in zip(*good, strict=True))
            ratios = [one[2] for one in good]
            spread = f"({min(ratios):.2f} - {max(ratios):.2f})"
            print(f"{label:36} {rate:8,.0f} {cpu:9.2f} {ratio:12.2f} {spread}")


if __name__ == "__main__":
    main()
