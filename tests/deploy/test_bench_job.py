"""The benchmark's Job and its image, as far as they can be judged without a cluster."""

from __future__ import annotations

import re
import subprocess
import sysconfig
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from ipmasq_agent.bench.modes import FULL, MODES
from ipmasq_agent.bench.workloads import tools
from ipmasq_agent.cli.entry import cli
from tests.deploy.dockerfile import parse
from tests.deploy.manifests import DEPLOY, ROOT

TEXT = (DEPLOY / "bench-job.yaml").read_text()
IMAGE = parse((ROOT / "bench.Dockerfile").read_text())[-1]
OF_THE_AGENT = parse((ROOT / "Dockerfile").read_text())[-1]


def job() -> dict[str, Any]:
    """The Job for a node, made as its comment says."""
    words = dict(re.findall(r"-e 's\|(\w+)\|([^|]+)\|'", TEXT))
    assert sorted(words) == ["IMAGE", "NODE"]
    text = TEXT
    for word, value in words.items():
        assert len(re.findall(rf": {word}$", TEXT, re.MULTILINE)) == 1
        text = text.replace(f": {word}\n", f": {value}\n")
    made: dict[str, Any] = yaml.safe_load(text)
    return made


@pytest.mark.parametrize("version", ["1.25", "1.37"])
def test_the_job_is_valid_for_the_oldest_and_the_newest_api(version: str) -> None:
    kubernetes_validate.validate(job(), version, strict=True)


def test_it_runs_where_it_is_told_prints_the_report_and_keeps_the_exit_status(
    tmp_path: Path,
) -> None:
    pod = job()["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"kubernetes.io/hostname": "worker-1"}
    (container,) = pod["containers"]
    shell, dash, script = container["command"]
    assert (shell, dash) == ("sh", "-c")
    ((verb, *words),) = [found.split() for found in re.findall(r"ipmasq-agent (.*) > ", script)]
    with cli.make_context("ipmasq-agent", [verb], resilient_parsing=True) as root:
        command = cli.get_command(root, verb)
        assert command is not None
        with command.make_context(verb, words, parent=root) as context:
            folder = context.params["folder"]
    # The script as it is, with a program in the agent's place and another folder.
    program = tmp_path / "ipmasq-agent"
    program.write_text(f"#!/bin/sh\nmkdir -p {tmp_path}{folder}\n")
    with program.open("a") as more:
        more.write(f"echo '# the report' > {tmp_path}{folder}/report.md\nexit 1\n")
    program.chmod(0o755)
    (tmp_path / "report").mkdir()
    script = re.sub(r"(?<= )/report", f"{tmp_path}/report", script)
    done = subprocess.run(
        ["sh", "-c", script],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "# the report\n"), done.stderr


def test_hadolint_finds_nothing_in_the_image() -> None:
    hadolint = Path(sysconfig.get_path("scripts"), "hadolint")
    argv = [str(hadolint), "--failure-threshold=style", str(ROOT / "bench.Dockerfile")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_image_has_what_the_benchmark_asks_for() -> None:
    installed = {word for s in (IMAGE, OF_THE_AGENT) for run in s.all("RUN") for word in run.words}
    assert {*tools(MODES, FULL).values(), "/tmp/requirements/bench.txt"} <= installed


def test_the_image_has_the_rooms_that_a_wheel_leaves_out() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    excluded = project["tool"]["hatch"]["build"]["targets"]["wheel"]["exclude"]
    rooms = {path.strip("/") for path in excluded if (ROOT / path.strip("/")).is_dir()}
    copied = dict(copy.words for copy in IMAGE.all("COPY"))
    assert copied.pop("requirements") == "/tmp/requirements"
    assert copied.keys() == rooms == {"ipmasq_agent/bench", "ipmasq_agent/lab"}
    for room, target in copied.items():
        assert target.endswith(f"/site-packages/{room}")


def test_the_installer_of_the_tests_has_it_too() -> None:
    script = (ROOT / "scripts/install-tools").read_text()
    named = dict(re.findall(r"need (\S+) (\S+)$", script, re.MULTILINE))
    # Part of every Debian.
    wanted = {t: p for t, p in tools(MODES, FULL).items() if p != "util-linux"}
    assert wanted.items() - {("iptables-legacy-save", "iptables")} <= named.items()
