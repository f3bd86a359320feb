"""What is installed is pinned, with the hashes of its files, as pyproject.toml asks for it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.deploy.manifests import ROOT

FILES = sorted((ROOT / "requirements").glob("*.txt"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def pins(file: Path) -> dict[str, Version]:
    """Return what a file pins, with what it includes; each must have hashes and no address."""
    found: dict[str, Version] = {}
    for line in re.sub(r"\\\n\s*", "", file.read_text()).splitlines():
        if line.startswith("-r "):
            found |= pins(file.parent / line[3:])
        elif not line.lstrip().startswith("#"):
            pin = re.fullmatch(
                r"([\w-]+)==([\w.]+)( ; [^-]+)?( *--hash=sha256:[0-9a-f]{64})+", line
            )
            assert pin is not None, f"{file.name}: {line[:80]}"
            found[pin[1]] = Version(pin[2])
    return found


def wanted(part: str) -> list[Requirement]:
    """Return what pyproject.toml asks of a part."""
    if part == "agent":
        return [Requirement(each) for each in PROJECT["project"]["dependencies"]]
    asked = []
    for each in PROJECT["dependency-groups"][part]:
        asked += wanted(each["include-group"]) if isinstance(each, dict) else [Requirement(each)]
    return asked


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_all_that_a_part_asks_for_is_pinned_with_hashes(file: Path) -> None:
    pinned = pins(file)
    for asked in wanted(file.stem):
        assert pinned[canonicalize_name(asked.name)] in asked.specifier


def test_there_is_one_version_of_each_package() -> None:
    versions = {(name, version) for file in FILES for name, version in pins(file).items()}
    assert len(versions) == len(dict(versions))


def test_what_builds_the_package_is_what_is_pinned_for_it() -> None:
    assert PROJECT["build-system"]["requires"] == PROJECT["dependency-groups"]["build"]


@pytest.mark.parametrize("file", ["Makefile", "Dockerfile", "bench.Dockerfile"])
def test_pip_installs_by_hash_or_what_was_built_here(file: str) -> None:
    text = re.sub(r"\\\n\s*", " ", (ROOT / file).read_text())
    installs = re.findall(r"(?:pip .*?install|\$\(PIP\)) ([^&\n]*)", text)
    assert installs
    for words in installs:
        if "--disable-pip-version-check" not in words:  # the variable that the others begin with
            assert "--require-hashes --requirement" in words or "--no-deps" in words, words
