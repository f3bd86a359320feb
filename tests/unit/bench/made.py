"""Results of a benchmark that was never run, with figures that are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from ipmasq_agent.bench.modes import MODES
from ipmasq_agent.bench.results import Equality, Measure, Mode, Results, Sample

FLOWS = Measure("flows", "New UDP flows", "flows/s", more_is_better=True)
CONNECTIONS = Measure("connections", "TCP connections", "connections/s", more_is_better=True)
STREAM = Measure("stream", "Throughput of one TCP stream", "bit/s", more_is_better=True)
LATENCY = Measure("latency-p99", "Latency, 99th percentile", "s", more_is_better=False)
MEMORY = Measure("memory", "Kernel memory with 100,000 flows", "bytes", more_is_better=False)
LOAD = Measure("load", "Time to load the CIDRs", "s", more_is_better=False)
MEASURES = (FLOWS, CONNECTIONS, STREAM, LATENCY, MEMORY, LOAD)

_OF_NO_NAT = {
    "flows": 400_000.0,
    "connections": 30_000.0,
    "stream": 2.5e10,
    "latency-p99": 8e-5,
    "memory": 3.2e7,
    "load": 0.25,
}
_EVERYTHING_AT = 64  # the number of CIDRs for which all is measured
_SPREAD = (0.0, 1.0, -1.0, 0.5, -0.5)

Levels = Callable[[str, str, int], float | None]


def usual(measure: str, mode: str, cidrs: int) -> float | None:
    """Return a level such as one finds: chains fall, nftables and ipset tie, bpf+ct leads."""
    if measure in ("stream", "memory"):
        return 1.0
    if measure == "load":
        return None if mode.startswith("none") else 1.0
    speed = {
        "none": 1.3,
        "none+ct": 1.0,
        "iptables-legacy": 0.8 / (1 + cidrs / 200),
        "iptables-nft": 0.8 / (1 + cidrs / 100),
        "ipset": 0.861,
        "nftables": 0.875,
        "bpf": 1.25,
        "bpf+ct": 0.95,
    }[mode]
    return 1 / speed if measure == "latency-p99" else speed


def made(
    *,
    levels: Levels = usual,
    rounds: int = 5,
    sizes: Sequence[int] = (3, 64, 1000),
    modes: Sequence[Mode] = MODES,
    measures: Sequence[Measure] = MEASURES,
    noise: float = 0.01,
    speed: float = 1.0,
    failed: Mapping[tuple[int, str, str, int], str] | None = None,
) -> Results:
    """Return results.

    Args:
        levels: measure, mode, CIDRs → the value as a share of that without NAT; None for none.
        rounds: of them.
        sizes: numbers of CIDRs.
        modes: that took part.
        measures: that were taken.
        noise: by which share values differ at most from round to round.
        speed: of the machine; ratios do not depend on it.
        failed: round, measure, mode, CIDRs → why that run gave no value.
    """
    runs = []
    for number in range(1, rounds + 1):
        for position, mode in enumerate(modes):
            for cidrs in sizes if mode.backend else (0,):
                for measure in measures:
                    everywhere = measure.name in ("flows", "connections", "load")
                    level = levels(measure.name, mode.name, cidrs)
                    if level is None or not (everywhere or cidrs in (0, _EVERYTHING_AT)):
                        continue
                    problem = (failed or {}).get((number, measure.name, mode.name, cidrs))
                    drift = 1 + 0.2 * number  # of the whole machine, which ratios are rid of
                    turn = number + position + cidrs % _EVERYTHING_AT
                    spread = 1 + noise * _SPREAD[turn % len(_SPREAD)]
                    faster = speed if measure.more_is_better else 1 / speed
                    steady = measure.unit == "bytes"
                    scale = 1.0 if steady else drift * faster
                    value = _OF_NO_NAT[measure.name] * scale * level * spread
                    runs.append(
                        Sample(
                            number,
                            mode.name,
                            cidrs,
                            measure.name,
                            None if problem else value,
                            problem,
                        )
                    )
    return Results(
        began="2026-05-04T12:30:00+02:00",
        seconds=754.2,
        rounds=rounds,
        quick=False,
        stopped=None,
        family="ipv4",
        machine={"kernel": "Linux 6.18.5 (x86_64)", "processor": "8 x a <fast> one & cool"},
        modes=modes,
        measures=measures,
        equality=[
            Equality(mode.name, cidrs, 10)
            for mode in modes
            for cidrs in (sizes if mode.backend else (0,))
        ],
        runs=runs,
    )


def without(results: Results, *, after: tuple[int, str]) -> Results:
    """Return what Ctrl-C leaves in the round and after the mode that are given."""
    order = [mode.name for mode in results.modes]
    last = (after[0], order.index(after[1]))
    return replace(
        results,
        stopped=f"Ctrl-C in round {after[0]} of {results.rounds}",
        runs=[run for run in results.runs if (run.round, order.index(run.mode)) <= last],
    )
