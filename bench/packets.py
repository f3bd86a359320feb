"""What our eBPF programs cost a packet, on each path through them, in ns.

    .venv/bin/python -m bench.packets [--family ipv4]... [--cidrs 64]... [--tree PATH]...

By BPF_PROG_TEST_RUN, so it needs no lab (ipmasq_agent/bench/testrun says how). Every round of a
family and a number of CIDRs is a process with namespaces of its own, with the code of each tree
(a checkout, its programs compiled; this one unless given). The rounds take turns: what a path
costs that finds little in the caches depends on who else is at work. A figure is the median, in
brackets the lowest and the highest; ratios are to the first tree, and to the fewest CIDRs.
Destinations are spread at random over 100,000 gaps between CIDRs, or over those CIDRs that there
are.

Then what the maps weigh, and what it costs to sweep through the table of flows.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ipmasq_agent.bench.machine import in_a_line
from ipmasq_agent.bench.testrun.paths import LEAST_FLOWS, MOST_PACKETS, PathRound
from ipmasq_agent.bench.testrun.subject import Subject, go_where_nobody_is
from ipmasq_agent.bpf.objects import closing, open_path
from ipmasq_agent.policy.addresses import Family

HERE = Path(__file__).parents[1]
SIZES = (64, 100_000)
WEIGHED = (1 << 16, 1 << 19)
Paths = dict[str, dict[str, Any]]
"""Path → the figures of the rounds, and what became of its packets."""


def child(tree: Path, module: str, *arguments: object) -> dict[str, Any]:
    """Return what a process with the code of a tree tells as JSON."""
    argv = [sys.executable, "-P", "-m", module, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(argv, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{tree}: no figures")
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def measure(options: argparse.Namespace) -> dict[tuple[str, int, Path], Paths]:
    """Measure all paths: family, number of CIDRs and tree → what was found."""
    found: dict[tuple[str, int, Path], Paths] = {}
    for _ in range(options.rounds):
        for family, cidrs, tree in itertools.product(options.family, options.cidrs, options.tree):
            what = family, cidrs, options.packets, options.flows
            paths = found.setdefault((family, cidrs, tree), {})
            for path, (ns, outcomes) in child(tree, "ipmasq_agent.bench.testrun", *what).items():
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
    subject.plane.sweep()
    return (time.perf_counter() - began) * 1e3


def show(title: str, paths: Paths, others: Mapping[str, Paths]) -> None:
    """Print a table of paths, their ratios to others by what heads the column."""
    print(f"\n{title:38}{'ns a packet':>22}" + "".join(f"{head:>15}" for head in others))
    for path, told in paths.items():
        median = statistics.median(told["ns"])
        spread = f"{median:,.0f} ({min(told['ns']):,.0f}-{max(told['ns']):,.0f})"
        ratios = "".join(f"{ratio(median, other, path):>15}" for other in others.values())
        counted = [
            f"{name} {share:.0%}" for name, share in told["outcomes"].items() if share > 0.01
        ]
        print(f"  {path:36}{spread:>22}{ratios}   {', '.join(counted)}")


def ratio(median: float, others: Paths, path: str) -> str:
    """Return a median as a share of another one."""
    other = statistics.median(others[path]["ns"]) if path in others else 0
    return f"{median / other:.2f}" if other > 0 else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    families = [each.value for each in Family]
    parser.add_argument("--family", action="append", choices=families)
    parser.add_argument("--cidrs", action="append", type=int)
    parser.add_argument("--tree", action="append", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--packets", type=int, default=100_000, help="of each path, a round")
    parser.add_argument("--flows", type=int, default=1 << 19, help="that the table has room for")
    parser.add_argument("--costs", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.family = options.family or families
    options.cidrs = sorted(options.cidrs or SIZES)
    options.tree = options.tree or [HERE]
    if options.packets + options.flows * 5 // 4 > MOST_PACKETS:
        parser.error(f"more than {MOST_PACKETS:,} flows to begin: --packets and 5/4 of --flows")
    if options.flows < LEAST_FLOWS:
        parser.error(f"--flows has to be {LEAST_FLOWS:,} at least")
    if options.costs:
        print(json.dumps(costs(options.flows)))
        return
    print(f"{options.rounds} rounds of {options.packets:,} packets; {in_a_line()}")
    found = measure(options)
    for (family, cidrs, tree), paths in found.items():
        others = {}
        if cidrs != options.cidrs[0]:
            others[f"of {options.cidrs[0]:,} CIDRs"] = found[family, options.cidrs[0], tree]
        if tree != options.tree[0]:
            others["of first tree"] = found[family, cidrs, options.tree[0]]
        where = f", {tree}" if len(options.tree) > 1 else ""
        show(f"{family}, {cidrs:,} CIDRs{where}", paths, others)
    for flows in [size for size in WEIGHED if size < options.flows] + [options.flows]:
        # The last tree's: of several it is the one that is new.
        told = child(options.tree[-1], "bench.packets", "--costs", "--packets", 1, "--flows", flows)
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
