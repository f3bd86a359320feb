"""A network namespace of its own, and what runs in it, until we end."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from ipmasq_agent.errors import BenchError
from ipmasq_agent.host.commands import run
from ipmasq_agent.lab import netns
from ipmasq_agent.lab.children import tied, without_settings
from ipmasq_agent.policy.addresses import Family

_PATIENCE = 10.0
_KIND = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}

Popen = subprocess.Popen[bytes]


def written(log: IO[bytes], last: int = 0) -> str:
    """Return what programs wrote to a log, without blanks at its ends; at most its ``last``."""
    log.seek(0)
    return log.read().decode(errors="replace").strip()[-last:]


class HeldNamespace:
    """A network namespace and a mount namespace, held by a process that sleeps in them."""

    def __init__(self, name: str, environment: Mapping[str, str]) -> None:
        self.name = name
        self._environment = [f"{key}={value}" for key, value in environment.items()]
        self._children: list[Popen] = []
        # What /sys shows of devices is what was there for whoever mounted it.
        script = "mount -t sysfs sysfs /sys && ip link set lo up && exec sleep infinity"
        self._holder = self._spawn(["unshare", "--net", "--mount", "sh", "-c", script])

    def _spawn(self, argv: Sequence[str], **streams: Any) -> Popen:
        child = subprocess.Popen(
            tied(argv),
            start_new_session=True,  # Ctrl-C is for us; we end them
            **{"stdin": subprocess.DEVNULL, **streams},
        )
        self._children.append(child)
        return child

    def wait(self) -> None:
        """Wait until the namespaces are there.

        Raises:
            BenchError: they cannot be made.
        """
        deadline = time.monotonic() + _PATIENCE
        state = Path(f"/proc/{self._holder.pid}/comm")
        while time.monotonic() < deadline and self._holder.poll() is None:
            if state.read_text() == "sleep\n":
                return
            time.sleep(0.002)
        raise BenchError(
            "no network namespace can be made here",
            remedy="run as root, in a container with --privileged",
        )

    @property
    def pid(self) -> int:
        """Of the process that holds the namespaces."""
        return self._holder.pid

    def argv(self, *argv: str) -> list[str]:
        """Return ``argv`` made to run in here."""
        inside = ["nsenter", "--net", "--mount", "--target", str(self.pid), f"--wd={os.getcwd()}"]
        return [*inside, "env", *without_settings(), *self._environment, *argv]

    def run(self, *argv: str, stdin: str | None = None, timeout: float = 60.0) -> str:
        """Run a program in here to its end, and return what it printed.

        Raises:
            HostError: it is missing, fails, or does not end in time.
        """
        return run(tied(self.argv(*argv)), stdin=stdin, timeout=timeout).stdout

    def start(self, *argv: str, log: IO[bytes] | int = subprocess.DEVNULL) -> Popen:
        """Start a program in here that ends with the namespace."""
        return self._spawn(self.argv(*argv), stdout=log, stderr=log)

    def talk(self, *argv: str, log: IO[bytes]) -> Popen:
        """Start a program in here that takes orders and answers, and ends with the namespace."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        return self._spawn(self.argv(*argv), **pipes, stderr=log)

    def socket(self, family: Family, kind: int, protocol: int = 0) -> socket.socket:
        """Return a socket of this namespace; it stays of it wherever it is used.

        Raises:
            BenchError: the kernel refuses.
        """
        try:
            return netns.made_inside(
                Path(f"/proc/{self.pid}/ns/net"),
                lambda: socket.socket(_KIND[family], kind, protocol),
            )
        except OSError as cause:
            raise BenchError(f"{self.name}: no socket can be had: {cause}") from cause

    def statistic(self, name: str) -> int:
        """Return one of the counters of TCP and IP that netstat(8) shows: ``RetransSegs``."""
        files = (Path(f"/proc/{self.pid}/net/{name}") for name in ("snmp", "netstat"))
        lines = [line for file in files for line in file.read_text().splitlines()]
        for names, values in zip(lines[::2], lines[1::2], strict=True):
            found = dict(zip(names.split(), values.split(), strict=True))
            if name in found:
                return int(found[name])
        raise BenchError(f"the kernel does not count {name}")

    def listens(self, protocol: str, port: int) -> bool:
        """Whether a socket has the port of ``tcp`` or ``udp``."""
        return any(
            line.split()[1].endswith(f":{port:04X}")
            for table in (protocol, f"{protocol}6")
            for line in Path(f"/proc/{self.pid}/net/{table}").read_text().splitlines()[1:]
        )

    @contextlib.contextmanager
    def at_work(
        self, argv: Sequence[str], ready: Callable[[], bool], patience: float = _PATIENCE
    ) -> Iterator[Popen]:
        """Run a program in here while the block does, from when it is ready on.

        Raises:
            BenchError: it ended, or is not ready in so many seconds; with what it said.
        """
        with tempfile.TemporaryFile() as log:
            process = self.start(*argv, log=log)
            try:
                deadline = time.monotonic() + patience
                while not ready():
                    if process.poll() is not None or time.monotonic() > deadline:
                        said = written(log, 1000)
                        raise BenchError(f"`{' '.join(argv)}` does not serve: {said}")
                    time.sleep(0.01)
                yield process
            finally:
                self.end(process)

    def serving(
        self, argv: Sequence[str], protocol: str, port: int
    ) -> contextlib.AbstractContextManager[Popen]:
        """Run a server in here while the block does, from when it has its port on."""
        return self.at_work(argv, lambda: self.listens(protocol, port))

    def together(self, programs: Sequence[Sequence[str]], seconds: float) -> list[str]:
        """Run programs at the same time, and return what each said.

        One that takes longer than so many seconds is ended; what it said until then tells.
        """
        logs, running = [], []
        with contextlib.ExitStack() as stack:
            for argv in programs:
                logs.append(stack.enter_context(tempfile.TemporaryFile()))
                running.append(self.start(*argv, log=logs[-1]))
                stack.callback(self.end, running[-1])
            deadline = time.monotonic() + seconds
            for one in running:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    one.wait(max(deadline - time.monotonic(), 0))
            return [written(log) for log in logs]

    def end(self, child: Popen) -> None:
        """End a program that was started in here."""
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()
        self._children.remove(child)

    def close(self) -> None:
        """End what runs in here, and with the last process the namespaces."""
        for child in reversed(self._children):
            child.kill()
        for child in self._children:
            child.wait()
