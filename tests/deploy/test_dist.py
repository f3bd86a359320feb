"""What `make dist` makes: the same bytes everywhere, and nothing that a node does without."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import requires
from pathlib import Path

import pytest
import yaml
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ipmasq_agent import __version__
from tests.deploy.chart import CHART, helm
from tests.deploy.manifests import ROOT

PROGRAMS = "ipmasq_agent/planes/bpf"


def cloned(folder: Path, umask: int = 0o022) -> Path:
    """Make a clone, and return where it is."""
    # Whose repository this is does not matter here: nothing of its configuration is run.
    clone = ["git", "-c", "safe.directory=*", "clone", "--quiet", "--shared"]
    subprocess.run([*clone, ROOT, folder], check=True, umask=umask)
    return folder


def released(folder: Path, umask: int, **environment: str) -> Path:
    """Make a release from a clone, and return where it is."""
    cloned(folder, umask)
    subprocess.run(
        [folder / "scripts/dist", folder / "dist"],
        env=os.environ | {"PYTHON": sys.executable} | environment,
        cwd="/",
        check=True,
        capture_output=True,
        umask=umask,
    )
    return folder / "dist"


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return released(tmp_path_factory.mktemp("one") / "clone", 0o022)


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (found,) = dist.glob("*.whl")
    return found


def test_a_release_is_the_same_to_the_byte_wherever_and_whenever_it_is_made(
    dist: Path, tmp_path: Path
) -> None:
    settings = {"TZ": "Asia/Tokyo", "LC_ALL": "C", "HOME": str(tmp_path), "PYTHONHASHSEED": "1"}
    elsewhere = released(tmp_path / "a folder/of another name", 0o077, **settings)
    one, other = ({path.name: path.read_bytes() for path in f.iterdir()} for f in (dist, elsewhere))
    assert sorted(one) == sorted(other)
    assert [name for name in one if one[name] != other[name]] == []


def test_the_programs_are_the_same_wherever_they_are_compiled(tmp_path: Path) -> None:
    made = []
    for name in ("one", "another/deeper"):
        copy = shutil.copytree(ROOT / PROGRAMS, tmp_path / name)
        subprocess.run([copy / "compile"], check=True)
        made.append((copy / "masq.bpf.o").read_bytes())
    assert made[0] == made[1]
    assert b".debug_" not in made[0]


def test_the_sums_are_those_of_all_that_is_released(dist: Path) -> None:
    subprocess.run(
        ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=dist, check=True
    )
    summed = {line.split()[1] for line in (dist / "SHA256SUMS").read_text().splitlines()}
    assert summed == {path.name for path in dist.iterdir()} - {"SHA256SUMS"}
    assert sorted("".join(Path(name).suffixes[-2:]) for name in summed) == [
        ".0-py3-none-any.whl",
        ".0.tgz",
        ".cdx.json",
        ".tar.gz",
    ]


def test_a_wheel_has_the_programs_and_neither_guests_nor_sources_of_the_programs(
    wheel: Path,
) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    rooms = {name.split("/")[1] for name in names if name.startswith("ipmasq_agent/")}
    there = {path.name for path in (ROOT / "ipmasq_agent").iterdir() if path.name != "__pycache__"}
    assert rooms == there - {"lab", "bench"}
    others = [name for name in names if not name.endswith(".py") and ".dist-info/" not in name]
    assert others == [f"{PROGRAMS}/masq.bpf.o"]


def test_the_chart_that_is_packed_makes_what_its_folder_makes(dist: Path) -> None:
    (packed,) = dist.glob("*.tgz")
    assert packed.name == f"ipmasq-agent-{__version__}.tgz"
    about = helm("show", "chart", packed)
    assert about == helm("show", "chart", CHART)
    words = ("--namespace", "kube-system", "--set", "prometheusRule.enabled=true")
    made = [helm("template", "ipmasq-agent", chart, *words) for chart in (packed, CHART)]
    assert made[0] == made[1]


def test_a_release_s_chart_names_its_image_by_digest(tmp_path: Path) -> None:
    repository, digest = "registry.example.com/agent", f"sha256:{'0a' * 32}"
    subprocess.run(
        [cloned(tmp_path / "clone") / "scripts/pack-chart", tmp_path],
        env=os.environ | {"IPMASQ_IMAGE": f"{repository}@{digest}"},
        check=True,
    )
    (packed,) = tmp_path.glob("*.tgz")
    image = yaml.safe_load(helm("show", "values", packed))["image"]
    assert (image["repository"], image["digest"]) == (repository, digest)
    text = helm("template", "ipmasq-agent", packed)
    images = set(re.findall(r"image: \"(.*)\"", text))
    assert images == {f"{repository}:{__version__}@{digest}"}


@pytest.mark.parametrize("verb", ["lab run", "bench --quick"])
def test_a_guest_that_a_wheel_lacks_says_where_it_is(
    wheel: Path, tmp_path: Path, verb: str
) -> None:
    argv = [sys.executable, "-m", "ipmasq_agent", *verb.split()]
    there = os.environ | {"PYTHONPATH": str(wheel)}
    done = subprocess.run(argv, cwd=tmp_path, env=there, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"needs ipmasq_agent.{verb.split()[0]}" in done.stderr
    assert "in a clone of the agent's repository" in done.stderr


def test_the_bill_of_materials_is_valid_and_tells_all_that_the_wheel_leads_to(
    dist: Path, wheel: Path
) -> None:
    (text,) = (path.read_text() for path in dist.glob("*.cdx.json"))
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bom = json.loads(text)
    (told,) = bom["metadata"]["component"]["hashes"]
    assert told["content"] == hashlib.sha256(wheel.read_bytes()).hexdigest()
    components = {each["name"]: each for each in bom["components"]}
    programs = zipfile.ZipFile(wheel).read(f"{PROGRAMS}/masq.bpf.o")
    (told,) = components.pop(f"{PROGRAMS}/masq.bpf.o")["hashes"]
    assert told["content"] == hashlib.sha256(programs).hexdigest()
    assert components.pop("libbpf headers")["version"]
    # What the packages installed here say of themselves.
    edges = {each["ref"]: set(each["dependsOn"]) for each in bom["dependencies"]}
    wanted = ["ipmasq-agent"]
    seen: set[str] = set()
    while wanted:
        seen.add(name := wanted.pop())
        asked = {
            canonicalize_name(each.name)
            for each in map(Requirement, requires(name) or ())
            if each.marker is None or each.marker.evaluate({"extra": ""})
        }
        assert asked <= edges[name], name
        wanted += asked - seen
    assert seen == components.keys() | {"ipmasq-agent"}
