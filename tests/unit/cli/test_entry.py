"""From an error to an exit status."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest

from ipmasq_agent import cli
from ipmasq_agent.cli import config


@pytest.mark.parametrize("fault", [KeyError("canary"), MemoryError(), OSError(24, "canary")])
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
    assert "canary" not in said.err


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
