"""The xtables lock: held from the read until the commit has ended, whoever dies in between."""

from __future__ import annotations

import errno
import fcntl
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ipmasq_agent.errors import HostError, LockTimeout, Stopped
from ipmasq_agent.host import patience
from ipmasq_agent.planes.iptables import legacy, lock
from ipmasq_agent.planes.iptables.legacy import IptablesLegacyPlane
from ipmasq_agent.planes.iptables.lock import xtables_lock
from ipmasq_agent.policy.addresses import Family
from tests import oracle
from tests.kernel.legacy import impostor, is_locked, legacy_backend, write
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
    assert not is_locked(lock_file)
    with xtables_lock():
        assert is_locked(lock_file)
    assert not is_locked(lock_file)


def test_a_lock_file_is_made_where_there_is_none_and_no_place_for_it_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "new.lock"))
    with xtables_lock():
        assert (tmp_path / "new.lock").stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "not" / "there"))
    with pytest.raises(HostError, match="mount it into the container"), xtables_lock():
        raise AssertionError("there is no lock")


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
        with pytest.raises(LockTimeout) as refused, xtables_lock(timeout=0.05):
            raise AssertionError("two hold the lock")
        name = Path(f"/proc/{holder.pid}/comm").read_text().strip()
        assert f"held by {name} (process {holder.pid}) for more than 0.05 s" in str(refused.value)
        assert holder.stdin is not None
        holder.stdin.close()


def test_a_pass_waits_for_the_lock_and_changes_nothing_without_it(
    backend: IptablesLegacyPlane, lock_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(legacy, "xtables_lock", partial(xtables_lock, timeout=0.05))
    with flocked(lock_file):
        with pytest.raises(LockTimeout):
            write(backend, 1)
        assert oracle.legacy_tables("ipv4") == set()
    assert write(backend, 1)


def test_a_pass_goes_on_once_the_lock_is_free(
    backend: IptablesLegacyPlane, lock_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[bool] = []
    attempt = lock._taken
    with flocked(lock_file) as holder:

        def freed_at_the_third_try(file: int, path: str) -> bool:
            tries.append(attempt(file, path))
            if len(tries) == 3:
                fcntl.flock(holder, fcntl.LOCK_UN)
            return tries[-1]

        monkeypatch.setattr(lock, "_taken", freed_at_the_third_try)
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


# -- who holds it when somebody dies ---------------------------------------------------------


WRITING = (
    "from tests.kernel.legacy import legacy_backend, write\n"
    "with legacy_backend() as backend:\n"
    "    write(backend, 1)\n"
)


@pytest.fixture
def pid_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the program that writes, and never ends, leaves its number."""
    path = tmp_path / "pid"
    told = f"echo $$ >{path}.new; mv {path}.new {path}"
    impostor(monkeypatch, tmp_path, f"{told}; exec sleep 1000")
    return path


def test_the_lock_of_a_killed_container_is_free(
    in_ns: Namespace, lock_file: str, pid_file: Path
) -> None:
    # As in a pod, where the agent is the first process of a namespace that ends with it.
    container = ("unshare", "--pid", "--fork", "--kill-child")
    agent = in_ns.popen([*container, sys.executable, "-c", WRITING])
    wait_until(pid_file.exists, "the program that writes")
    assert is_locked(lock_file)
    agent.kill()
    agent.wait()
    wait_until(lambda: not is_locked(lock_file), "the lock is free")


def test_the_lock_of_a_killed_agent_is_free_only_when_its_program_has_ended(
    in_ns: Namespace, lock_file: str, pid_file: Path
) -> None:
    agent = in_ns.popen([sys.executable, "-c", WRITING])
    wait_until(pid_file.exists, "the program that writes")
    writer = int(pid_file.read_text())
    agent.kill()
    agent.wait()
    assert is_locked(lock_file)
    os.kill(writer, signal.SIGKILL)
    wait_until(lambda: not is_locked(lock_file), "the lock is free")


def test_only_the_program_that_writes_inherits_the_lock(lock_file: str) -> None:
    with xtables_lock() as descriptor:
        assert not os.get_inheritable(descriptor)


def test_a_kernel_without_locks_to_give_costs_one_pass_and_leaves_nothing_locked(
    backend: IptablesLegacyPlane, lock_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert write(backend, 1)

    def refuse(descriptor: int, asked: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with monkeypatch.context() as without:
        without.setattr(fcntl, "flock", refuse)
        with pytest.raises(HostError, match="No locks available"):
            write(backend, 1, 2)
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


def test_a_program_that_hangs_is_given_up_when_the_agent_is_told_to_stop(
    backend: IptablesLegacyPlane, lock_file: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    impostor(monkeypatch, tmp_path, f"touch {begun}; exec sleep 1000")

    def stop() -> None:
        wait_until(begun.exists, "the program that writes")
        patience.end_by(time.monotonic())

    stopper = threading.Thread(target=stop)
    stopper.start()
    try:
        with pytest.raises(Stopped):
            write(backend, 1)
    finally:
        stopper.join()
        patience.end_by(math.inf)
    assert not is_locked(lock_file)
    assert oracle.read_chain("legacy", "ipv4", "IP-MASQ") is None
