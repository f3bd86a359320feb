"""docs/new-plane.md is true: its plane works with every verb, and what it names is there."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from ipmasq_agent.planes import plane as contract
from ipmasq_agent.planes.registry import PlaneRow
from tests.contract.planes import Subject
from tests.fakeplane.plane import DIRECTORY
from tests.kernel.pins import PINS
from tests.netns import Namespace

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "new-plane.md").read_text()
DOCUMENT = "nonMasqueradeCIDRs: [10.0.0.0/8, 172.30.0.0/16]\nmasqueradeCIDRs: [10.66.0.0/16]\n"


def _members(of: type) -> set[str]:
    own = {*vars(of), *getattr(of, "__annotations__", ())}
    return {name for name in own if not name.startswith("_")}


def test_the_page_names_every_part_of_the_contract_and_nothing_else() -> None:
    named = set(re.findall(r"`(\w+)`", PAGE))
    dialect = {field.name for field in dataclasses.fields(contract.Dialect)}
    row = {field.name for field in dataclasses.fields(PlaneRow)}
    assert dialect | row | _members(contract.Translator) | _members(contract.Plane) <= named
    assert {"counts", "added", "removed", "result"} == _members(contract.Change)
    tables = set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE))
    assert tables == dialect | row
    for promised in ("shown", "ruins"):
        assert hasattr(Subject, promised)
    for path in re.findall(r"`([\w/.-]+/[\w./-]*)`", PAGE):
        assert (ROOT / path).exists(), path


@pytest.mark.kernel
def test_the_plane_of_the_page_works_with_the_verbs(tmp_path: Path) -> None:
    document = tmp_path / "config.yaml"
    document.write_text(DOCUMENT)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("IPMASQ_")},
        DIRECTORY: str(tmp_path),
        PINS: str(tmp_path / "none"),
        "PYTHONPATH": str(ROOT),
    }

    def verb(*words: str) -> tuple[int, Any]:
        argv = [sys.executable, "-m", "tests.fakeplane", *words]
        done = namespace.run(argv, check=False, env=environment)
        return done.returncode, json.loads(done.stdout) if done.stdout else done.stderr

    with Namespace("fake") as namespace:
        chosen = ("--backend", "fake", "--config", str(document), "-o", "json")
        status, promised = verb("diff", *chosen)
        assert (status, promised["backend"]) == (1, "fake")
        status, done = verb("apply", *chosen)
        assert (status, done["changed"]) == (0, True)
        assert promised["families"]["ipv4"]["rules"]["add"] == done["families"]["ipv4"]["added"]
        assert verb("diff", *chosen)[0] == 0
        listed = verb("list", "--backend", "fake", "-o", "json")[1]["nonMasqueradeCIDRs"]
        assert "172.30.0.0/16" in listed
        assert "10.66.0.0/16" not in listed
        assert verb("status", *chosen)[1]["mode"] == "fake"
        # A move to another plane finds what is left here, by the row alone.
        moved = verb("diff", "--backend", "nftables", "--config", str(document), "-o", "json")[1]
        assert moved["leaves"]["fake"] == done["families"]["ipv4"]["added"]
        namespace.run([sys.executable, "-m", "tests.fakeplane", "cleanup"], env=environment)
        assert not (tmp_path / "ipv4").exists()
