"""What the plugin takes for a cluster of some size: `python -m tests.fleet [NODES]`.

Agents are simulated and answer at once; server and plugin share this machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.fleet.agents import Agent
from tests.fleet.cluster import FleetCluster
from tests.fleet.plugin import PLUGIN
from tests.kube.cluster import write_kubeconfig

OLD, NEW = "nonMasqueradeCIDRs: [10.0.0.0/8]\n", "nonMasqueradeCIDRs: []\n"


def measure(cluster: FleetCluster, place: Path, *words: str) -> str:
    """Return a row: how long it took, of which CPU time, and how much memory at the most."""
    kubeconfig = write_kubeconfig(place / "kubeconfig", cluster.port)
    asked, begun = len(cluster.requests), time.monotonic()
    with subprocess.Popen(
        [*PLUGIN, *words, "--kubeconfig", str(kubeconfig)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as child:
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    seconds, cpu = time.monotonic() - begun, usage.ru_utime + usage.ru_stime
    resident = usage.ru_maxrss / 1024
    requests = len(cluster.requests) - asked
    return f"{seconds:.1f} s | {cpu:.1f} s | {resident:.0f} MB | {requests:,} | {child.returncode}"


def main(count: int) -> None:
    """Print a table in Markdown."""
    print(
        "| | takes | of its own CPU | memory | requests | exit status |\n|---|--:|--:|--:|--:|--:|"
    )
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "new.yaml").write_text(NEW)
        apply = ("apply", "--yes", "-f", str(place / "new.yaml"), "--grace", "0")
        for what, port, words, failing in (
            ("`status`, by proxy", 9797, ("status",), 0),
            ("`status`, by exec", None, ("status",), 0),
            ("`apply`", 9797, apply, 0),
            ("`apply`, three nodes fail", 9797, apply, 3),
        ):
            agents = [Agent(f"node-{number:05}", port=port) for number in range(count)]
            cluster = FleetCluster(agents, OLD)
            for agent in agents[:: count // 3 + 1][:failing]:
                agent.fails = "no room"
            try:
                if words[0] == "apply":
                    measure(cluster, place, "status")
                print(f"| {what} | {measure(cluster, place, *words)} |", flush=True)
            finally:
                cluster.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
