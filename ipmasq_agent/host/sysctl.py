"""Settings of the network of this namespace, as the kernel shows them in files."""

from __future__ import annotations

from pathlib import Path

NET = Path("/proc/sys/net")


def setting(name: str) -> int | None:
    """Return a number below /proc/sys/net, like ``ipv4/ip_forward``; None where there is none."""
    try:
        return int((NET / name).read_text())
    except (OSError, ValueError):  # of a device that has gone, or a module that is not loaded
        return None


def connections() -> tuple[int, int] | None:
    """Return how many connections are tracked here, and how many may be; None without tracking."""
    count, most = (setting(f"netfilter/nf_conntrack_{name}") for name in ("count", "max"))
    return None if count is None or most is None else (count, most)
