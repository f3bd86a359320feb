"""Who keeps a place on this host."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ipmasq_agent.host.seat import Seat, kept


@pytest.fixture
def place(tmp_path: Path) -> str:
    return str(tmp_path)


@pytest.mark.parametrize("more", ["", "/long" * 40])
def test_a_place_has_one_keeper(place: str, more: str) -> None:
    first, second = Seat([place + more, "a" + place]), Seat([place + more])
    assert first.take() == []
    assert first.take() == []  # its own is not another's
    assert second.take() == kept([place + more, place + "/other"]) == [place + more]
    first.close()
    assert second.take() == []
    second.close()
    assert kept([place + more]) == []


def test_a_keeper_that_is_killed_leaves_its_place(place: str) -> None:
    script = (
        "import sys, ipmasq_agent.host.seat as s\n"
        "seat = s.Seat([sys.argv[1]]); seat.take(); print(flush=True); sys.stdin.read()"
    )
    argv = [sys.executable, "-c", script, place]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as keeper:
        assert keeper.stdout is not None
        keeper.stdout.readline()
        assert kept([place]) == [place]
        os.kill(keeper.pid, signal.SIGKILL)
    assert kept([place]) == []


def test_a_kernel_that_gives_no_socket_is_no_other_agent(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("ipmasq_agent.host.seat.socket.socket", refuse)
    seat = Seat([place])
    assert seat.take() == []
    monkeypatch.undo()
    assert seat.take() == []
    assert kept([place]) == [place]
    seat.close()
