"""What the agent costs a node while nothing happens: memory, and CPU for each resync.

    .venv/bin/python -m bench.footprint [--source file] [--backend iptables-nft] [--idle 60]

Sixty resyncs are what an hour brings; here they come every second. CPU counts the
programs that the agent starts (they are its children). With --idle N the
agent then sleeps at the default interval for N seconds, and that is measured as well.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import urllib.request
from pathlib import Path

from bench.support import adjacent, inside_namespace, resident, site
from ipmasq_agent.bench.machine import in_a_line

_TICK = os.sysconf("SC_CLK_TCK")


def cpu(pid: int) -> float:
    """Return the CPU time of a process and its ended children in ms.

    /proc/PID/schedstat counts nanoseconds for the living; a child's time comes in ticks
    once it has ended, which over many resyncs evens out.
    """
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ended = (int(fields[13]) + int(fields[14])) / _TICK * 1000
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return ended + sum(int((task / "schedstat").read_text().split()[0]) / 1e6 for task in tasks)


def passes() -> int:
    """Return how many passes the agent has made."""
    with urllib.request.urlopen("http://127.0.0.1:9797/status", timeout=5) as answer:
        return int(json.load(answer)["passes"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="iptables-nft")
    parser.add_argument("--source", choices=["file", "api"], default="file")
    parser.add_argument("--resyncs", type=int, default=60)
    parser.add_argument("--ipv6", action="store_true")
    parser.add_argument("--idle", type=int, default=0, metavar="SECONDS")
    options = parser.parse_args()
    inside_namespace()
    with site(options.source) as here:
        here.write(adjacent(64, resyncInterval="1s"))
        flags = ["--backend", options.backend]
        flags.append(f"--enable-ipv6={str(options.ipv6).lower()}")
        with here.agent(*flags) as process:
            families = "IPv4 and IPv6" if options.ipv6 else "IPv4"
            print(f"{options.backend}, {options.source}, {families}, 64 CIDRs; {in_a_line()}")
            print(f"{'resident when ready':40}{resident(process.pid, 'VmRSS'):8.1f} MB")
            before, first = cpu(process.pid), passes()
            time.sleep(options.resyncs)
            resyncs = passes() - first
            used = cpu(process.pid) - before
            after = f"resident after {resyncs} resyncs"
            print(f"{after:40}{resident(process.pid, 'VmRSS'):8.1f} MB")
            print(f"{'CPU for each resync, children included':40}{used / resyncs:8.1f} ms")
            if options.idle:
                here.write(adjacent(64, resyncInterval="60s"))
                time.sleep(2)
                before = cpu(process.pid)
                time.sleep(options.idle)
                minute = (cpu(process.pid) - before) / options.idle * 60
                print(f"{'CPU a minute at the default interval':40}{minute:8.1f} ms")


if __name__ == "__main__":
    main()
