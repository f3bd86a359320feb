"""This machine: its CPUs, its memory, and what is told of it beside the figures."""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import re
import shutil
import socket
import struct
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ipmasq_agent.host.commands import run

_VERSIONS = {
    "wrk": ("wrk", "-v"),
    "nginx": ("nginx", "-v"),
    "iperf3": ("iperf3", "--version"),
    "sockperf": ("sockperf", "--version"),
    "iptables": ("iptables-nft", "--version"),
    "nft": ("nft", "--version"),
    "ipset": ("ipset", "--version"),
}
_ENOUGH_TO_PIN = 4
QUIETENING = 5.0
"""Seconds that are waited at most for the machine to become quiet."""
_QUIET, _LOOK = 0.1, 0.05  # share of the CPUs; seconds
_CALM, _STIR = 0.5, 1 << 18  # seconds; bytes
# SIOCETHTOOL, and ETHTOOL_G... of include/uapi/linux/ethtool.h.
_ETHTOOL = 0x8946
_OFFLOADS = {"rx checksum": 0x14, "tx checksum": 0x16, "TSO": 0x1E, "GSO": 0x23, "GRO": 0x2B}
_SETTINGS = {
    "conntrack": ("net.netfilter.nf_conntrack_max", "net.netfilter.nf_conntrack_buckets"),
    "BPF": ("net.core.bpf_jit_enable", "net.core.bpf_jit_harden", "kernel.bpf_stats_enabled"),
    "TCP": ("net.ipv4.tcp_congestion_control", "net.core.default_qdisc"),
}


@dataclass(frozen=True, slots=True)
class Ends:
    """Which CPUs programs at the two ends may use, as taskset(1) takes them; "" for any."""

    sender: str = ""
    receiver: str = ""


def ends() -> Ends:
    """Return CPUs for the sender and the receiver, where the node's work has others left."""
    count = os.cpu_count() or 1
    return Ends(str(count - 2), str(count - 1)) if count >= _ENOUGH_TO_PIN else Ends()


def pinned(cpus: str, argv: Sequence[str]) -> list[str]:
    """Return ``argv`` made to run on those CPUs; as it is for none."""
    return ["taskset", "-c", cpus, *argv] if cpus else list(argv)


def node_cpus() -> int:
    """Return the CPUs that the node's work goes to, as a mask; 0 for whichever sends."""
    count = os.cpu_count() or 1
    return (1 << count - 2) - 1 if count >= _ENOUGH_TO_PIN else 0


def describe() -> dict[str, str]:
    """Return what the figures are measured on, as it is now."""
    count = os.cpu_count() or 1
    pinned = ends()
    shares = (
        f"sender on CPU {pinned.sender}, receiver on CPU {pinned.receiver}, node on the others"
        if pinned.sender
        else "sender, node and receiver share them"
    )
    return {
        "kernel": f"{platform.system()} {platform.release()} ({platform.machine()})",
        "processor": f"{count} x {_processor()}; {shares}",
        "memory": f"{_meminfo()['MemTotal'] / 2**30:.1f} GiB",
        "load before": f"{os.getloadavg()[0]:.2f}",
        **{title: _settings(names) for title, names in _SETTINGS.items()},
        "tools": ", ".join(f"{name} {_version(argv)}" for name, argv in _VERSIONS.items()),
        "python": platform.python_version(),
    }


def in_a_line() -> str:
    """Return what figures of developers are measured on."""
    iptables = run(["iptables-nft", "--version"]).stdout.strip()
    return (
        f"Linux {platform.release()}, {os.cpu_count()} x {_processor()}, "
        f"Python {platform.python_version()}, {iptables}"
    )


def offloads(of_host: socket.socket, device: str) -> str:
    """Return which offloads a device has on, by a socket of its host."""
    found = []
    for name, command in _OFFLOADS.items():
        value = ctypes.create_string_buffer(struct.pack("=II", command, 0), 8)
        request = struct.pack("@16sP", device.encode(), ctypes.addressof(value))
        fcntl.ioctl(of_host, _ETHTOOL, request)
        found.append(f"{name} {'on' if struct.unpack('=II', value.raw)[1] else 'off'}")
    return ", ".join(found)


def kernel_memory() -> int:
    """Return how many bytes the kernel has in slabs, in vmalloc'd areas and for each CPU.

    Entries of conntrack and elements of sets are in slabs, the tables of eBPF in the others.
    """
    found = _meminfo()
    return sum(found[name] for name in ("Slab", "VmallocUsed", "Percpu"))


def busy_seconds() -> float:
    """Return for how long all CPUs together were not idle, since the start of the machine."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def stolen_seconds() -> float:
    """Return how long CPUs would have worked and were given to other guests, since the start."""
    words = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return int(words[8]) / os.sysconf("SC_CLK_TCK")


def settle() -> bool:
    """Wait until the machine has nothing else to do, such as to take the last rig down.

    Returns:
        whether it became quiet in time.
    """
    deadline = time.monotonic() + QUIETENING
    while time.monotonic() < deadline:
        busy = busy_seconds()
        time.sleep(_LOOK)
        if busy_seconds() - busy <= _QUIET * _LOOK:
            return True
    return False


def calm_memory() -> int:
    """Return how much memory the kernel has taken, once that stays the same for a while.

    It gives back what a namespace had in the background, and sleeps in between.
    """
    deadline = time.monotonic() + QUIETENING
    taken, since = kernel_memory(), time.monotonic()
    while (now := time.monotonic()) < deadline and now - since < _CALM:
        time.sleep(_LOOK)
        if abs((found := kernel_memory()) - taken) > _STIR:
            taken, since = found, time.monotonic()
    return kernel_memory()


def _meminfo() -> dict[str, int]:
    lines = Path("/proc/meminfo").read_text().splitlines()
    pairs = (line.split(":") for line in lines)
    return {name: int(value.split()[0]) * 1024 for name, value in pairs}


def _processor() -> str:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def _settings(names: Iterable[str]) -> str:
    told = []
    for name in names:
        try:
            value = Path("/proc/sys", *name.split(".")).read_text().strip()
        except OSError:  # its module is not loaded, or the kernel is built without
            value = "not there"
        told.append(f"{name.rpartition('.')[2]} {value}")
    return ", ".join(told)


def _version(argv: tuple[str, ...]) -> str:
    if not shutil.which(argv[0]):
        return "not installed"
    done = run(argv, check=False)  # `wrk -v` exits with 1
    found = re.search(r"\d+(\.\d+)+", done.stdout + done.stderr)
    return found[0] if found else "of unknown version"
