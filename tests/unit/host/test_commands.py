"""Running programs: what they write, what they are fed, and every way in which they fail."""

from __future__ import annotations

import errno
import math
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipmasq_agent.errors import CommandFailed, HostError, MissingTool, Stopped
from ipmasq_agent.host import commands, patience
from ipmasq_agent.host.commands import run


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert set(os.listdir("/proc/self/fd")) == before
    patience.end_by(math.inf)


def test_both_streams_and_the_status_come_back() -> None:
    done = run(["sh", "-c", "printf 'a\\nb'; printf 'c\\377' >&2; exit 3"], check=False)
    assert (done.status, done.stdout, done.stderr) == (3, "a\nb", "c\udcff")
    with pytest.raises(CommandFailed, match=r"exited with 3: no"):
        run(["sh", "-c", "echo no >&2; exit 3"])


def test_a_large_input_and_output_do_not_wait_for_each_other() -> None:
    text = "some line of text\n" * 500_000
    assert run(["cat"], stdin=text).stdout == text


def test_a_program_need_not_read_what_it_is_fed() -> None:
    assert run(["true"], stdin="x" * (1 << 20)).status == 0


def test_input_is_empty_unless_there_is_some() -> None:
    assert run(["cat"]).stdout == ""


def test_only_the_lines_that_are_wanted_are_kept() -> None:
    text = "".join(f"line {number}\n" for number in range(100_000)) + "line without an end"
    seen = []

    def keep(line: str) -> bool:
        seen.append(line)
        return line.endswith((" 7", " 99999", "end"))

    done = run(["cat"], stdin=text, keep=keep)
    assert done.stdout == "line 7\nline 99999\nline without an end"
    assert seen == text.split("\n")


def test_dropped_lines_count_for_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "LIMIT", 1000)
    lines = "dropped\n" * 10_000
    assert run(["cat"], stdin=lines + "kept\n", keep=lambda line: line == "kept").stdout == "kept\n"


@pytest.mark.parametrize("stream", [1, 2])
@pytest.mark.parametrize("command", ["yes", "cat /dev/zero"])
def test_a_program_that_never_stops_writing_is_ended(command: str, stream: int) -> None:
    with pytest.raises(HostError, match="wrote more than 64 MiB"):
        run(["sh", "-c", f"exec {command} >&{stream}"])


def test_a_program_that_hangs_is_ended_though_a_child_of_its_keeps_its_output(
    tmp_path: Path,
) -> None:
    pids = tmp_path / "pids"
    script = f"sleep 1000 & echo $! >{pids}; echo $$ >>{pids}; wait"
    with pytest.raises(HostError, match=r"did not end within 0\.3 s"):
        run(["sh", "-c", script], timeout=0.3)
    child, parent = map(int, pids.read_text().split())
    os.kill(child, 9)
    with pytest.raises(ProcessLookupError):
        os.kill(parent, 0)


def test_waiting_ends_when_the_process_is_told_to_stop() -> None:
    timer = threading.Timer(0.2, lambda: patience.end_by(time.monotonic()))
    timer.start()
    with pytest.raises(Stopped):
        run(["sleep", "1000"])
    timer.join()
    with pytest.raises(Stopped):  # nor is anything new begun
        run(["true"])
    patience.end_by(time.monotonic() + 1000)
    assert run(["true"]).status == 0


def test_a_program_that_is_not_there_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(MissingTool, match="install the package nftables"):
        run(["nft"])


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOEXEC])
def test_what_cannot_be_executed_is_told_with_a_remedy(tmp_path: Path, number: int) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"\x7fELF nonsense")
    program.chmod(0o644 if number == errno.EACCES else 0o755)
    with pytest.raises(HostError, match=os.strerror(number)) as caught:
        run([str(program)])
    assert caught.value.remedy


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.EPERM])
def test_a_system_without_room_for_a_program_is_told(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with pytest.raises(HostError, match=os.strerror(number)) as caught:
        run(["true"])
    assert caught.value.remedy


@pytest.mark.parametrize("allowed", [0, 1])
def test_a_pipe_too_few_leaves_none_open(monkeypatch: pytest.MonkeyPatch, allowed: int) -> None:
    pipe = os.pipe
    made: list[tuple[int, int]] = []

    def refuse() -> tuple[int, int]:
        if len(made) >= allowed:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        made.append(pipe())
        return made[-1]

    monkeypatch.setattr(os, "pipe", refuse)
    with pytest.raises(HostError, match=r"Too many open files.*limit of open files"):
        run(["cat"], stdin="x")
