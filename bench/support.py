"""What the measurements share: a namespace to run in, an agent in it, and how medians are told."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ipmasq_agent.host.commands import run
from ipmasq_agent.lab.children import own
from ipmasq_agent.lab.mounted import mount

AGENT = own("ipmasq_agent")
_INSIDE = "IPMASQ_BENCH_NAMESPACE"


def row(label: str, values: Sequence[float], unit: str = "ms") -> str:
    """Return median, p99 (nearest rank) and worst as a line of a table."""
    late = sorted(values)[min(len(values) - 1, int(0.99 * len(values)))]
    return (
        f"{label:44} median {statistics.median(values):8.2f}   "
        f"p99 {late:8.2f}   max {max(values):8.2f} {unit}"
    )


def medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the median of each figure over rounds that have the same."""
    return {label: statistics.median(each[label] for each in rounds) for label in rounds[0]}


def table(heads: Sequence[str], columns: Sequence[Mapping[str, float]], width: int) -> str:
    """Return a table of figures: a title and the head of each column, then labels.

    Args:
        heads: the title, and what stands above each column.
        columns: label → figure; a dash stands where a column has none.
        width: of a column.
    """
    title, *above = heads
    lines = [f"{title:44}" + "".join(f"{head:>{width}}" for head in above)]
    for label in max(columns, key=len, default={}):
        told = (f"{one[label]:.1f}" if label in one else "-" for one in columns)
        lines.append(f"  {label:42}" + "".join(f"{figure:>{width}}" for figure in told))
    return "\n".join(lines)


def inside_namespace() -> None:
    """Go on in a network namespace and a mount namespace that end with this program."""
    if _INSIDE not in os.environ:
        os.environ[_INSIDE] = "1"
        os.execvp("unshare", ["unshare", "--net", "--mount", *sys.orig_argv])
    # What /sys shows of devices is what was there for whoever mounted it.
    run(["mount", "-t", "sysfs", "sysfs", "/sys"])
    run(["ip", "link", "set", "lo", "up"])


def resident(process: int, field: str = "VmRSS") -> float:
    """Return the memory of a process in MB; with the field VmHWM its peak."""
    told = Path(f"/proc/{process}/status").read_text().partition(f"{field}:")[2]
    return int(told.split()[0]) / 1024


@dataclass(frozen=True, slots=True)
class Site:
    """Where an agent runs: its directory, its document, its log.

    Attributes:
        write: puts a document in place.
        flags: lead the agent to it.
    """

    directory: Path
    write: Callable[[str], object]
    flags: Sequence[str]

    @property
    def log(self) -> Path:
        """What the agent writes, lines of JSON."""
        return self.directory / "log"

    @contextlib.contextmanager
    def agent(self, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run the agent until it is ready, and end it afterwards."""
        own = f"--state-dir={self.directory}/state", f"--socket={self.directory}/agent.sock"
        argv = [*AGENT, "run", "--log-format=json", *own, *flags, *self.flags]
        with self.log.open("wb") as out:
            process = subprocess.Popen(argv, stdout=out, stderr=out)
        try:
            self._wait_ready(process)
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(10)

    def _wait_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(OSError):
                urllib.request.urlopen("http://127.0.0.1:9797/readyz", timeout=1).close()
                return
            time.sleep(0.02)
        raise SystemExit(f"the agent did not become ready:\n{self.log.read_text()}")

    def moments(self, message: str) -> list[float]:
        """Return when the agent logged a message."""
        lines = (line for line in self.log.read_text().splitlines() if line.startswith("{"))
        told: list[dict[str, Any]] = [json.loads(line) for line in lines]
        return [
            datetime.fromisoformat(each["time"]).timestamp()
            for each in told
            if each["message"] == message
        ]


@contextlib.contextmanager
def site(source: str = "file") -> Iterator[Site]:
    """Make a place for an agent whose document is in a file or in a mock API server."""
    # Not in /tmp: the agent watches the directories above its document too, and there
    # everybody writes.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as temporary, contextlib.ExitStack() as stack:
        directory = Path(temporary)
        # The lock of the machine is everybody's; waiting for others is not what is measured.
        os.environ["XTABLES_LOCKFILE"] = str(directory / "xtables.lock")
        yield (_with_api(directory, stack) if source == "api" else _with_file(directory))


def _with_file(directory: Path) -> Site:
    mounted = directory / "config"
    return Site(
        directory,
        lambda content: mount(mounted, {"config": content}),
        ["--config", str(mounted / "config")],
    )


def _with_api(directory: Path, stack: contextlib.ExitStack) -> Site:
    from tests.kube.cluster import Cluster

    cluster = Cluster()
    stack.callback(cluster.close)
    access = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{cluster.port}"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    }
    kubeconfig = directory / "kubeconfig"
    kubeconfig.write_text(json.dumps(access))
    return Site(
        directory,
        lambda content: cluster.put({"config": content}),
        ["--configmap", "kube-system/ip-masq-agent", "--kubeconfig", str(kubeconfig)],
    )


def adjacent(cidrs: int, **keys: str | int) -> str:
    """Return a document of networks beside each other, and of other keys."""
    head = "".join(f"{key}: {value}\n" for key, value in keys.items())
    entries = "".join(f"  - 10.{n // 256}.{n % 256}.0/24\n" for n in range(cidrs))
    return f"{head}nonMasqueradeCIDRs:\n{entries}"
