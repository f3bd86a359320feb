"""SIGTERM ends the agent soon, whatever it waits for; and it waits for no name server."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ipmasq_agent.planes.iptables.lock import TIMEOUT
from tests import oracle
from tests.kernel.running import Running
from tests.kernel.test_agent import chain, document
from tests.kube.cluster import write_kubeconfig
from tests.netns import Namespace
from tests.waiting import wait_until

__all__ = ["document"]  # a fixture
# Five seconds are promised. A busy machine may take its time; what hangs takes a minute.
SOON = 15.0


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory of programs that stand before the real ones."""
    place = tmp_path / "programs"
    place.mkdir()
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    yield place
    for pid in place.glob("*.pid"):
        assert not Path(f"/proc/{int(pid.read_text())}").exists(), f"{pid.name} goes on"


def hang(fakes: Path, name: str) -> None:
    """Let a program never end."""
    (fakes / f".{name}").write_text(f"#!/bin/sh\necho $$ >{fakes}/{name}.pid\nexec sleep 1000\n")
    (fakes / f".{name}").chmod(0o755)
    (fakes / f".{name}").rename(fakes / name)


def ends_soon(agent: Running, number: int = signal.SIGTERM) -> str:
    """Stop the agent and return its log's last line."""
    began = time.monotonic()
    assert agent.stop(number) == 0
    assert time.monotonic() - began < SOON
    text = agent.log.read_text()
    assert "Traceback" not in text
    return text.splitlines()[-1]


@pytest.mark.parametrize("cleanup", [False, True])
def test_while_a_program_hangs(
    run: Callable[..., Running], document: Path, fakes: Path, cleanup: bool
) -> None:
    agent = run("run", "--backend=iptables-nft", f"--config={document}", "--enable-ipv6")
    agent.wait_ready()
    agent.stop()
    before = oracle.snapshot()
    hang(fakes, "iptables-nft-save")
    hang(fakes, "iptables-nft")
    flags = ["--cleanup-on-exit"] if cleanup else []
    agent = run("run", "--backend=iptables-nft", f"--config={document}", *flags)
    wait_until(lambda: any(fakes.glob("*.pid")), "the program runs")
    last = ends_soon(agent)
    (fakes / "iptables-nft-save").unlink()
    if cleanup:
        assert "not all removed" in last
        assert "iptables-nft (ipv4)" in last
    else:
        assert "rules=kept" in last
        assert oracle.snapshot() == before


@pytest.mark.parametrize("cleanup", [False, True])
def test_while_a_write_hangs(
    run: Callable[..., Running], document: Path, fakes: Path, cleanup: bool
) -> None:
    hang(fakes, "iptables-nft-restore")
    flags = ["--cleanup-on-exit"] if cleanup else []
    agent = run("run", "--backend=iptables-nft", f"--config={document}", *flags)
    wait_until(lambda: any(fakes.glob("*.pid")), "the program runs")
    assert ("rules=removed" if cleanup else "rules=kept") in ends_soon(agent, signal.SIGINT)
    assert chain("nft") is None


@pytest.mark.parametrize("cleanup", [False, True])
def test_while_others_hold_the_lock(
    run: Callable[..., Running],
    document: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cleanup: bool,
) -> None:
    lock = tmp_path / "xtables.lock"
    monkeypatch.setenv("XTABLES_LOCKFILE", os.fspath(lock))
    flags = ["--cleanup-on-exit"] if cleanup else []
    agent = run("run", "--backend=iptables-legacy", f"--config={document}", *flags)
    agent.wait_ready()
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        agent.process.send_signal(signal.SIGHUP)
        # A resync may have begun to wait for the lock before the signal came.
        seconds = 2 * TIMEOUT
        wait_until(lambda: "reload asked for" in agent.log.read_text(), "it looks again", seconds)
        last = ends_soon(agent)
    assert ("not all removed" if cleanup else "rules=kept") in last
    assert chain("legacy") is not None


def test_while_the_api_does_not_answer(run: Callable[..., Running], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", port)
        agent = run("run", "--configmap=kube-system/x", f"--kubeconfig={kubeconfig}")
        accepted, _ = silent.accept()
        with accepted:
            assert accepted.recv(4) == b"GET "
            assert "rules=kept" in ends_soon(agent)


@pytest.mark.parametrize("address", ["0.0.0.0:9797", "[::1]:9797", "127.0.0.1:9797"])
def test_no_name_server_is_asked(
    in_ns: Namespace, document: Path, tmp_path: Path, address: str
) -> None:
    trace = tmp_path / "trace"
    strace = ("strace", "-D", "-f", "-qq", "-e", "trace=network", "-o", os.fspath(trace))
    agent = Running(
        tmp_path / "log", "run", f"--config={document}", f"--http-address={address}", under=strace
    )
    try:
        wait_until(lambda: "rules applied" in agent.log.read_text(), "the first pass")
        ends_soon(agent)
    finally:
        agent.stop(signal.SIGKILL)
    lines = trace.read_text().splitlines()
    assert any("listen(" in line for line in lines)
    assert [line for line in lines if "htons(53)" in line or "nscd" in line] == []
