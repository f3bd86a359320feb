"""What a tag sets off, as far as that can be told without the machines that it is for."""

from __future__ import annotations

import importlib.resources
import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml

from ipmasq_agent import __version__
from tests.deploy.chart import helm
from tests.deploy.manifests import ROOT

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def workflow(path: Path) -> dict[str, Any]:
    found = yaml.load(path.read_text(), yaml.BaseLoader)  # `on` is a word here, not true
    assert isinstance(found, dict)
    return found


def steps(path: Path) -> Iterator[dict[str, Any]]:
    for job in workflow(path)["jobs"].values():
        yield from job["steps"]


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    """Return GitHub's form of a workflow, as the package has it from the catalogue of schemas."""
    folder = importlib.resources.files("check_jsonschema") / "builtin_schemas/vendor"
    found = json.loads((folder / "github-workflows.json").read_text())
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_is_in_the_form_that_runs(path: Path, schema: dict[str, Any]) -> None:
    found = yaml.safe_load(path.read_text())
    found["on"] = found.pop(True)
    jsonschema.Draft7Validator(schema).validate(found)
    del found["jobs"][next(iter(found["jobs"]))]["runs-on"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(schema).validate(found)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_what_is_used_of_others_cannot_change_under_its_name(path: Path) -> None:
    for step in steps(path):
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step["uses"])


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_nothing_that_a_stranger_names_is_pasted_into_a_command(path: Path) -> None:
    for step in steps(path):
        assert "${{" not in step.get("run", "")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_command_can_be_read_and_every_script_is_there(path: Path) -> None:
    for step in steps(path):
        if "run" in step:
            subprocess.run(["bash", "-n"], input=step["run"], text=True, check=True)
            for name in re.findall(r"(?<![\w/])(?:scripts|\.ci)/[\w-]+", step["run"]):
                assert (ROOT / name).stat().st_mode & 0o100, name
            for target in re.findall(r"\bmake ([\w-]+)", step["run"]):
                assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_only_the_job_that_publishes_may_write_a_release_and_sign(path: Path) -> None:
    assert workflow(path)["permissions"] == {"contents": "read"}
    for name, job in workflow(path)["jobs"].items():
        writes = {key for key, value in job.get("permissions", {}).items() if value == "write"}
        allowed = {"image": {"packages"}, "publish": {"contents", "packages", "id-token"}}
        assert writes - {"attestations"} == allowed.get(name, set())


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Return a clone with the scripts as they are here, committed or not."""
    place = tmp_path / "clone"
    quiet = ["git", "-c", "safe.directory=*", "clone", "--quiet", "--shared", str(ROOT), str(place)]
    subprocess.run(quiet, check=True)
    listed = subprocess.run(
        ["git", "ls-files", "--others", "--modified", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    for name in listed:
        if (ROOT / name).exists():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, place / name)
    return place


def run(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=place, check=False, capture_output=True, text=True)


def test_the_version_has_one_place_and_one_command_moves_it(clone: Path) -> None:
    assert run(clone, "scripts/set-version").stdout.strip() == __version__
    assert run(clone, "scripts/set-version", "9.8.7rc6").returncode == 0
    assert run(clone, "scripts/set-version").stdout.strip() == "9.8.7rc6"
    # No name of an image, and no number in pyproject.toml, is left behind.
    named = rf"ipmasq-agent(-bench)?:{re.escape(__version__)}\b|newTag: {re.escape(__version__)}"
    left = run(clone, "git", "grep", "-nE", named, "--", "deploy", "docs", "*Dockerfile", "*.md")
    assert left.stdout == ""
    changed = run(clone, "git", "diff", "--name-only").stdout.split()
    assert {"Dockerfile", "deploy/base/kustomization.yaml", "README.md"} < {*changed}
    chart = yaml.safe_load((clone / "deploy/helm/ipmasq-agent/Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == ("9.8.7-rc6", "9.8.7rc6")
    assert helm("lint", "--strict", clone / "deploy/helm/ipmasq-agent")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" not in project
    assert project["dynamic"] == ["version"]


@pytest.mark.parametrize("version", ["1", "1.2.3-4", "1.2.3; id", ""])
def test_what_is_no_version_changes_nothing(clone: Path, version: str) -> None:
    before = run(clone, "git", "status", "--short").stdout
    assert run(clone, "scripts/set-version", version).returncode == (2 if version else 0)
    assert run(clone, "git", "status", "--short").stdout == before


def test_a_tag_is_released_only_where_it_is_the_version_and_the_changelog_says_what_is_new(
    clone: Path,
) -> None:
    run(clone, "scripts/set-version", "9.8.7")
    changelog = clone / "CHANGELOG.md"
    told = changelog.read_text()
    assert "nothing under" in run(clone, "scripts/check-release", "v9.8.7").stderr
    changelog.write_text(told.replace("# Changelog\n", "# Changelog\n\n## 9.8.7\n\n- A line.\n", 1))
    assert run(clone, "scripts/check-release", "v9.8.7").stdout.strip() == "- A line."
    for tag in ("v9.8.8", "9.8.7", ""):
        assert run(clone, "scripts/check-release", *filter(None, [tag])).returncode == 1
