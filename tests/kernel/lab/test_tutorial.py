"""docs/tutorial.md, typed as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/tutorial.md").read_text()
NAME = "tutorial"

pytestmark = pytest.mark.kernel


def steps() -> list[tuple[str, list[str]]]:
    """Return what is typed, each with the lines that the page shows for it."""
    found: list[tuple[str, list[str]]] = []
    for kind, text in re.findall(r"```(sh|text)\n(.*?)```", PAGE, re.DOTALL):
        if kind == "sh":
            found.append((text, []))
        else:
            found[-1][1].extend(text.splitlines())
    return found


def is_shown(line: str, printed: str) -> bool:
    """Whether a line of the page was printed; the page may leave out parts of it."""
    pattern = ".*".join(re.escape(part) for part in line.strip().split("…"))
    return re.search(pattern, printed) is not None


def test_what_the_tutorial_types_prints_what_it_shows(tmp_path: Path) -> None:
    env = {**os.environ, "PATH": f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}"}
    # Beside a lab of its reader's, under a name of its own.
    ours = re.compile(r"ipmasq-agent lab (up|exec|config|logs|down)")
    try:
        for typed, shown in steps():
            named = ours.sub(rf"ipmasq-agent lab \1 --name {NAME}", typed)
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", named],
                cwd=tmp_path,
                env=env,
                check=False,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, (typed, done.stderr)
            missing = [line for line in shown if not is_shown(line, done.stdout)]
            assert not missing, f"{typed}{done.stdout}{done.stderr}"
    finally:
        down = ["ipmasq-agent", "lab", "down", "--name", NAME]
        subprocess.run(down, env=env, check=False, capture_output=True)


def test_a_line_that_was_not_printed_is_missed() -> None:
    assert is_shown("RemoteAddr: 172.20.0.10:…", "RemoteAddr: 172.20.0.10:4711")
    assert not is_shown("RemoteAddr: 172.20.0.10:…", "RemoteAddr: 192.168.10.100:4711")
    assert sum(len(shown) for _, shown in steps()) > 20
