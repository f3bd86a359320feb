"""iptables over the legacy ip_tables interface, written through libiptc.

A legacy table is read and replaced as a whole. We hold the xtables lock from before the
read until after the commit; the read is ``iptables-legacy-save``, the commit is made by a
worker process (``legacy_worker``), one for each family because libxtables can build
MASQUERADE for one family in a process only, and because an error of libxtables may exit
the process: that costs a worker, not the agent.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ipmasq_agent.backends.iptables import IptablesBackend, program
from ipmasq_agent.dialects.iptables import Placement, Plan
from ipmasq_agent.dialects.tables import Table, empty_table, parse_saved
from ipmasq_agent.errors import HostError
from ipmasq_agent.host.commands import run
from ipmasq_agent.host.xtables_lock import XtablesLock
from ipmasq_agent.policy.addresses import Family

# Seconds for a commit; 1,000 rules take below one.
_PATIENCE = 60.0
_EXISTING = {Family.IPV4: "/proc/net/ip_tables_names", Family.IPV6: "/proc/net/ip6_tables_names"}


def table_exists(family: Family, table: str) -> bool:
    """Whether the kernel has a legacy table. Opening one would make it; this does not."""
    try:
        return table in Path(_EXISTING[family]).read_text().split()
    except FileNotFoundError:
        return False  # a kernel without ip_tables
    except PermissionError as cause:
        raise HostError(
            f"{_EXISTING[family]} cannot be read", remedy="run as root, or with NET_ADMIN"
        ) from cause


class LegacyBackend(IptablesBackend):
    """The nat table of ip_tables and ip6_tables."""

    variant = "legacy"

    def __init__(self, placement: Placement, *, with_set: bool = False) -> None:
        super().__init__(placement, with_set=with_set)
        self._lock: XtablesLock | None = None
        self._workers: dict[Family, _Worker] = {}

    def read_rules(self, family: Family) -> Table:
        """Return the nat table; an empty one where the kernel has none, without making it."""
        if not table_exists(family, "nat"):
            return empty_table(family)
        saver = program(family, self.variant, "save")
        return parse_saved(run([saver, "-t", "nat"]).stdout, family, writer=saver)

    @contextmanager
    def session(self, family: Family) -> Iterator[None]:
        """Hold the xtables lock."""
        if self._lock is None:
            self._lock = XtablesLock()
        with self._lock.held():
            yield

    def write_rules(self, family: Family, change: Plan) -> None:
        """Let the family's worker make the edits and commit them, all in one.

        Raises:
            HostError: the worker refused or died; the table is as it was.
        """
        if family not in self._workers:
            if self._lock is None:
                raise HostError("a legacy table is written within a session only")
            self._workers[family] = _Worker(family, self._lock)
        try:
            self._workers[family].carry_out(change)
        except BaseException:
            # Its libiptc handle may hold half of the edits: a new one starts clean. And the
            # lock must not be let go (an interrupt unwinds to there) before it has ended.
            self._workers.pop(family).close()
            raise

    def close(self) -> None:
        """End the workers and let go of the lock file."""
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()
        if self._lock is not None:
            self._lock.close()
            self._lock = None


class _Worker:
    """A process that speaks libiptc for one family: a line of JSON in, one out."""

    def __init__(self, family: Family, lock: XtablesLock) -> None:
        self._family = family
        # Open for the worker's life, which no block of ours encloses.
        # In memory: the root of a container is read-only, /tmp included.
        self._errors: IO[bytes] = os.fdopen(os.memfd_create("errors"), "w+b")
        # It finds the modules that we found (a parent of the package may be on our path only),
        # and with -P none in the directory that we happen to be in.
        environment = {
            **os.environ,
            "IPMASQ_AGENT_PID": str(os.getpid()),
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "ipmasq_agent.backends.legacy_worker", family.value],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                # Inherited so that the lock stays held should the agent be killed in a commit.
                pass_fds=(lock.fileno(),),
                env=environment,
            )
        except OSError as cause:
            self._errors.close()
            raise HostError(
                f"the iptables-legacy worker for {family.value} cannot be started: {cause}",
                remedy="the table is as it was; the next pass tries again",
            ) from cause

    def carry_out(self, change: Plan) -> None:
        """Send ``change`` and wait until it was committed."""
        order = {
            "chain": change.chain,
            "create": change.create,
            "delete": change.delete,
            "keep": change.keep,
            "remove": len(change.remove),
            "insert": [rule.text for rule in change.insert],
            "rewrite": None if change.rewrite is None else [r.text for r in change.rewrite],
            "drop_jumps": [jump.number for jump in change.jumps_removed],
            "jumps": [rule.text for rule in change.jumps],
            "jump_first": change.jump_first,
        }
        try:
            deadline = time.monotonic() + _PATIENCE
            self._send(json.dumps(order).encode() + b"\n", deadline)
            answer = self._receive(deadline)
        except OSError as cause:
            raise self._failed(f"does not listen: {cause}") from cause
        if answer.get("error"):
            raise self._failed(str(answer["error"]))

    def close(self) -> None:
        """End the process: it leaves when its input ends, and is killed if it does not."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    continue  # it died with our last words unread
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def _send(self, line: bytes, deadline: float) -> None:
        assert self._process.stdin is not None
        descriptor = self._process.stdin.fileno()
        # A large order does not fit into the pipe at once, and waiting for a worker that
        # hangs would keep the lock from everybody on the node.
        os.set_blocking(descriptor, False)
        rest = memoryview(line)
        while rest:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([], [descriptor], [], left)[1]:
                raise self._given_up()
            rest = rest[os.write(descriptor, rest) :]

    def _receive(self, deadline: float) -> dict[str, object]:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        data = b""
        while not data.endswith(b"\n"):
            left = max(0.0, deadline - time.monotonic())
            if not select.select([descriptor], [], [], left)[0]:
                raise self._given_up()
            received = os.read(descriptor, 65536)
            if not received:
                status = self._process.wait()
                raise self._failed(f"ended with status {status}")
            data += received
        answer: dict[str, object] = json.loads(data)
        return answer

    def _given_up(self) -> HostError:
        self._process.kill()
        return self._failed(f"gave no answer within {_PATIENCE:g} s")

    def _failed(self, why: str) -> HostError:
        self._errors.seek(0)
        said = self._errors.read()[-2000:].decode(errors="replace").strip()
        self._errors.seek(0, os.SEEK_END)
        return HostError(
            f"the iptables-legacy worker for {self._family.value} {why}"
            + (f" ({said})" if said else ""),
            remedy="the table is as it was; the next pass starts a new worker",
        )
