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
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from bench.support import AGENT, agent, inside_namespace, log_lines, machine, to_file
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


def document(family: Family, count: int, shift: int = 0) -> str:
    """Return a document of ``count`` prefixes that do not touch; ``shift`` moves them all."""
    bits = family.bits - 28
    base = 1 << 24 if family is Family.IPV4 else 0xFD << 120
    lines = (f"- {family.show(base + (n << bits + 1))}/28\n" for n in range(shift, count + shift))
    return f"cidrLimit: {count}\nnonMasqueradeCIDRs:\n{''.join(lines)}"


@contextlib.contextmanager
def stage(figures: Figures, label: str, *totals: str) -> Iterator[None]:
    """Note how many ms the body takes, and add them to each of the totals."""
    start = time.perf_counter()
    yield
    took = (time.perf_counter() - start) * 1e3
    figures[label] = took
    for total in totals:
        figures[total] = figures.get(total, 0.0) + took


def load(name: str, family: Family, count: int, place: Path) -> Figures:
    """Load the document stage by stage, then change it by one CIDR."""
    path = place / "document"
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
            desired = backend.compile(wanted)
        with backend.session(family):
            with stage(figures, f"{prefix}look at the kernel", *totals):
                actual = read(family)
            with stage(figures, f"{prefix}plan", *totals):
                change = backend.plan(actual, desired)
            with stage(figures, f"{prefix}write to the kernel", *totals):
                backend.apply(family, change)
            with stage(figures, f"{prefix}check"):
                left = backend.plan(backend.recall(family), desired)
        for total in totals:
            figures[total] = figures.pop(total)  # below its parts
            if left:
                raise SystemExit(f"{name}: the kernel does not hold what was written")
        return len(change.added) + len(change.removed)

    try:
        before = policy("", document(family, count))
        bring("", before, backend.read)
        with stage(figures, "read it all back"):
            backend.read(family)
        for label, more in (("one more: ", 1), ("one less: ", 0)):
            after = policy(label, document(family, count + more))
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


def follow(name: str, family: Family, count: int, place: Path) -> Figures:
    """Let the agent take up a document, then another one, then ask it questions."""
    log = place / "log"
    write, where = to_file(place)
    asked_for, tables = registry.row(name).backend, registry.row(name).form_of
    if tables is not None:
        subprocess.run([tables, "-t", "mangle", "-N", detect.MARKS[0]], check=True)
    flags = ["--backend", asked_for, "--enable-ipv6=true", *where]
    figures: Figures = {}
    write(document(family, 10), 0)
    with agent(*flags, log=log) as process:
        for number, (label, text) in enumerate(
            (
                ("document", document(family, count)),
                ("another of this size", document(family, count, shift=count)),
                ("two CIDRs", document(family, count, shift=count + 1)),
            ),
            start=1,
        ):
            seen = _applied(log)
            start = time.time()
            write(text, number)
            while len(applied := _applied(log)) == len(seen):
                if process.poll() is not None or time.time() - start > 300:
                    raise SystemExit(f"the agent does not apply it:\n{log.read_text()}")
                time.sleep(0.01)
            figures[f"agent: {label}, written → applied"] = (applied[-1] - start) * 1e3
        status = Path(f"/proc/{process.pid}/status").read_text()
        for key, label in (("VmHWM", "peak"), ("VmRSS", "resident after it")):
            kilobytes = status.partition(f"{key}:")[2].split()[0]
            figures[f"agent: {label}, MB"] = int(kilobytes) / 1024
    asked = family.show((1 << 24 if family is Family.IPV4 else 0xFD << 120) + 5)
    for label, verb in (("diff", ["diff"]), ("explain", ["explain", asked])):
        start = time.perf_counter()
        done = subprocess.run([*AGENT, *verb, *flags], capture_output=True, text=True, check=False)
        figures[f"{label}, a process"] = (time.perf_counter() - start) * 1e3
        if done.returncode not in (0, 1) or "Traceback" in done.stderr:
            raise SystemExit(f"{label} failed:\n{done.stderr}")
    return figures


def _applied(log: Path) -> list[float]:
    return [
        datetime.fromisoformat(line["time"]).timestamp()
        for line in log_lines(log)
        if line.get("message") == "rules applied"
    ]


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


def inside(part: str, name: str, family: Family, count: int) -> None:
    """Measure one part here, and print its figures as JSON."""
    inside_namespace()
    # Not in /tmp: the agent watches the directories above its document too.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as temporary:
        place = Path(temporary)
        os.environ["XTABLES_LOCKFILE"] = str(place / "xtables.lock")
        print(json.dumps((load if part == "load" else follow)(name, family, count, place)))


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
        inside(options.part, options.backend[0], family, sizes[0])
        return
    print(f"{family.value}, medians of {options.rounds} rounds, ms; {machine()}")
    for name in options.backend or NAMES:
        fitting = [s for s in sizes if s <= LONGEST_CHAIN or not name.startswith("iptables")]
        columns: list[Figures] = []
        for size in fitting:
            rounds = [
                one_round("load", name, family, size) | one_round("follow", name, family, size)
                for _ in range(options.rounds)
            ]
            columns.append({k: statistics.median(r[k] for r in rounds) for k in rounds[0]})
        if columns:
            print(f"\n{name:44}" + "".join(f"{size:>12,}" for size in fitting))
            for label in columns[0]:
                print(f"  {label:42}" + "".join(f"{column[label]:12.1f}" for column in columns))


if __name__ == "__main__":
    main()
