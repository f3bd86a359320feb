"""The lab and the benchmark are guests: verbs for a node do without them and what they need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ipmasq_agent.cli.entry import VERBS

BLOCKED = """\
import sys
from ipmasq_agent import cli
for name in sys.argv[1].split(","):
    sys.modules[name] = None
cli.main(sys.argv[2:])
"""


def without(modules: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Call the program where modules cannot be imported."""
    argv = [sys.executable, "-c", BLOCKED, modules, *words]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("rich", "lab run"),
        ("ipmasq_agent.lab", "lab list"),
        ("ipmasq_agent.lab", "lab --help"),
        ("matplotlib", "bench --quick"),
        ("ipmasq_agent.bench", "bench --results old.json"),
    ],
)
def test_a_guest_that_is_missing_says_where_it_is(missing: str, words: str) -> None:
    done = without(missing, *words.split())
    verb = words.split()[0]
    assert (done.returncode, done.stdout) == (2, "")
    assert f"error: {verb} needs {missing}, which this installation does not have" in done.stderr
    target = {"lab": "make demo", "bench": "make bench"}[verb]
    assert f"→ `{target}`, in a clone of the agent's repository, has all of it" in done.stderr


def test_json_of_a_story_needs_no_tables() -> None:
    done = without("rich", "lab", "run", "--name", "../etc", "-o", "json")
    assert "cannot name a lab" in done.stderr


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ("lab", "bench")])
def test_every_verb_tells_its_help_without_the_guests(verb: str) -> None:
    done = without("rich,matplotlib,ipmasq_agent.lab,ipmasq_agent.bench", verb, "--help")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_verb_for_a_node_works_without_the_guests(tmp_path: Path) -> None:
    document = tmp_path / "document"
    document.write_text("nonMasqueradeCIDRs: [10.0.0.0/8]\n")
    guests = "rich,matplotlib,ipmasq_agent.lab,ipmasq_agent.bench"
    done = without(guests, "config", "view", "--config", str(document))
    assert "10.0.0.0/8" in done.stdout, done.stderr
