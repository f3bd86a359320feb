"""From an error to an exit status."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import IO

import click
import pytest

from ipmasq_agent import cli
from ipmasq_agent.cli import config
from tests.kernel.running import HEARING


@pytest.mark.parametrize("fault", [KeyError("hush-hush"), MemoryError(), OSError(24, "hush-hush")])
def test_what_nobody_foresaw_is_an_error_as_any_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fault: Exception
) -> None:
    @click.command()
    def failing() -> None:
        raise fault

    monkeypatch.setattr(config, "command", failing)
    with pytest.raises(SystemExit) as left:
        cli.main(["config"])
    assert left.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert f"error: config failed unexpectedly ({type(fault).__name__}" in said.err
    assert "test_entry.py" in said.err
    assert "Traceback" not in said.err
    assert "hush-hush" not in said.err


def test_a_program_that_fails_is_seen_to_fail_whoever_started_us(tmp_path: Path) -> None:
    program = tmp_path / "iptables-nft"
    program.write_text("#!/bin/sh\nexit 4\n")
    program.chmod(0o755)
    script = (
        "import signal\n"
        "from ipmasq_agent import cli\n"
        "from ipmasq_agent.host.commands import run\n"
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "try:\n"
        "    cli.main(['config', 'defaults'])\n"
        "except SystemExit:\n"
        f"    print('status', run([{str(program)!r}], check=False).status)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "status 4", done.stderr


PROGRAM = [sys.executable, "-m", "ipmasq_agent"]
# Sends the signal at the MOMENT-th import, counted from the first line of ours.
STOPPED = """
import os, sys
seen = []
def look(event, arguments):
    if event == "import" and (seen or arguments[0] == "signal"):
        seen.append(arguments[0])
        if len(seen) == MOMENT:
            os.kill(os.getpid(), 2)
sys.addaudithook(look)
from ipmasq_agent.__main__ import main
main()
"""
VERBS = [["--help"], ["config", "defaults"], ["bench", "--help"]]


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_a_ctrl_c_while_python_imports_is_one_line(words: list[str]) -> None:
    def stopped(moment: int, at_exit: str = "") -> subprocess.CompletedProcess[str]:
        script = at_exit + STOPPED.replace("MOMENT", str(moment))
        argv = [*HEARING, sys.executable, "-c", script, *words]
        return subprocess.run(argv, capture_output=True, text=True)

    # As many as there are with these versions of Python and click, but for those at the end.
    count = "import atexit, sys\natexit.register(lambda: print(len(seen), file=sys.stderr))\n"
    imports = int(stopped(0, count).stderr)
    assert imports > 10
    for moment in random.Random(13).sample(range(1, imports * 3 // 4), 10):
        done = stopped(moment)
        assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n"), moment


def test_the_program_begins_where_it_can_be_stopped() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    modules = {name.partition(":")[0] for name in project["project"]["scripts"].values()}
    assert modules == {"ipmasq_agent.__main__"}


def outcome(
    words: list[str], unbuffered: str = "", out: IO[str] | int = -1, err: IO[str] | int = -1
) -> tuple[int, str | None]:
    env = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run([*PROGRAM, *words], stdout=out, stderr=err, text=True, env=env)
    return done.returncode, done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("words", [*VERBS, ["version", "-o", "json"]], ids=" ".join)
def test_an_answer_that_finds_no_room_is_an_error_of_one_line(
    words: list[str], unbuffered: str
) -> None:
    name = words[0] if words[0] != "--help" else "ipmasq-agent"
    with open("/dev/full", "w") as full:
        answer = outcome(words, unbuffered, full)
    assert answer == (2, f"error: {name} cannot write its output: No space left on device\n")


def test_an_error_that_finds_no_room_is_told_by_the_exit_status() -> None:
    with open("/dev/full", "w") as full:
        assert outcome(["config", "view", "--config", "/none"], out=full, err=full) == (2, None)


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("words", [["--help"], ["config", "schema"]], ids=" ".join)
def test_a_reader_that_left_ends_a_verb_as_it_ends_other_programs(
    words: list[str], unbuffered: str
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as gone:
        assert outcome(words, unbuffered, gone) == (128 + 13, "")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["lits"], "No such verb: lits. Did you mean list?"),
        (["help", "statsu"], "No such verb: statsu. Did you mean status?"),
        (["lab", "dwon"], "Did you mean 'down'?"),
        (["list", "--bakcend", "bpf"], "Did you mean '--backend'?"),
        (["list", "-v"], "No such option '-v'."),
        (["run", "-v"], "Option '-v' requires an argument."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_slip_of_the_pen_is_told_as_it_was_typed(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(words)
    assert left.value.code == 2
    assert complaint in capsys.readouterr().err


def said(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as left:
        cli.main(words)
    assert left.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("words", [["list"], ["lab", "run"]], ids=" ".join)
def test_help_is_a_verb_too(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert said(["help", *words], capsys) == said([*words, "--help"], capsys)
    assert said(["help"], capsys) == said(["--help"], capsys)


def test_version_is_a_verb_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(["version"], capsys) == said(["-v"], capsys) == said(["--version"], capsys)
    version = json.loads(said(["version", "-o", "json"], capsys))["version"]
    assert version in said(["version"], capsys)


def test_a_verb_shows_the_options_that_concern_it_and_takes_those_of_the_agent(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = said(["cleanup", "--help"], capsys)
    assert "--bpf-pins" in shown
    assert "--bpf-flows" not in shown
    assert "--random-fully" not in shown
    assert "--config " not in said(["config", "defaults", "--help"], capsys)
    assert said(["config", "defaults", "--node-name", "n"], capsys)
    for verb in ("list", "diff", "status", "explain", "doctor", "ports", "observe", "compare"):
        assert "--bpf-flows" not in said([verb, "--help"], capsys), verb
    assert "--bpf-flows" in said(["run", "--help"], capsys)


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["li"], "list"),
        (["help", "li"], "list"),
        (["list", "--b"], "--bpf-pins"),
        (["list", "--backend", "ip"], "ipset"),
    ],
    ids=" ".join,
)
def test_a_shell_completes_verbs_options_and_values(typed: list[str], offered: str) -> None:
    asked = {"COMP_WORDS": " ".join(["ipmasq-agent", *typed]), "COMP_CWORD": str(len(typed))}
    env = {**os.environ, **asked, "_IPMASQ_AGENT_COMPLETE": "bash_complete"}
    done = subprocess.run(PROGRAM, capture_output=True, text=True, env=env)
    assert f"plain,{offered}" in done.stdout.splitlines()
