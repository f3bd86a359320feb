"""Ending what runs in a network namespace."""

from __future__ import annotations

import signal
import subprocess

import pytest

from ipmasq_agent.lab import netns
from tests.netns import Namespace

STAYS = "echo ready; exec sleep 1000"
IGNORES_TERM = "trap '' TERM; echo ready; while :; do sleep 1; done"


def start(space: Namespace, script: str) -> subprocess.Popen[str]:
    """Run a shell inside, and return once it is there."""
    process = space.popen(["sh", "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout as said:
        assert said.readline() == "ready\n"
    return process


def inode(space: Namespace) -> int:
    number = netns.inode(space.name)
    assert number is not None
    return number


def test_who_ends_before_the_signal_comes_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    send = signal.pidfd_send_signal
    with Namespace() as space:
        process = start(space, STAYS)

        def late(descriptor: int, number: int) -> None:
            process.kill()
            process.wait()
            send(descriptor, number)

        monkeypatch.setattr(signal, "pidfd_send_signal", late)
        netns.end_processes([inode(space)])
        assert process.poll() == -signal.SIGKILL


def test_who_ignores_a_request_is_killed_and_who_is_elsewhere_is_spared() -> None:
    with Namespace() as space, Namespace() as other:
        spared = start(other, STAYS)
        stubborn = start(space, IGNORES_TERM)
        netns.end_processes([inode(space)], patience=0.2)
        assert stubborn.wait() == -signal.SIGKILL
        assert spared.poll() is None
