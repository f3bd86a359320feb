"""Children that end with us, however we end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ipmasq_agent.lab.children import own, passing_directory, tied
from tests.waiting import wait_until


def running(mark: str) -> list[str]:
    """Numbers of the processes with a word among their arguments."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended
        if mark.encode() in words:
            found.append(entry.name)
    return found


def test_who_is_tied_has_its_exit_status_and_its_arguments() -> None:
    done = subprocess.run(
        tied(["sh", "-c", 'printf "%s|" "$@"; exit 7', "x", "a b", "", "$c"]),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (7, "a b||$c|")


PARENT = """\
import subprocess, sys
from ipmasq_agent.lab.children import tied
early = ["sh", "-c", 'read -r _; exec "$@"', "sh"] if sys.argv[1] == "late" else []
child = subprocess.Popen([*early, *tied(["sleep", sys.argv[2]])], stdin=subprocess.PIPE)
print(child.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("moment", ["running", "late"])
def test_a_child_dies_with_who_started_it_also_before_it_could_ask_for_it(moment: str) -> None:
    """Late: it reads the end of its parent first, and only then asks to be told of that."""
    mark = f"1000.{os.getpid()}"
    argv = [sys.executable, "-c", PARENT, moment, mark]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        if moment == "running":
            wait_until(
                lambda: Path(f"/proc/{child}/comm").read_text() == "sleep\n", "it has started"
            )
        os.kill(parent.pid, signal.SIGKILL)
    wait_until(lambda: running(mark) == [], "it has ended")


def test_a_directory_goes_with_the_block_and_with_who_is_killed_in_it(tmp_path: Path) -> None:
    with passing_directory(f"{tmp_path}/one-") as place:
        (place / "file").touch()
    assert list(tmp_path.iterdir()) == []
    script = (
        "import sys\n"
        "from ipmasq_agent.lab.children import passing_directory\n"
        "with passing_directory(sys.argv[1]) as place:\n"
        "    (place / 'file').touch(); print(flush=True); sys.stdin.read()\n"
    )
    argv = [sys.executable, "-c", script, f"{tmp_path}/two-"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (left,) = tmp_path.iterdir()
        assert (left / "file").exists()
        os.kill(process.pid, signal.SIGKILL)
    wait_until(lambda: list(tmp_path.iterdir()) == [], "it is removed")


def test_our_own_modules_are_not_taken_from_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "ipmasq_agent").mkdir()
    (tmp_path / "ipmasq_agent/__init__.py").write_text("raise SystemExit(9)\n")
    argv = [*own("ipmasq_agent"), "--version"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "ipmasq-agent, version" in done.stdout, done.stderr
