"""What the agent costs a node while nothing happens: memory, and CPU for each resync.

    .venv/bin/python -m bench.footprint [--source file] [--backend iptables-nft] [--idle 60]

Sixty resyncs are what an hour brings; here they come every second. CPU counts the
programs that the agent starts (they are its children) and its workers. With --idle N the
agent then sleeps at the default interval for N seconds, and that is measured as well.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

from bench.support import agent, inside_namespace, machine, to_api, to_file

_TICK = os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> float:
    """Return the resident memory of a process in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"process {pid} has no memory")


def cpu(pid: int) -> float:
    """Return the CPU time of a process, its workers and its ended children in ms.

    /proc/PID/schedstat counts nanoseconds for the living; a child's time comes in ticks
    once it has ended, which over many resyncs evens out.
    """
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ended = (int(fields[13]) + int(fields[14])) / _TICK * 1000
    living = 0.0
    for process in (pid, *workers(pid)):
        for task in Path(f"/proc/{process}/task").iterdir():
            living += int((task / "schedstat").read_text().split()[0]) / 1e6
    return living + ended


def passes() -> int:
    """Return how many passes the agent has made."""
    with urllib.request.urlopen("http://127.0.0.1:9797/status", timeout=5) as answer:
        return int(json.load(answer)["passes"])


def workers(pid: int) -> list[int]:
    """Return the living children of the agent."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(child) for child in found.stdout.split()]


def document(interval: str) -> str:
    """Return a document of 64 entries."""
    entries = "".join(f"  - 10.0.{n}.0/24\n" for n in range(64))
    return f"resyncInterval: {interval}\nnonMasqueradeCIDRs:\n{entries}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="iptables-nft")
    parser.add_argument("--source", choices=["file", "api"], default="file")
    parser.add_argument("--resyncs", type=int, default=60)
    parser.add_argument("--ipv6", action="store_true")
    parser.add_argument("--idle", type=int, default=0, metavar="SECONDS")
    options = parser.parse_args()
    inside_namespace()
    # Not in /tmp: the agent watches the directories above its document too, and there
    # everybody writes.
    directory = tempfile.TemporaryDirectory(dir="/var/tmp")
    with directory as temporary, contextlib.ExitStack() as stack:
        place = Path(temporary)
        os.environ["XTABLES_LOCKFILE"] = str(place / "xtables.lock")
        write, where = to_api(place, stack) if options.source == "api" else to_file(place)
        write(document("1s"), 0)
        log = place / "log"
        flags = ["--backend", options.backend, *where]
        flags.append(f"--enable-ipv6={str(options.ipv6).lower()}")
        with agent(*flags, log=log) as process:
            families = "IPv4 and IPv6" if options.ipv6 else "IPv4"
            print(f"{options.backend}, {options.source}, {families}, 64 CIDRs; {machine()}")
            print(f"{'resident when ready':40}{resident(process.pid):8.1f} MB")
            before, first = cpu(process.pid), passes()
            time.sleep(options.resyncs)
            resyncs = passes() - first
            used = cpu(process.pid) - before
            after = f"resident after {resyncs} resyncs"
            print(f"{after:40}{resident(process.pid):8.1f} MB")
            for worker in workers(process.pid):
                print(f"{'resident, legacy worker':40}{resident(worker):8.1f} MB")
            print(f"{'CPU for each resync, children included':40}{used / resyncs:8.1f} ms")
            if options.idle:
                write(document("60s"), 1)
                time.sleep(2)
                before = cpu(process.pid)
                time.sleep(options.idle)
                minute = (cpu(process.pid) - before) / options.idle * 60
                print(f"{'CPU a minute at the default interval':40}{minute:8.1f} ms")


if __name__ == "__main__":
    main()
