"""How long very many CIDRs take from the file to the kernel, by stage, and what they weigh.

    .venv/bin/python -m bench.scale [--sizes 1000,10000,100000,1000000] [--backend ipset-nft]...

For each backend and size: the stages of one load in a process of its own, then one CIDR
added and one removed; the real agent, which takes up a document and then another of the
same size; ``diff`` and ``explain`` as processes. Every round has a network namespace of its
own; figures are medians of the rounds. Rules one by one are measured up to 10,000.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from bench.support import AGENT, Site, inside_namespace, medians, resident, site, table
from ipmasq_agent.bench.machine import in_a_line
from ipmasq_agent.bench.policies import BlockPolicy, in_cidr
from ipmasq_agent.config.assemble import assemble_family
from ipmasq_agent.config.document import parse_document
from ipmasq_agent.config.model import Flags
from ipmasq_agent.planes import detect, registry
from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.policy.addresses import Family

FLAGS = Flags(enable_ipv6=True, cidr_limit=None)
LONGEST_CHAIN = 10_000
# Those that --backend does not name are found by kubelet's mark.
NAMES = [row.name for row in registry.PLANES if row.name != "bpf"]
Figures = dict[str, float]


@contextlib.contextmanager
def stage(figures: Figures, label: str, *totals: str) -> Iterator[None]:
    """Note how many ms the body takes, and add them to each of the totals."""
    start = time.perf_counter()
    yield
    took = (time.perf_counter() - start) * 1e3
    figures[label] = took
    for total in totals:
        figures[total] = figures.get(total, 0.0) + took


def load(name: str, family: Family, count: int, here: Site) -> Figures:
    """Load the document stage by stage, then change it by one CIDR."""
    path = here.directory / "document"
    backend: Any = detect.make(name, Placement())
    capabilities = backend.capabilities(family)
    figures: Figures = {}

    def policy(prefix: str, text: str) -> Any:
        path.write_text(text)
        everything = f"{prefix}FILE → KERNEL"
        with stage(figures, f"{prefix}read the file", everything):
            content = path.read_bytes()
        with stage(figures, f"{prefix}parse", everything):
            config = parse_document(content, "bench", FLAGS).config
        with stage(figures, f"{prefix}policy", everything):
            return assemble_family(config, family, capabilities)

    def bring(prefix: str, wanted: Any, read: Callable[[Family], Any]) -> int:
        totals = f"{prefix}FILE → KERNEL", f"{prefix}POLICY → KERNEL"
        with stage(figures, f"{prefix}compile", *totals):
            desired = backend.dialect.compile(wanted)
        with backend.session(family):
            with stage(figures, f"{prefix}look at the kernel", *totals):
                actual = read(family)
            with stage(figures, f"{prefix}plan", *totals):
                change = backend.dialect.plan(actual, desired)
            with stage(figures, f"{prefix}write to the kernel", *totals):
                backend.apply(family, change)
            with stage(figures, f"{prefix}check"):
                left = backend.dialect.plan(backend.recall(family), desired)
        for total in totals:
            figures[total] = figures.pop(total)  # below its parts
            if left:
                raise SystemExit(f"{name}: the kernel does not hold what was written")
        return len(change.added) + len(change.removed)

    try:
        before = policy("", BlockPolicy(family, count).document)
        bring("", before, backend.read)
        with stage(figures, "read it all back"):
            backend.read(family)
        for label, more in (("one more: ", 1), ("one less: ", 0)):
            after = policy(label, BlockPolicy(family, count + more).document)
            with stage(figures, f"{label}difference", f"{label}POLICY → KERNEL"):
                differing = list(before.decisions.changes(after.decisions))
            if len(differing) != 1:
                raise SystemExit(f"one CIDR makes {len(differing)} differences")
            written = bring(label, after, backend.recall)
            if written > 8:
                raise SystemExit(f"{name}: one CIDR rewrites {written} lines")
            before = after
        figures["peak of this process, MB"] = (
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        )
    finally:
        backend.close()
    return figures


def follow(name: str, family: Family, count: int, here: Site) -> Figures:
    """Let the agent take up a document, then another one, then ask it questions."""
    asked_for, tables = registry.row(name).backend, registry.row(name).form_of
    if tables is not None:
        subprocess.run([tables, "-t", "mangle", "-N", detect.MARKS[0]], check=True)
    flags = ["--backend", asked_for, "--enable-ipv6=true"]
    figures: Figures = {}
    here.write(BlockPolicy(family, 10).document)
    with here.agent(*flags) as process:
        for label, policy in (
            ("document", BlockPolicy(family, count)),
            ("another of this size", BlockPolicy(family, count, start=count)),
            ("two CIDRs", BlockPolicy(family, count, start=count + 1)),
        ):
            text, seen = policy.document, here.moments("rules applied")
            start = time.time()
            here.write(text)
            while len(applied := here.moments("rules applied")) == len(seen):
                if process.poll() is not None or time.time() - start > 300:
                    raise SystemExit(f"the agent does not apply it:\n{here.log.read_text()}")
                time.sleep(0.01)
            figures[f"agent: {label}, written → applied"] = (applied[-1] - start) * 1e3
        figures["agent: peak, MB"] = resident(process.pid, "VmHWM")
        figures["agent: resident after it, MB"] = resident(process.pid)
    flags += here.flags
    for label, verb in (
        ("diff", ["diff"]),
        ("explain", ["explain", family.show(in_cidr(family, 0))]),
    ):
        start = time.perf_counter()
        done = subprocess.run([*AGENT, *verb, *flags], capture_output=True, text=True, check=False)
        figures[f"{label}, a process"] = (time.perf_counter() - start) * 1e3
        if done.returncode not in (0, 1) or "Traceback" in done.stderr:
            raise SystemExit(f"{label} failed:\n{done.stderr}")
    return figures


def one_round(part: str, name: str, family: Family, count: int) -> Figures:
    """Run a part of the measurement in a process and a network namespace of its own."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "bench.scale", "--part", part, "--backend", name),
            *("--family", family.value, "--sizes", str(count)),
        ],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{name}, {count:,} CIDRs: no figures")
    figures: Figures = json.loads(done.stdout)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="1000,10000,100000,1000000")
    parser.add_argument("--backend", action="append", choices=NAMES)
    parser.add_argument("--family", default="ipv4", choices=[family.value for family in Family])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--part", choices=["load", "follow"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    family = Family(options.family)
    sizes = [int(size) for size in options.sizes.split(",")]
    if options.part:
        inside_namespace()
        part = load if options.part == "load" else follow
        with site() as here:
            print(json.dumps(part(options.backend[0], family, sizes[0], here)))
        return
    print(f"{family.value}, medians of {options.rounds} rounds, ms; {in_a_line()}")
    for name in options.backend or NAMES:
        fitting = [s for s in sizes if s <= LONGEST_CHAIN or not name.startswith("iptables")]
        columns: list[Figures] = []
        for size in fitting:
            rounds = [
                one_round("load", name, family, size) | one_round("follow", name, family, size)
                for _ in range(options.rounds)
            ]
            columns.append(medians(rounds))
        if columns:
            print(f"\n{table([name, *(f'{size:,}' for size in fitting)], columns, 12)}")


if __name__ == "__main__":
    main()
