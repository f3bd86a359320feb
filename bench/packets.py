"""What our eBPF programs cost a packet, on each path through them, in ns.

    .venv/bin/python -m bench.packets [--family ipv4]... [--cidrs 64]... [--against before.json]

By BPF_PROG_TEST_RUN, so it needs no lab and no quiet machine (ipmasq_agent/bench/testrun says
how). Every round of a family and a number of CIDRs is a process with namespaces of its own; the
rounds take turns. A figure is the median, in brackets the lowest and the highest. Destinations
are spread at random over 100,000 gaps between CIDRs, or over those CIDRs that there are.

Then what the maps weigh, and what it costs to sweep through the table of flows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ipmasq_agent.bench.machine import in_a_line
from ipmasq_agent.bench.testrun.paths import LEAST_FLOWS, MOST_PACKETS, PathRound
from ipmasq_agent.bench.testrun.subject import Subject, go_where_nobody_is
from ipmasq_agent.bpf.objects import closing, open_path
from ipmasq_agent.policy.addresses import Family

SIZES = (64, 100_000)
WEIGHED = (1 << 16, 1 << 19)
Found = dict[str, dict[str, Any]]
"""Column → path → the figures of the rounds, and what became of its packets."""


def one_round(family: str, cidrs: int, packets: int, flows: int) -> dict[str, Any]:
    """Measure all paths once."""
    arguments = map(str, (family, cidrs, packets, flows))
    return child("ipmasq_agent.bench.testrun", *arguments)


def child(module: str, *arguments: str) -> dict[str, Any]:
    """Return what a process of its own tells as JSON."""
    argv = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(argv)}: no figures")
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def measure(families: Sequence[str], sizes: Sequence[int], options: argparse.Namespace) -> Found:
    """Measure everything, round by round."""
    found: Found = {}
    for _ in range(options.rounds):
        for family in families:
            for cidrs in sizes:
                paths = found.setdefault(f"{family}, {cidrs:,} CIDRs", {})
                round_ = one_round(family, cidrs, options.packets, options.flows)
                for path, (ns, outcomes) in round_.items():
                    paths.setdefault(path, {"ns": []})["ns"].append(ns)
                    paths[path]["outcomes"] = outcomes
    return found


def costs(flows: int) -> dict[str, Any]:
    """Return what each map weighs, in bytes, and what sweeps cost, in ms."""
    go_where_nobody_is()
    subject = Subject(Family.IPV4, flows)
    with subject.loaded(64):
        weights = {path.name: weight(path) for path in subject.pins.iterdir() if path.is_file()}
        empty = swept(subject)
    with PathRound(subject, 64, 1, flows).filled():
        full = swept(subject)
    return {"weights": weights, "sweep of an empty table": empty, "sweep of a full one": full}


def weight(path: Path) -> int:
    """Return the memory of a map; 0 of what is none."""
    with closing(open_path(path)) as descriptor:
        told = Path(f"/proc/self/fdinfo/{descriptor}").read_text()
    return int(told.partition("memlock:")[2].split()[0]) if "map_type" in told else 0


def swept(subject: Subject) -> float:
    """Return how many ms a sweep takes."""
    began = time.perf_counter()
    subject.programs.run_sweep()
    return (time.perf_counter() - began) * 1e3


def show(found: Found, before: Found) -> None:
    """Print a table for each column, and what becomes of the packets."""
    for column, paths in found.items():
        first = next(name for name in found if name.split()[0] == column.split()[0])
        print(f"\n{column:38}{'ns a packet':>22}", end="")
        print(f"{'of ' + first.split(', ')[1]:>14}" if first != column else "", end="")
        print(f"{'of before':>12}" if column in before else "")
        for path, told in paths.items():
            median = statistics.median(told["ns"])
            spread = f"{median:,.0f} ({min(told['ns']):,.0f}-{max(told['ns']):,.0f})"
            line = f"  {path:36}{spread:>22}"
            if first != column:
                line += f"{ratio(median, found[first], path):>14}"
            if column in before:
                line += f"{ratio(median, before[column], path):>12}"
            counted = [f"{name} {share:.0%}" for name, share in told["outcomes"].items()]
            print(f"{line}   {', '.join(name for name in counted if not name.endswith(' 0%'))}")


def ratio(median: float, others: Mapping[str, Any], path: str) -> str:
    """Return a median as a share of another one."""
    other = statistics.median(others[path]["ns"]) if path in others else 0
    return f"{median / other:.2f}" if other > 0 else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", action="append", choices=[each.value for each in Family])
    parser.add_argument("--cidrs", action="append", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--packets", type=int, default=100_000, help="of each path, a round")
    parser.add_argument("--flows", type=int, default=1 << 19, help="that the table has room for")
    parser.add_argument("--against", type=Path, help="what an earlier run kept")
    parser.add_argument("--keep", type=Path, help="a file for all figures, as JSON")
    parser.add_argument("--costs", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.packets + options.flows * 5 // 4 > MOST_PACKETS:
        parser.error(f"more than {MOST_PACKETS:,} flows to begin: --packets and 5/4 of --flows")
    if options.flows < LEAST_FLOWS:
        parser.error(f"--flows has to be {LEAST_FLOWS:,} at least")
    if options.costs:
        print(json.dumps(costs(options.flows)))
        return
    before: Found = json.loads(options.against.read_text()) if options.against else {}
    print(f"{options.rounds} rounds of {options.packets:,} packets; {in_a_line()}")
    families = options.family or [family.value for family in Family]
    found = measure(families, options.cidrs or SIZES, options)
    show(found, before)
    if options.keep:
        options.keep.write_text(json.dumps(found))
    for flows in [size for size in WEIGHED if size < options.flows] + [options.flows]:
        told = child("bench.packets", "--costs", "--flows", str(flows), "--packets", "1")
        weights = sorted(told.pop("weights").items(), key=lambda item: -item[1])
        print(
            f"\n{flows:,} flows{sum(size for _, size in weights) / 2**20:26.1f} MiB of maps:",
            end="",
        )
        print(", ".join(f" {name} {size / 2**20:.1f}" for name, size in weights[:4]))
        for label, took in told.items():
            print(f"  {label:30}{took:8.2f} ms")


if __name__ == "__main__":
    main()
