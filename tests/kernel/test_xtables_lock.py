"""The xtables lock: held from the read until the commit has ended, whoever dies in between."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ipmasq_agent.errors import HostError, LockTimeout, Stopped
from ipmasq_agent.host import patience
from ipmasq_agent.planes.iptables import legacy
from ipmasq_agent.planes.iptables.legacy import IptablesLegacyPlane
from ipmasq_agent.planes.iptables.lock import XtablesLock
from ipmasq_agent.policy.addresses import Family
from tests import oracle
from tests.kernel.legacy import (
    is_alive,
    is_locked,
    legacy_backend,
    only_worker,
    write,
)
from tests.netns import Namespace
from tests.waiting import wait_until

RIVAL = ("iptables-legacy", "-w", "-t", "nat", "-A", "POSTROUTING", "-p", "sctp", "-j", "RETURN")


@pytest.fixture
def lock_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A lock file of this test's own: other tests use the one of the machine."""
    path = tmp_path / "xtables.lock"
    path.touch()
    monkeypatch.setenv("XTABLES_LOCKFILE", str(path))
    return str(path)


@pytest.fixture
def backend(in_ns: Namespace, lock_file: str) -> Iterator[IptablesLegacyPlane]:
    with legacy_backend() as made:
        yield made


@contextmanager
def flocked(path: str) -> Iterator[int]:
    """Hold the lock as another process would: through an open file of its own."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def waits_for_lock(pid: int, path: str) -> bool:
    """Whether a process sleeps on the lock, by the arrow in /proc/locks (proc_locks(5))."""
    inode = f":{os.stat(path).st_ino}"
    lines = Path("/proc/locks").read_text().splitlines()
    return any("->" in line and f" {pid} " in line and inode in line for line in lines)


def hook_targets() -> list[str]:
    chain = oracle.read_table("legacy", "ipv4")["POSTROUTING"]
    return [rule.target for rule in chain.rules]


def test_the_lock_file_is_the_one_that_the_environment_names(lock_file: str) -> None:
    lock = XtablesLock()
    try:
        assert lock.path == lock_file
        assert not is_locked(lock_file)
        with lock.held():
            assert is_locked(lock_file)
        assert not is_locked(lock_file)
    finally:
        lock.close()


def test_a_lock_file_is_made_where_there_is_none_and_no_place_for_it_is_an_error(
    tmp_path: Path,
) -> None:
    XtablesLock(str(tmp_path / "new.lock")).close()
    assert (tmp_path / "new.lock").stat().st_mode & 0o777 == 0o600
    with pytest.raises(HostError, match="mount it into the container"):
        XtablesLock(str(tmp_path / "not" / "there"))


def test_a_lock_that_stays_held_names_its_holder(lock_file: str) -> None:
    program = (
        "import fcntl, sys\n"
        "file = open(sys.argv[1])\n"
        "fcntl.flock(file, fcntl.LOCK_EX)\n"
        "print(flush=True)\n"
        "sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, lock_file], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        lock = XtablesLock()
        try:
            with pytest.raises(LockTimeout) as refused, lock.held(timeout=0.05):
                raise AssertionError("two hold the lock")
        finally:
            lock.close()
        name = Path(f"/proc/{holder.pid}/comm").read_text().strip()
        assert f"held by {name} (process {holder.pid}) for more than 0.05 s" in str(refused.value)
        assert holder.stdin is not None
        holder.stdin.close()


def test_a_pass_waits_for_the_lock_and_changes_nothing_without_it(
    backend: IptablesLegacyPlane, lock_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = XtablesLock.held
    monkeypatch.setattr(XtablesLock, "held", lambda self: held(self, timeout=0.05))
    with flocked(lock_file):
        with pytest.raises(LockTimeout):
            write(backend, 1)
        assert oracle.legacy_tables("ipv4") == set()
    assert write(backend, 1)


def test_a_pass_goes_on_once_the_lock_is_free(
    backend: IptablesLegacyPlane, lock_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[bool] = []
    attempt = XtablesLock._try
    with flocked(lock_file) as holder:

        def freed_at_the_third_try(lock: XtablesLock) -> bool:
            tries.append(attempt(lock))
            if len(tries) == 3:
                fcntl.flock(holder, fcntl.LOCK_UN)
            return tries[-1]

        monkeypatch.setattr(XtablesLock, "_try", freed_at_the_third_try)
        assert write(backend, 1)
    assert tries == [False, False, False, True]


def test_another_writer_waits_from_our_read_until_our_commit_and_neither_is_lost(
    backend: IptablesLegacyPlane, lock_file: str, in_ns: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(backend, 1)
    rivals: list[subprocess.Popen[str]] = []
    read, apply = IptablesLegacyPlane.read, IptablesLegacyPlane.apply

    def rival_waits() -> bool:
        return rivals[0].poll() is None and waits_for_lock(rivals[0].pid, lock_file)

    def read_with_a_rival(self: IptablesLegacyPlane, family: Family) -> Any:
        if not rivals:
            rivals.append(in_ns.popen(RIVAL))
            wait_until(rival_waits, "the rival waits for the lock")
        return read(self, family)

    def apply_with_a_rival(self: IptablesLegacyPlane, family: Family, change: Any) -> None:
        assert rival_waits()
        apply(self, family, change)
        assert rival_waits()

    monkeypatch.setattr(IptablesLegacyPlane, "read", read_with_a_rival)
    monkeypatch.setattr(IptablesLegacyPlane, "apply", apply_with_a_rival)
    assert write(backend, 1, 2)
    assert rivals[0].wait(20) == 0
    assert hook_targets() == ["IP-MASQ", "RETURN"]
    assert len(oracle.read_chain("legacy", "ipv4", "IP-MASQ") or ()) == 3


def test_without_the_lock_a_rival_would_lose_its_rule(
    backend: IptablesLegacyPlane, in_ns: Namespace
) -> None:
    """Why the lock is there: the kernel takes a table that is older than what it replaces."""
    in_ns.run([*RIVAL[:-1], "ACCEPT"])
    write(backend, 1)
    assert hook_targets() == ["ACCEPT", "IP-MASQ"]
    program = (
        "import json, subprocess, sys\n"
        "from ipmasq_agent.planes.iptables.legacy_worker import NatTable\n"
        "nat = NatTable('ipv4')\n"
        "commit = nat.table.commit\n"
        "def interleaved():\n"
        "    subprocess.run(json.loads(sys.argv[2]), check=True)\n"
        "    commit()\n"
        "nat.table.commit = interleaved\n"
        "nat.carry_out(json.loads(sys.argv[1]))\n"
    )
    order = {"chain": "IP-MASQ", "create": False, "delete": False, "keep": 0, "remove": 1}
    rule = ("destination", ["192.0.2.1/32"], False), ("jump", ["RETURN"], False)
    order |= {"insert": [rule], "rewrite": None, "drop_jumps": []}
    order |= {"jumps": [], "jump_first": False}
    # As many rules after as before, or the kernel would notice (net/ipv4/netfilter/ip_tables.c
    # compares the number of counters alone).
    replace = ["iptables-legacy", "-w", "-t", "nat", "-R", "POSTROUTING", "1", "-j", "RETURN"]
    words = [json.dumps(order), json.dumps(replace)]
    subprocess.run([sys.executable, "-c", program, *words], check=True, timeout=20)
    assert hook_targets() == ["ACCEPT", "IP-MASQ"]


# -- who holds it when somebody dies ---------------------------------------------------------


def test_an_interrupt_lets_go_of_the_lock_only_when_the_worker_has_ended(
    backend: IptablesLegacyPlane, lock_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(backend, 1)
    worker = only_worker()
    os.kill(worker, signal.SIGSTOP)

    def interrupted(self: Any, deadline: float) -> dict[str, object]:
        os.kill(worker, signal.SIGCONT)
        raise KeyboardInterrupt

    seen: list[bool] = []
    flock = fcntl.flock

    def watched(descriptor: int, operation: int) -> None:
        if operation == fcntl.LOCK_UN:
            seen.append(is_alive(worker))
        flock(descriptor, operation)

    monkeypatch.setattr(legacy._Worker, "_receive", interrupted)
    monkeypatch.setattr(fcntl, "flock", watched)
    with pytest.raises(KeyboardInterrupt):
        write(backend, 1, 2)
    assert seen == [False]
    monkeypatch.undo()
    assert not is_locked(lock_file)


def test_the_lock_of_a_killed_agent_is_free_only_when_its_worker_has_ended(
    in_ns: Namespace, lock_file: str
) -> None:
    program = (
        "import os, signal\n"
        "from tests.kernel.legacy import legacy_backend, only_worker, write\n"
        "with legacy_backend() as backend:\n"
        "    write(backend, 1)\n"
        "    os.kill(only_worker(), signal.SIGSTOP)\n"
        "    print(only_worker(), flush=True)\n"
        "    write(backend, 1, 2)\n"
    )
    agent = in_ns.popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert agent.stdout is not None
    worker = int(agent.stdout.readline())
    wait_until(lambda: is_locked(lock_file), "the second pass")
    held = [os.stat(entry) for entry in Path(f"/proc/{worker}/fd").iterdir()]
    assert any(os.path.samestat(os.stat(lock_file), one) for one in held)
    agent.kill()
    wait_until(lambda: not is_locked(lock_file), "the lock is free")
    assert not is_alive(worker)
    assert len(oracle.read_chain("legacy", "ipv4", "IP-MASQ") or ()) == 2


def test_programs_other_than_workers_do_not_inherit_the_lock(lock_file: str) -> None:
    lock = XtablesLock()
    try:
        assert not os.get_inheritable(lock.fileno())
    finally:
        lock.close()


@pytest.mark.parametrize("operation", [fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_UN])
def test_a_kernel_without_locks_to_give_costs_one_pass_and_leaves_nothing_locked(
    backend: IptablesLegacyPlane, lock_file: str, monkeypatch: pytest.MonkeyPatch, operation: int
) -> None:
    assert write(backend, 1)
    flock = fcntl.flock

    def refuse(descriptor: int, asked: int) -> None:
        if asked == operation:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        flock(descriptor, asked)

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(HostError, match="No locks available"):
        write(backend, 1, 2)
    monkeypatch.undo()
    monkeypatch.setenv("XTABLES_LOCKFILE", lock_file)
    assert not is_locked(lock_file)
    assert write(backend, 1, 2, 3)


def test_waiting_for_the_lock_ends_when_the_agent_is_told_to_stop(
    backend: IptablesLegacyPlane, lock_file: str
) -> None:
    timer = threading.Timer(0.2, lambda: patience.end_by(time.monotonic()))
    try:
        with flocked(lock_file):
            timer.start()
            with pytest.raises(Stopped):
                write(backend, 1)
    finally:
        timer.join()
        patience.end_by(math.inf)


def test_a_worker_that_hangs_is_given_up_when_the_agent_is_told_to_stop(
    backend: IptablesLegacyPlane, lock_file: str
) -> None:
    write(backend, 1)
    first = only_worker()
    os.kill(first, signal.SIGSTOP)
    timer = threading.Timer(0.2, lambda: patience.end_by(time.monotonic()))
    try:
        timer.start()
        with pytest.raises(Stopped):
            write(backend, 1, 2)
    finally:
        timer.join()
        patience.end_by(math.inf)
    assert not is_alive(first)
    assert not is_locked(lock_file)


@pytest.mark.parametrize("answer", ["not json", "[1]", '"text"', "7"])
def test_an_answer_that_makes_no_sense_costs_one_pass(
    backend: IptablesLegacyPlane, lock_file: str, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    monkeypatch.setattr(legacy, "_WORKER", "tests.kernel.babbler")
    monkeypatch.setenv("BABBLE", answer)
    with pytest.raises(HostError, match=r"makes no sense.*table is as it was"):
        write(backend, 1)
    monkeypatch.undo()
    monkeypatch.setenv("XTABLES_LOCKFILE", lock_file)
    assert write(backend, 1)
