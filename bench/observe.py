"""What `observe` sees of very many new connections, and what it costs.

    .venv/bin/python -m bench.observe [--rate 20000] [--seconds 10] [--ipv6] [--agent]

For each data plane: new UDP connections of a pod at that rate, as the kernel counts them; those
that the verb has seen and those that it has counted as missed; and its CPU time. With --agent
it is the agent that records them, and its memory is told.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.support import resident
from ipmasq_agent.agent.record import recorded as record_of
from ipmasq_agent.planes import registry
from ipmasq_agent.planes.plane import AnyPlane, Translator
from ipmasq_agent.planes.registry import PLANES
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.flows import Flow
from tests.bpf.packets import udp
from tests.kernel.attacks.flood import Flood, Varied, compile_flood
from tests.kernel.attacks.site import PLANS, Site, site
from tests.kernel.pins import PINS, bpf_file_system, placement
from tests.kernel.talked import SPLIT, in_force
from tests.waiting import wait_until

_PORTS = 40_000
_PATIENCE = 20  # seconds until an agent has written what it heard
_VERB = [sys.executable, "-m", "ipmasq_agent"]
_SILENCE = "table inet silence { chain heard { type filter hook prerouting priority raw; drop; }; }"


def made(where: Site, plane: AnyPlane) -> int:
    """Return how many connections there were, as those count that make them."""
    if isinstance(plane, Translator):
        counters = plane.counters().items()
        return sum(n for (_, what), n in counters if what in ("flows_translated", "flows_kept"))
    return int(where.node.run(["conntrack", "-C"]).stdout)


def send(program: Path, where: Site, family: Family, options: argparse.Namespace) -> float:
    """Have a pod make connections; return how many a second that were."""
    plan, count = PLANS[family], options.rate * options.seconds
    varied = Varied(destination_port=_PORTS, source_port=max(2, -(-count // _PORTS)))
    packet = udp(plan.pod(0), 20_000, plan.server(0), 1024)
    began = time.monotonic()
    Flood(program, where.pod, (where.node, "cali0"), packet, varied, count, options.rate).over()
    return float(count / (time.monotonic() - began))


def backend_of(name: str) -> str:
    """Return what `--backend` calls a data plane."""
    return registry.row(name).backend


def observed(
    program: Path, where: Site, name: str, family: Family, options: argparse.Namespace
) -> str:
    """Return a line about the verb on a data plane."""
    with in_force(where, name) as plane, open(os.devnull, "w") as nowhere:
        verb = subprocess.Popen(
            [*_VERB, "observe", "--backend", backend_of(name), "-o", "json"],
            stdout=nowhere,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert verb.stderr is not None
        verb.stderr.readline()
        rate = send(program, where, family, options)
        verb.send_signal(signal.SIGINT)
        said = verb.stderr.read().splitlines()[-1]
        verb.wait()
        there = made(where, plane)
    seen, _, missed = map(int, re.findall(r"(\d+) (?:connections|shown|missed)", said))
    spent = said.rpartition("with ")[2].removesuffix(" of CPU time")
    return line(rate, there, seen, missed, spent)


def recorded(
    program: Path, where: Site, name: str, family: Family, options: argparse.Namespace
) -> str:
    """Return a line about an agent that records."""
    with tempfile.TemporaryDirectory() as place, where.node.entered():
        document, record = Path(place, "config"), Path(place, "record")
        document.write_text(SPLIT)
        words = ["run", "--config", str(document), "--backend", backend_of(name), "--enable-ipv6"]
        words += ["--record", str(record), "--record-size", "256", "--cleanup-on-exit"]
        with Path(place, "log").open("w") as log:
            agent = subprocess.Popen([*_VERB, *words], stderr=log)
        wait_until(record.exists, "it listens")
        before = cpu(agent.pid)
        rate = send(program, where, family, options)
        plane = registry.row(name).make(placement())
        there = made(where, plane)
        plane.close()
        for _ in range(_PATIENCE):
            if sum(told(record)) >= there:
                break
            time.sleep(1)
        spent, memory = cpu(agent.pid) - before, resident(agent.pid)
        agent.terminate()
        agent.wait()
        seen, missed = told(record)
    return line(rate, there, seen, missed, f"{spent:.1f} s") + f" {memory:6.1f} MB"


def told(record: Path) -> tuple[int, int]:
    """Return how many connections a record has, and how many more it tells of."""
    seen = missed = 0
    for _, what in record_of(str(record)):
        seen += isinstance(what, Flow)
        missed += what if isinstance(what, int) else 0
    return seen, missed


def line(rate: float, there: int, seen: int, missed: int, cpu: str) -> str:
    """Return figures as a line of the table."""
    right = "all" if seen + missed == there else f"NOT ALL: {there - seen - missed} unaccounted"
    return f"{rate:8.0f} {there:8} {seen:8} {missed:8} {cpu:>8} {right}"


def cpu(pid: int) -> float:
    """Return the CPU seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=int, default=20_000)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--ipv6", action="store_true")
    parser.add_argument("--agent", action="store_true")
    parser.add_argument("--plane", choices=[row.name for row in PLANES])
    options = parser.parse_args()
    family = Family.IPV6 if options.ipv6 else Family.IPV4
    heads = ["a second", "made", "seen", "missed", "CPU"]
    print(" " * 16, *(f"{head:>8}" for head in heads), "   agent's RSS" if options.agent else "")
    with tempfile.TemporaryDirectory() as place:
        program = compile_flood(Path(place))
        for row in PLANES:
            if options.plane not in (None, row.name):
                continue
            with bpf_file_system() as pins, site(1, 2) as where:
                os.environ[PINS] = str(pins / "pins")
                where.world.run(["nft", "-f", "-"], stdin=_SILENCE)
                measure = recorded if options.agent else observed
                patient = ["net.netfilter.nf_conntrack_udp_timeout=600"]
                where.node.run(["sysctl", "-qw", *patient])
                print(f"{row.name:16} {measure(program, where, row.name, family, options)}")


if __name__ == "__main__":
    main()
