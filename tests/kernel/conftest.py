"""Fixtures of the tests that ask the real kernel, each in a network namespace of its own."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.kernel.agent import Verb, status_of
from tests.kernel.pins import PINS, bpf_file_system
from tests.kernel.running import Running
from tests.netns import Namespace, sweep

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test below this directory as one of the kernel's."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.kernel)


@pytest.fixture(scope="session", autouse=True)
def _swept() -> None:
    """Remove what a killed test run left behind, before this one begins."""
    sweep()


@pytest.fixture(autouse=True)
def _own_pins(tmp_path: Path) -> Iterator[None]:
    """Pin eBPF maps and programs on a file system that goes with the test.

    So do what agents keep, and where they listen.
    """
    # Not the test's own patch: what that changes is undone before other fixtures end.
    with bpf_file_system() as place, pytest.MonkeyPatch.context() as patch:
        patch.setenv(PINS, str(place / "pins"))
        patch.setenv("IPMASQ_STATE_DIR", str(tmp_path / "state"))
        patch.setenv("IPMASQ_SOCKET", str(tmp_path / "agent.sock"))
        yield


@pytest.fixture
def mounted_pins(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where pins are on a bpf file system that is mounted, as who lacks privileges needs it."""
    place = Path(f"/run/ipmq-test-{os.getpid()}-pins")
    place.mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", place], check=True)
    monkeypatch.setenv(PINS, str(place / "pins"))
    try:
        yield place / "pins"
    finally:
        subprocess.run(["umount", place], check=True)
        place.rmdir()


@pytest.fixture
def ns() -> Iterator[Namespace]:
    """A fresh network namespace: loopback up, no rules, no tables."""
    with Namespace() as namespace:
        yield namespace


@pytest.fixture
def in_ns(ns: Namespace) -> Iterator[Namespace]:
    """A fresh namespace that the main thread has entered, for code under test in-process."""
    with ns.entered():
        yield ns


@pytest.fixture
def verb(in_ns: Namespace, capsys: pytest.CaptureFixture[str]) -> Verb:
    """Run a verb in this process: exit status, standard output, standard error."""

    def run(*words: str) -> tuple[int, str, str]:
        status = status_of(*words)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def run(in_ns: Namespace, tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Start agents in the namespace, each with a log of its own; they end with the test."""
    started: list[Running] = []

    def start(*flags: str, under: Sequence[str] = ()) -> Running:
        started.append(Running(tmp_path / f"log{len(started)}", *flags, under=under))
        return started[-1]

    yield start
    for agent in started:
        agent.stop(signal.SIGKILL)
