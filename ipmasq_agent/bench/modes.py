"""What is measured, of which ways to masquerade, with how many CIDRs, and for how long."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ipmasq_agent.bench.results import LIMIT, REFERENCE, Measure, Mode

MODES = (
    Mode(LIMIT, "no NAT, connections not tracked", None, tracking=False),
    Mode(REFERENCE, "no NAT", None, tracking=True),
    Mode("iptables-legacy", "iptables-legacy, a rule a CIDR", "iptables-legacy", tracking=True),
    Mode("iptables-nft", "iptables-nft, a rule a CIDR", "iptables-nft", tracking=True),
    Mode("ipset", "iptables-nft with an ipset", "ipset", tracking=True),
    Mode("nftables", "nftables with a set", "nftables", tracking=True),
    Mode("bpf", "eBPF, connections not tracked", "bpf", tracking=False),
    Mode("bpf+ct", "eBPF", "bpf", tracking=True),
)
MEASURES = (
    Measure("flows", "New UDP flows", "flows/s", more_is_better=True),
    Measure("flows-cpu", "CPU time of the machine per new flow", "s", more_is_better=False),
    Measure("program", "Time of our eBPF program per new flow", "s", more_is_better=False),
    Measure("connections", "TCP connections", "connections/s", more_is_better=True),
    Measure("packets", "64-byte packets of one flow", "packets/s", more_is_better=True),
    Measure("stream", "Throughput of one TCP stream", "bit/s", more_is_better=True),
    Measure("streams", "Throughput of eight TCP streams", "bit/s", more_is_better=True),
    Measure("stream-cpu", "CPU time of the machine per GB", "s", more_is_better=False),
    Measure("latency-p50", "Latency at half load, median", "s", more_is_better=False),
    Measure("latency-p99", "Latency at half load, 99th percentile", "s", more_is_better=False),
    Measure("memory", "Kernel memory with 100,000 flows", "bytes", more_is_better=False),
    Measure("load", "Time to load the CIDRs", "s", more_is_better=False),
    Measure("change", "Time until a change of the policy holds", "s", more_is_better=False),
)

SIZES = (3, 64, 1000, 10_000, 100_000)
"""Numbers of CIDRs for new flows and connections."""
EVERYTHING_AT = (64, 100_000)
"""Those for which all the rest is measured too."""
_CHAINS = ("iptables-legacy", "iptables-nft")
_LONGEST_CHAIN = 10_000


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured, and how long each workload runs.

    Attributes:
        rounds: how often each mode has its turn.
        sizes: numbers of CIDRs.
        everything_at: those of them with every workload.
        flows: new UDP flows a run.
        packets: of one flow, a run.
        seconds: of a run of wrk, iperf3 or sockperf.
    """

    rounds: int
    sizes: tuple[int, ...]
    everything_at: tuple[int, ...]
    flows: int = 100_000
    packets: int = 300_000
    seconds: float = 2.0


FULL = Effort(5, SIZES, EVERYTHING_AT)
QUICK = Effort(3, (64,), (), flows=50_000)


@dataclass(frozen=True, slots=True)
class Turn:
    """One mode with a policy of one size, measured in each round."""

    mode: Mode
    cidrs: int
    everything: bool


def turns(modes: Sequence[Mode], effort: Effort) -> Iterator[Turn]:
    """Yield what has its turn in each round, in order."""
    for mode in modes:
        if mode.backend is None:
            yield Turn(mode, 0, bool(effort.everything_at))
            continue
        for cidrs in effort.sizes:
            if not _too_long(mode, cidrs):
                yield Turn(mode, cidrs, cidrs in effort.everything_at)


def skipped(modes: Sequence[Mode], effort: Effort) -> list[str]:
    """Return what has no turn, and why, in sentences."""
    return [
        f"{mode.name} with {cidrs:,} CIDRs: a chain of so many rules takes minutes to load, and "
        "each new flow walks through all of it"
        for mode in modes
        for cidrs in effort.sizes
        if _too_long(mode, cidrs)
    ]


def _too_long(mode: Mode, cidrs: int) -> bool:
    return mode.name in _CHAINS and cidrs > _LONGEST_CHAIN
