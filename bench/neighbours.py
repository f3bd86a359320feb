"""What a pass costs on a node where others keep very many rules in the nat table.

    .venv/bin/python -m bench.neighbours [--rules 100000] [--variant nft] [--tree PATH]...

The rules are those of kube-proxy, loaded once into a network namespace. In it a process
with the code of each tree (a checkout; this one unless given) makes passes of an agent with
64 CIDRs: the first, one after a commit of somebody else's, quiet ones, one that changes our
rules. Time is the median of the rounds. Memory is the peak of the agent's process and of
the largest program that it starts, measured in a run of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from bench.services import kube_proxy
from bench.support import inside_namespace, medians, site, table
from ipmasq_agent.bench.machine import in_a_line

# What it asks of a tree has to be there under these names; where it is not, there are no figures.
_PASSES = r"""
import json, os, subprocess, sys, time
from pathlib import Path
from ipmasq_agent.agent.reconcile import clean, reconcile_family
from ipmasq_agent.planes import detect
from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.policy.addresses import Family, Prefix
from ipmasq_agent.policy.decisions import DecisionMap, Stated, Verdict, entry_of_prefix
from ipmasq_agent.policy.model import FamilyPolicy

variant = sys.argv[1]

def policy(count):
    prefixes = [Prefix(Family.IPV4, 11 << 24 | n << 8, 24) for n in range(count)]
    entries = [entry_of_prefix(p, Verdict.NON_MASQUERADE, Stated(str(p))) for p in prefixes]
    return FamilyPolicy(DecisionMap(Family.IPV4, entries))

def peak(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024

made = {}
def one_pass(count):
    started = time.perf_counter()
    name, _ = detect.choose("auto")
    assert name == f"iptables-{variant}", name
    detect.holders(Placement())
    if name not in made:
        made[name] = detect.make(name, Placement())
    change = reconcile_family(made[name], Family.IPV4, policy(count))
    return (time.perf_counter() - started) * 1e3, bool(change)

def theirs():
    words = [f"/usr/sbin/iptables-{variant}", "-t", "nat", "-A", "KUBE-MARK-MASQ"]
    subprocess.run(words, check=True)

found = {}
found["first pass"], changed = one_pass(64)
assert changed
theirs()
found["after a commit of theirs"], changed = one_pass(64)
assert not changed
found["quiet"], changed = one_pass(64)
assert not changed
found["a change of ours"], changed = one_pass(63)
assert changed
if hasattr(made[f"iptables-{variant}"], "disturbed"):
    backend = made[f"iptables-{variant}"]
    started = time.perf_counter()
    backend.disturbed()
    found["a look between passes"] = (time.perf_counter() - started) * 1e3
    theirs()
    started = time.perf_counter()
    backend.disturbed()
    found["a look after a commit of theirs"] = (time.perf_counter() - started) * 1e3
programs = [float(line) / 1024 for line in os.environ.get("PEAKS") and
            Path(os.environ["PEAKS"]).read_text().split() or ()]
memory = {"agent, MB": peak(os.getpid()), "largest program, MB": max(programs, default=0.0)}
for family in Family:
    clean(made[f"iptables-{variant}"], [family])
made[f"iptables-{variant}"].close()
print(json.dumps([found, memory]))
"""


def measured(tree: Path, variant: str, directory: Path, *, memory: bool) -> dict[str, float]:
    """Return the figures of one run of the passes, with the code of a tree; none if it fails."""
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    if memory:
        peaks, shims = directory / "peaks", directory / "shims"
        peaks.write_text("")
        environment |= {"PEAKS": str(peaks), "PATH": f"{shims}:{os.environ['PATH']}"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", _PASSES, variant],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        print(f"{tree}: {done.stderr.strip().rpartition(chr(10))[2]}")
        return {}
    times, sizes = json.loads(done.stdout)
    figures: dict[str, float] = sizes if memory else times
    return figures


def weighed(variant: str, directory: Path) -> None:
    """Put programs before those of the system that note the peak of their memory."""
    shims = directory / "shims"
    shims.mkdir()
    for stem in (f"iptables-{variant}", f"ip6tables-{variant}"):
        for name in (stem, f"{stem}-save", f"{stem}-restore"):
            shim = shims / name
            timed = f"/usr/bin/time -q -a -o {directory}/peaks -f %M /usr/sbin/{name}"
            shim.write_text(f'#!/bin/sh\nexec {timed} "$@"\n')
            shim.chmod(0o755)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rules", type=int, default=100_000)
    parser.add_argument("--variant", action="append", choices=["nft", "legacy"])
    parser.add_argument("--tree", action="append", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    inside_namespace()
    trees = options.tree or [Path.cwd()]
    with site() as here:
        for variant in options.variant or ["nft", "legacy"]:
            directory = here.directory / variant
            directory.mkdir()
            weighed(variant, directory)
            text = "\n".join([*kube_proxy(options.rules), ""])
            restore = [f"iptables-{variant}-restore", "--noflush"]
            subprocess.run(restore, input=text, text=True, check=True)
            # Kubelet's mark, by which `auto` chooses.
            mark = [f"iptables-{variant}", "-t", "mangle", "-N", "KUBE-IPTABLES-HINT"]
            subprocess.run(mark, check=True)
            columns: list[dict[str, float]] = []
            for tree in trees:
                rounds = [
                    measured(tree, variant, directory, memory=False) for _ in range(options.rounds)
                ]
                weight = measured(tree, variant, directory, memory=True) if all(rounds) else {}
                columns.append(medians(rounds) | weight if weight else {})
            print(f"\niptables-{variant}, {text.count('-A '):,} rules of others; {in_a_line()}")
            heads = ["", *(map(str, trees) if options.tree else ["ms"])]
            print(table(heads, columns, 24), flush=True)
            # Of the two, the first with a mark is taken.
            subprocess.run([*mark[:3], "-X", "KUBE-IPTABLES-HINT"], check=True)


if __name__ == "__main__":
    main()
