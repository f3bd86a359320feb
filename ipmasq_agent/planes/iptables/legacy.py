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
import socket
import subprocess
import sys
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import IO

from ipmasq_agent.errors import HostError
from ipmasq_agent.host.commands import run
from ipmasq_agent.host.patience import Patience
from ipmasq_agent.planes.iptables.lock import XtablesLock
from ipmasq_agent.planes.iptables.plan import ChainPlan
from ipmasq_agent.planes.iptables.plane import IptablesPlane, program
from ipmasq_agent.planes.iptables.presence import legacy_table_exists
from ipmasq_agent.planes.iptables.save import Sieve, parse_saved
from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.planes.rules.table import POSTROUTING, Table, empty_table
from ipmasq_agent.policy.addresses import Family

# Seconds for a commit; 1,000 rules take below one.
_PATIENCE = 60.0
# Seconds for a worker to end what it is at when it is no longer needed, and to die if it
# does not: far more than a commit takes.
_PARTING = 1.5
_WORKER = "ipmasq_agent.planes.iptables.legacy_worker"

# Where the chains of a table led to when it was read last: most often they still do.
_reached: dict[tuple[Family, str, frozenset[str]], set[str]] = {}


def read_chains(
    family: Family, table: str, chains: Collection[str], *, follow: bool = False
) -> Table:
    """Return some chains of a table that exists, and with ``follow`` all that they lead to.

    The kernel hands out the whole table; what is not asked for is dropped as it comes.

    Raises:
        KernelReadError: it cannot be read in full.
        HostError: the program cannot be run.
    """
    saver, asked = program(family, "legacy", "save"), (family, table, frozenset(chains))
    wanted = {*chains, *(_reached.get(asked, ()) if follow else ())}
    while True:
        saved = run([saver, "-t", table], keep=Sieve(wanted)).stdout
        found = parse_saved(saved, family, writer=saver, table=table)
        rules = (rule for chain in found.chains.values() for rule in chain.rules)
        led = {rule.target for rule in rules if rule.target}
        if not follow or led <= wanted:
            _reached[asked] = led
            return found
        wanted |= led


class IptablesLegacyPlane(IptablesPlane):
    """The nat table of ip_tables and ip6_tables."""

    variant = "legacy"

    def __init__(self, placement: Placement, *, with_set: bool = False) -> None:
        super().__init__(placement, with_set=with_set)
        self._lock: XtablesLock | None = None
        self._workers: dict[Family, _Worker] = {}

    def read_rules(self, family: Family) -> Table:
        """Return our chain and POSTROUTING; no rules where the kernel has no nat table."""
        if not legacy_table_exists(family, "nat"):
            return empty_table(family)
        return read_chains(family, "nat", (self.placement.chain, POSTROUTING))

    @contextmanager
    def session(self, family: Family) -> Iterator[None]:
        """Hold the xtables lock."""
        if self._lock is None:
            self._lock = XtablesLock()
        try:
            with self._lock.held():
                yield
        except BaseException:
            # A lock that could not be let go ends with the files that hold it, the workers'.
            self.close()
            raise

    def write_rules(self, family: Family, change: ChainPlan) -> None:
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
        # It finds the modules that we found (a parent of the package may be on our path only),
        # and with -P none in the directory that we happen to be in.
        environment = {
            **os.environ,
            "IPMASQ_AGENT_PID": str(os.getpid()),
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        with ExitStack() as opened:
            try:
                # In memory: the root of a container is read-only, /tmp included.
                errors = os.fdopen(os.memfd_create("errors"), "w+b")
                self._errors: IO[bytes] = opened.enter_context(errors)
                ours, its = socket.socketpair()
                self._socket = opened.enter_context(ours)
                with its:
                    self._process = subprocess.Popen(
                        [sys.executable, "-P", "-m", _WORKER, family.value],
                        stdin=its.fileno(),
                        stdout=its.fileno(),
                        stderr=self._errors,
                        # Inherited so that the lock stays held should the agent be killed in
                        # a commit.
                        pass_fds=(lock.fileno(),),
                        env=environment,
                    )
            except OSError as cause:
                raise HostError(
                    f"the iptables-legacy worker for {family.value} cannot be started: "
                    f"{cause.strerror}",
                    remedy="the table is as it was; the next pass tries again",
                ) from cause
            opened.pop_all()  # they live as long as the worker

    def carry_out(self, change: ChainPlan) -> None:
        """Send ``change`` and wait until it was committed."""
        order = {
            "chain": change.chain,
            "create": change.create,
            "delete": change.delete,
            "keep": change.keep,
            "remove": len(change.remove),
            "insert": [rule.written for rule in change.insert],
            "rewrite": None if change.rewrite is None else [r.written for r in change.rewrite],
            "drop_jumps": [jump.number for jump in change.jumps_removed],
            "jumps": [rule.written for rule in change.jumps],
            "jump_first": change.jump_first,
        }
        patience = Patience(_PATIENCE)
        try:
            self._send(json.dumps(order).encode() + b"\n", patience)
            answer = self._receive(patience)
        except ConnectionResetError as cause:  # it ended with our order unread
            raise self._ended() from cause
        except OSError as cause:
            raise self._failed(f"does not listen: {cause.strerror}") from cause
        except (ValueError, TypeError) as cause:
            raise self._failed("gave an answer that makes no sense") from cause
        if answer.get("error"):
            raise self._failed(str(answer["error"]))

    def close(self) -> None:
        """End the process: it leaves when its input ends, and is killed if it does not."""
        self._socket.close()
        try:
            self._process.wait(_PARTING)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(_PARTING)
        finally:
            self._errors.close()

    def _send(self, line: bytes, patience: Patience) -> None:
        # A large order does not fit into the socket at once, and waiting for a worker that
        # hangs would keep the lock from everybody on the node.
        rest = memoryview(line)
        while rest:
            self._socket.settimeout(self._left(patience))
            with suppress(TimeoutError):
                rest = rest[self._socket.send(rest) :]

    def _receive(self, patience: Patience) -> dict[str, object]:
        data = b""
        while not data.endswith(b"\n"):
            self._socket.settimeout(self._left(patience))
            with suppress(TimeoutError):
                received = self._socket.recv(65536)
                if not received:
                    raise self._ended()
                data += received
        return dict(json.loads(data))

    def _left(self, patience: Patience) -> float:
        left = patience.left()
        if not left:
            self._process.kill()
            raise self._failed(f"gave no answer within {_PATIENCE:g} s")
        return left

    def _ended(self) -> HostError:
        try:
            return self._failed(f"ended with status {self._process.wait(_PARTING)}")
        except subprocess.TimeoutExpired:
            return self._failed("answers no more")

    def _failed(self, why: str) -> HostError:
        self._errors.seek(0)
        text = self._errors.read()[-2000:].decode(errors="replace")
        # What it says of itself where it cannot even start is Python's, over many lines.
        said = " ".join(
            line for line in text.splitlines() if not line.startswith((" ", "Traceback"))
        ).strip()
        self._errors.seek(0, os.SEEK_END)
        return HostError(
            f"the iptables-legacy worker for {self._family.value} {why}"
            + (f" ({said})" if said else ""),
            remedy="the table is as it was; the next pass starts a new worker",
        )
