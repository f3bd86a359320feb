"""Every program that we run is run here, and shown whole when it fails."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ipmasq_agent.errors import CommandFailed, HostError, MissingTool

# Which Debian package to name when a program is missing; the names are much the same elsewhere.
PACKAGES: Mapping[str, str] = {
    "conntrack": "conntrack",
    "curl": "curl",
    "ip": "iproute2",
    "ipset": "ipset",
    "ip6tables-legacy-save": "iptables",
    "ip6tables-nft-restore": "iptables",
    "ip6tables-nft-save": "iptables",
    "iptables-legacy-save": "iptables",
    "ip6tables-nft": "iptables",
    "iptables-nft": "iptables",
    "iptables-nft-restore": "iptables",
    "iptables-nft-save": "iptables",
    "nft": "nftables",
    "ping": "iputils-ping",
    "sysctl": "procps",
    "tcpdump": "tcpdump",
}


@dataclass(frozen=True, slots=True)
class Completed:
    """What a program left behind: exit status, and its two streams as text."""

    status: int
    stdout: str
    stderr: str


def run(
    argv: Sequence[str],
    *,
    stdin: str | None = None,
    check: bool = True,
    timeout: float = 60.0,
) -> Completed:
    """Run a program to its end and return what it wrote.

    Args:
        argv: the program and its arguments; never a shell line.
        stdin: text to feed it; without it, standard input is empty.
        check: raise when the exit status is not 0.
        timeout: seconds until the program is killed.

    Raises:
        MissingTool: the program is not installed.
        CommandFailed: it exited with a status other than 0, and ``check`` is set.
        HostError: it did not end in time.
    """
    try:
        done = subprocess.run(
            argv,
            input=stdin if stdin is not None else "",
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError as cause:
        package = PACKAGES.get(argv[0], argv[0])
        raise MissingTool(
            f"{argv[0]} is not installed", remedy=f"install the package {package}"
        ) from cause
    except subprocess.TimeoutExpired as cause:
        raise HostError(f"`{' '.join(argv)}` did not end within {timeout:g} s") from cause
    if check and done.returncode != 0:
        raise CommandFailed(argv, done.returncode, done.stderr)
    return Completed(done.returncode, done.stdout, done.stderr)
