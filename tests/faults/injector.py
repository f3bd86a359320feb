"""An agent whose system calls fail when a test says so; strace makes them fail.

May not import the package: what is right is read from the kernel with other programs.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.kernel.running import Running, write
from tests.waiting import wait_until

DOCUMENTS = (
    "nonMasqueradeCIDRs: [172.20.0.0/16]\n",
    "nonMasqueradeCIDRs: [172.20.0.0/16, 10.10.1.0/24]\n",
)
HELD = re.compile(r"\b\d+\.\d+\.\d+\.\d+/\d+|-A POSTROUTING.*")


class Plane(NamedTuple):
    """How a data plane is asked for, read, and emptied by somebody else."""

    backend: str
    dump: str
    wipe: str


PLANES = {
    "iptables-nft": Plane(
        "iptables-nft", "iptables-nft-save -t nat", "iptables-nft -t nat -F IP-MASQ"
    ),
    "iptables-legacy": Plane(
        "iptables-legacy", "iptables-legacy-save -t nat", "iptables-legacy -t nat -F IP-MASQ"
    ),
    "ipset": Plane(
        "ipset", "iptables-nft-save -t nat; ipset save", "iptables-nft -t nat -F; ipset destroy"
    ),
    "nftables": Plane("nftables", "nft -s list ruleset", "nft delete table ip ip-masq-agent"),
    "bpf": Plane(
        "bpf",
        f"{sys.executable} -m ipmasq_agent list --backend=bpf",
        'rm -rf "$IPMASQ_BPF_PINS"/*',
    ),
}
# What each system call may fail with, in this kernel's words; others fail with _OTHERWISE.
ERRORS = {
    "openat": ("EMFILE", "EACCES", "EIO", "ENOMEM"),
    "socket": ("EMFILE", "ENOBUFS", "EACCES"),
    "socketpair": ("EMFILE", "ENOMEM"),
    "bind": ("ENOMEM", "EADDRINUSE"),
    "sendto": ("ENOBUFS", "EPERM", "ENOMEM"),
    "sendmsg": ("ENOBUFS", "EPERM", "ENOMEM"),
    "recvfrom": ("ENOBUFS", "ENOMEM"),
    "recvmsg": ("ENOBUFS", "ENOMEM"),
    "clone": ("EAGAIN", "ENOMEM"),
    "clone3": ("EAGAIN", "ENOMEM"),
    "vfork": ("EAGAIN", "ENOMEM"),
    "execve": ("EACCES", "ENOEXEC", "ENOENT", "ENOMEM"),
    "pipe2": ("EMFILE", "ENFILE"),
    "flock": ("ENOLCK", "EIO"),
    "memfd_create": ("EMFILE", "ENOMEM"),
    "mkdir": ("EROFS", "EACCES", "ENOSPC"),
    "bpf": ("EPERM", "ENOMEM", "EINVAL"),
    "read": ("EIO", "ENOMEM"),
    "write": ("EIO", "ENOSPC"),
    "mmap": ("ENOMEM",),
    "poll": ("ENOMEM",),
    "epoll_create1": ("EMFILE",),
    "eventfd2": ("EMFILE",),
    "inotify_add_watch": ("ENOSPC", "ENOMEM"),
    "setsockopt": ("EPERM", "ENOMEM"),
    "getsockopt": ("EPERM", "ENOMEM"),
    "init_module": ("EPERM",),
}
_OTHERWISE = ("EIO", "ENOMEM")
# Those that do not fail, or whose failure is no message of the kernel's: the end of a thread
# or a process, locks between threads, clocks, what closes, and waiting for a child.
NEVER = frozenset(
    {
        *("arch_prctl", "brk", "clock_getres", "clock_gettime", "clock_nanosleep", "close", "exit"),
        *("exit_group", "futex", "getegid", "geteuid", "getgid", "getpgid", "getpgrp"),
        *("getpid", "getppid", "getrandom", "getrlimit", "getrusage", "gettid", "getuid"),
        *("kill", "madvise", "munmap", "nanosleep", "prctl", "prlimit64", "restart_syscall"),
        *(
            "rseq",
            "rt_sigaction",
            "rt_sigprocmask",
            "rt_sigreturn",
            "sched_getaffinity",
            "sched_yield",
            "set_robust_list",
        ),
        *("set_tid_address", "sigaltstack", "tgkill", "times", "umask", "uname", "wait4"),
        *("waitid",),
    }
)


class Fault(NamedTuple):
    """One system call that fails once in each process: the N-th of its kind."""

    call: str
    error: str
    when: int

    def __str__(self) -> str:
        return f"{self.call}:{self.error}:{self.when}"


class Told(NamedTuple):
    """What came of a fault."""

    injected: int
    log: str
    known: bool
    """It was told, or the pass was right in spite of it, so that there is nothing to tell."""


class Daemon:
    """An agent, and what its data plane holds when nothing fails."""

    def __init__(self, plane: str, place: Path, *, wipe: bool = True) -> None:
        self.plane = PLANES[plane]
        self._wipe = wipe
        self._place = place
        self._document = place / "config"
        self._turn = 0
        self._document.write_text(DOCUMENTS[0])
        self._agent = Running(
            place / "log",
            "run",
            f"--config={self._document}",
            f"--backend={self.plane.backend}",
            f"--state-dir={place / 'state'}",
            f"--socket={place / 'agent.sock'}",
        )
        self._right: dict[int, list[str]] = {}
        try:
            self._agent.wait_ready()
            for _ in DOCUMENTS:
                self.disturb()
                self.recover()
                self._right[self._turn] = self.held()
            assert len({str(held) for held in self._right.values()}) == len(DOCUMENTS), self.log
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self) -> int:
        return self._agent.process.pid

    @property
    def log(self) -> str:
        return self._agent.log.read_text()

    def alive(self) -> bool:
        return self._agent.process.poll() is None

    def end(self) -> int:
        return self._agent.stop(signal.SIGTERM)

    def kill(self) -> None:
        self._agent.stop(signal.SIGKILL)

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def held(self) -> list[str]:
        """Return the prefixes and jumps that the kernel holds."""
        done = subprocess.run(self.plane.dump, shell=True, capture_output=True, text=True)
        return sorted(HELD.findall(done.stdout))

    def in_force(self) -> bool:
        return self.held() == self._right[self._turn]

    def recover(self) -> None:
        """Look again without faults, until all is right."""
        self._agent.process.send_signal(signal.SIGHUP)
        try:
            wait_until(self._agent.ready, "ready")
            if self._turn in self._right:
                wait_until(self.in_force, "right")
        except AssertionError as late:  # with what was said and held by then
            raise AssertionError(f"{late}: {self.held()}\n{self.log}") from late

    def calls(self) -> Counter[str]:
        """Return how often each system call is made in a pass by the process that makes most."""
        trace = self._place / "calls"
        with self._traced(trace, "-e", "trace=all"):
            self.disturb()
        most = calls_in(trace)
        self.recover()
        return most

    def inject(self, fault: Fault) -> Told:
        """Let a fault happen in a pass that has something to do."""
        trace, before = self._place / "trace", len(self.log)
        trace.write_text("")
        inject = f"inject={fault.call}:error={fault.error}:when={fault.when}"
        with self._traced(trace, "-e", f"trace={fault.call}", "-e", inject):
            self.disturb()
        injected = trace.read_text(errors="replace").count("(INJECTED)")
        # A busy machine takes its time; an error that nobody tells does not come.
        with contextlib.suppress(AssertionError):
            wait_until(lambda: self._told(before) or not self.alive() or self.in_force(), "told")
        return Told(injected, self.log[before:], self._told(before) or self.in_force())

    def _told(self, since: int) -> bool:
        return any(f" {level} " in self.log[since:] for level in ("error", "warning"))

    def disturb(self) -> None:
        """Empty the data plane, change the document, and wait until the agent is done with it."""
        before = len(self.log)
        if self._wipe:
            subprocess.run(self.plane.wipe, shell=True, capture_output=True)
        self._turn = (self._turn + 1) % len(DOCUMENTS)
        write(self._document, DOCUMENTS[self._turn])
        self._agent.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 3
        quiet, size = 0, -1
        # Done is: it has said something, and says no more. Or it can say nothing.
        while self.alive() and time.monotonic() < deadline and quiet < 8:
            time.sleep(0.02)
            said = self.log[before:]
            over = "rules applied" in said or " error " in said or " warning " in said
            quiet = quiet + 1 if over and len(said) == size else 0
            size = len(said)

    def _traced(self, trace: Path, *options: str) -> Tracing:
        return Tracing(self.pid, trace, options)


class Tracing:
    """strace, attached to all threads of a process and to what they start.

    Args:
        pid: of the process.
        trace: where it notes what it sees.
        options: what to look for, and what to do then.
        threads: or else to the main thread alone.
    """

    def __init__(
        self, pid: int, trace: Path, options: tuple[str, ...], *, threads: bool = True
    ) -> None:
        self._tasks = Path(f"/proc/{pid}/task")
        self._only = "*" if threads else str(pid)
        follow = ["-f"] if threads else []
        self._argv = ["strace", *follow, "-qq", "-o", os.fspath(trace), *options, "-p", str(pid)]

    def __enter__(self) -> None:
        self._strace = subprocess.Popen(self._argv, stderr=subprocess.DEVNULL)
        wait_until(lambda: all(self._tracers()), "strace is attached")

    def _tracers(self) -> Iterator[bool]:
        for task in self._tasks.glob(self._only):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                status = (task / "status").read_text()
                # What is injected may have ended it already.
                yield "TracerPid:\t0" not in status or "State:\tZ" in status

    def __exit__(self, *_: object) -> None:
        self._strace.send_signal(signal.SIGINT)
        try:
            self._strace.wait(0.5)
        except subprocess.TimeoutExpired:
            # It waits for one who waits for a child that it holds, or for one that hangs. When
            # it is gone the kernel lets go of all of them.
            self._strace.kill()
            self._strace.wait()


def calls_in(trace: Path) -> Counter[str]:
    """Return how often each system call that may fail was made by the process that made most."""
    counts: Counter[tuple[str, str]] = Counter()
    for line in trace.read_text(errors="replace").splitlines():
        found = re.match(r"(\d+)\s+(\w+)\(", line)
        if found and found[2] not in NEVER:
            counts[found[1], found[2]] += 1
    most: Counter[str] = Counter()
    for (_, call), count in counts.items():
        most[call] = max(most[call], count)
    return most


def every_fault(calls: Counter[str], most: int) -> list[Fault]:
    """Return each call with each error at each of its occurrences, up to some."""
    return [
        Fault(call, error, when)
        for call, count in sorted(calls.items())
        for error in ERRORS.get(call, _OTHERWISE)
        for when in range(1, min(count, most) + 1)
    ]


def some_faults(calls: Counter[str]) -> list[Fault]:
    """Return each call once, in the middle of a pass."""
    return [
        Fault(call, ERRORS.get(call, _OTHERWISE)[0], (count + 1) // 2)
        for call, count in sorted(calls.items())
    ]


def with_egress() -> None:
    """Give this namespace a device through which traffic leaves it."""
    for words in (
        "link add eth0 type veth peer name peer0",
        "addr add 192.0.2.1/24 dev eth0",
        "link set eth0 up",
        "link set peer0 up",
        "route add default via 192.0.2.2",
    ):
        subprocess.run(["ip", *words.split()], check=True)
