"""Network namespaces for tests: made under a name of their own, entered, and always removed.

Standard library and iproute2 only. A name carries the pid of the process that made it, so
several test runs can share a machine, and a run that was killed is swept by the next one.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

PREFIX = "ipmq-test"
RUN_NETNS = Path("/run/netns")
CLONE_NEWNET = 0x40000000

_numbers = itertools.count()
_libc = ctypes.CDLL(None, use_errno=True)


def _ip(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *words], check=check, capture_output=True, text=True)


def sweep() -> list[str]:
    """Remove the namespaces of test runs that no longer exist, and return their names."""
    swept = []
    for entry in RUN_NETNS.glob(f"{PREFIX}-*"):
        owner = entry.name.removeprefix(f"{PREFIX}-").split("-")[0]
        if owner.isdigit() and not Path("/proc", owner).exists():
            _ip("netns", "delete", entry.name, check=False)
            swept.append(entry.name)
    return swept


def _setns(descriptor: int) -> None:
    # os.setns came with Python 3.12.
    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"setns: {os.strerror(code)}")


class Namespace:
    """A network namespace with its loopback up; a context manager that removes it.

    Processes started with ``popen`` are ended before the namespace goes.
    """

    def __init__(self, label: str = "ns") -> None:
        if os.geteuid() != 0:
            raise PermissionError("tests in network namespaces need root")
        self.name = f"{PREFIX}-{os.getpid()}-{next(_numbers)}-{label}"
        self._children: list[subprocess.Popen[Any]] = []
        _ip("netns", "add", self.name)
        try:
            _ip("-n", self.name, "link", "set", "lo", "up")
            # Detection of duplicates keeps an IPv6 address of a new device, of its link too,
            # from being used for a second or more; the first packet through it may be lost.
            self.run(["sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0"])
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Namespace({self.name!r})"

    @property
    def path(self) -> Path:
        """The file that stands for the namespace; opened, it can be given to setns(2)."""
        return RUN_NETNS / self.name

    def argv(self, argv: Sequence[str]) -> list[str]:
        """Return ``argv`` made to run inside."""
        return ["ip", "netns", "exec", self.name, *argv]

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: str | None = None,
        check: bool = True,
        timeout: float = 60.0,
        env: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program inside to its end. A failure shows what it wrote to standard error."""
        done = subprocess.run(
            self.argv(argv),
            input=stdin or "",
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env=env,
        )
        if check and done.returncode != 0:
            raise AssertionError(
                f"{' '.join(argv)} exited with {done.returncode} in {self.name}:\n"
                f"{done.stdout}{done.stderr}"
            )
        return done

    def popen(
        self,
        argv: Sequence[str],
        *,
        stdin: int | IO[Any] | None = subprocess.DEVNULL,
        stdout: int | IO[Any] | None = subprocess.DEVNULL,
        stderr: int | IO[Any] | None = subprocess.DEVNULL,
        env: dict[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        """Start a program inside; it is ended with the namespace at the latest."""
        child = subprocess.Popen(
            self.argv(argv), stdin=stdin, stdout=stdout, stderr=stderr, text=True, env=env
        )
        self._children.append(child)
        return child

    def veth(self, device: str, peer: Namespace, peer_device: str) -> None:
        """Join this namespace to ``peer`` by a veth pair whose two ends are up."""
        # Made inside, not moved in: the root namespace never sees either end.
        _ip(
            *("-n", self.name, "link", "add", device, "type", "veth"),
            *("peer", "name", peer_device, "netns", peer.name),
        )
        _ip("-n", self.name, "link", "set", device, "up")
        _ip("-n", peer.name, "link", "set", peer_device, "up")

    def lead_out(self) -> None:
        """Add a device with addresses and routes out in both families, as a node has."""
        for words in (
            "link add eth1 type veth peer name far",
            "addr add 192.168.10.100/24 dev eth1",
            "addr add fd00:192:168:10::100/64 dev eth1 nodad",
            "link set eth1 up",
            "link set far up",
            "route add default via 192.168.10.200",
            "-6 route add default via fd00:192:168:10::200 dev eth1",
        ):
            self.run(["ip", *words.split()])

    def address(self, device: str, *prefixes: str) -> None:
        """Give ``device`` addresses, such as ``192.0.2.1/24``. IPv6 ones are usable at once."""
        for prefix in prefixes:
            # Also without detection the kernel's own queue has to say so before it is used.
            at_once = ["nodad"] if ":" in prefix else []
            _ip("-n", self.name, "address", "add", prefix, "dev", device, *at_once)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Move the calling thread inside; its subprocesses and new threads follow.

        In the main thread ``/proc/net`` follows too, as it is the main thread's view.
        ``/sys`` keeps showing the namespace in which it was mounted.
        """
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            there = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                _setns(there)
            finally:
                os.close(there)
            try:
                yield
            finally:
                _setns(here)
        finally:
            os.close(here)

    def close(self) -> None:
        """End the processes that were started here, then remove the namespace."""
        for child in self._children:
            if child.poll() is None:
                child.terminate()
        for child in self._children:
            try:
                child.wait(5)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            for stream in (child.stdin, child.stdout, child.stderr):
                if stream is not None:
                    stream.close()
        self._children.clear()
        if self.path.exists():
            _ip("netns", "delete", self.name)
