"""The Dockerfile as far as it can be judged without carrying it out."""

from __future__ import annotations

import subprocess
import sysconfig
import tomllib
from pathlib import Path

import pytest

from ipmasq_agent import __version__
from ipmasq_agent.host.commands import PACKAGES
from tests.deploy.dockerfile import Stage, pairs, parse
from tests.deploy.manifests import ROOT

STAGES = parse((ROOT / "Dockerfile").read_text())
BUILDER, FINAL = STAGES
# The programs that the daemon and the verbs for a node run, by backend.
PROGRAMS = ("iptables-legacy-save", "iptables-nft", "nft")


def copied_from_the_context() -> list[str]:
    return [
        word
        for stage in STAGES
        for copy in stage.all("COPY")
        if not copy.text.startswith("--from=")
        for word in copy.words[:-1]
    ]


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sysconfig.get_path("scripts"), "hadolint")
    done = subprocess.run(
        [hadolint, "--failure-threshold=style", ROOT / "Dockerfile"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_both_stages_start_from_one_pinned_slim_image() -> None:
    assert {stage.base for stage in STAGES} == {"python:3.11-slim-bookworm"}


def test_all_that_is_copied_exists_and_passes_the_ignore_file() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    for name in copied_from_the_context():
        assert (ROOT / name).exists(), name
        assert f"!{name}" in ignored


def test_the_final_stage_installs_the_programs_that_the_agent_runs() -> None:
    installed = {word for run in FINAL.all("RUN") for word in run.words}
    assert {PACKAGES[program] for program in PROGRAMS} | {"ipset"} <= installed
    assert not {"clang", "gcc", "make", "build-essential"} & installed


@pytest.mark.parametrize("stage", STAGES, ids=["builder", "final"])
def test_no_step_leaves_a_cache_of_packages(stage: Stage) -> None:
    for step in stage.all("RUN"):
        if "apt-get install" in step.text:
            assert step.text.rpartition("&&")[2].startswith(" rm -rf /var/lib/apt/lists/*")
        assert step.text.count("/python install ") == step.text.count("--no-cache-dir")


def test_the_entry_point_is_the_projects_program_and_its_command_is_run() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (entry,) = FINAL.all("ENTRYPOINT")
    (program,) = entry.words
    assert project["scripts"][program] == "ipmasq_agent.__main__:main"
    assert [step.words for step in FINAL.all("CMD")] == [["run"]]


def test_the_labels_tell_this_version_and_licence() -> None:
    (label,) = FINAL.all("LABEL")
    labels = pairs(label.text)
    assert labels["org.opencontainers.image.version"] == __version__
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
