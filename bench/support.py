"""What benchmarks share: a namespace to run in, an agent in it, medians, the machine."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ipmasq_agent.lab.children import own

AGENT = own("ipmasq_agent")


def machine() -> str:
    """Return what the figures were measured on, in a line."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    iptables = subprocess.run(
        ["iptables-nft", "--version"], capture_output=True, text=True, check=True
    ).stdout.strip()
    return (
        f"Linux {platform.release()}, {os.cpu_count()} x {model}, "
        f"Python {platform.python_version()}, {iptables}"
    )


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value below which ``share`` of the values lie (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def row(label: str, values: Sequence[float], unit: str = "ms") -> str:
    """Return median, p99 and worst as a line of a table."""
    return (
        f"{label:44} median {statistics.median(values):8.2f}   "
        f"p99 {quantile(values, 0.99):8.2f}   max {max(values):8.2f} {unit}"
    )


def inside_namespace() -> None:
    """Run the calling program again in a network namespace that goes when it ends."""
    if os.environ.get("IPMASQ_BENCH_NAMESPACE"):
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        return
    name = f"ipmasq-bench-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        done = subprocess.run(
            ["ip", "netns", "exec", name, *sys.orig_argv],
            env={**os.environ, "IPMASQ_BENCH_NAMESPACE": name},
            check=False,
        )
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)
    sys.exit(done.returncode)


@contextlib.contextmanager
def agent(*arguments: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the agent until it is ready, and end it afterwards."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*AGENT, "run", "--log-format=json", f"--state-dir={log.parent}/state", *arguments],
            stdout=out,
            stderr=out,
        )
    try:
        wait_ready(process, log)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)


def wait_ready(process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when /readyz says so; fail with the agent's log when it ends before."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError):
            urllib.request.urlopen("http://127.0.0.1:9797/readyz", timeout=1).close()
            return
        time.sleep(0.02)
    raise SystemExit(f"the agent did not become ready:\n{log.read_text()}")


def log_lines(log: Path) -> list[dict[str, Any]]:
    """Return the agent's log as objects."""
    return [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]


Write = Callable[[str, int], None]
"""Puts a document in place; the number is a new one each time."""


def to_file(place: Path) -> tuple[Write, list[str]]:
    """Return how a mounted ConfigMap is updated, and the agent's flags for it."""
    directory = place / "config"
    directory.mkdir()
    (directory / "config").symlink_to("..data/config")

    def write(content: str, number: int) -> None:
        swap(directory, content, number)

    return write, ["--config", str(directory / "config")]


def to_api(place: Path, stack: contextlib.ExitStack) -> tuple[Write, list[str]]:
    """Return how a ConfigMap is updated in a mock API server, and the agent's flags for it."""
    from tests.kube.cluster import Cluster

    cluster = Cluster()
    stack.callback(cluster.close)
    access = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{cluster.port}"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    }
    (place / "kubeconfig").write_text(json.dumps(access))

    def write(content: str, number: int) -> None:
        cluster.put({"config": content})

    flags = ["--configmap", "kube-system/ip-masq-agent"]
    return write, [*flags, "--kubeconfig", str(place / "kubeconfig")]


def swap(directory: Path, content: str, number: int) -> None:
    """Write the document as kubelet updates a mounted ConfigMap."""
    version = directory / f"..{number}"
    version.mkdir()
    (version / "config").write_text(content)
    link = directory / "..data_tmp"
    link.symlink_to(version.name)
    link.rename(directory / "..data")
