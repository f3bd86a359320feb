"""The kernel half: two files, whose directory the environment names."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.planes.plane import Plane
from ipmasq_agent.policy.addresses import Family
from tests.fakeplane.dialect import DIALECT, LineChange, Lines

DIRECTORY = "FAKE_PLANE"


def path_of(family: Family) -> Path:
    """Return where the state of a family is."""
    return Path(os.environ[DIRECTORY], family.value)


class FakePlane(Plane[Lines, Lines, LineChange]):
    """Reads and writes the files."""

    name = "fake"
    dialect = DIALECT

    def __init__(self) -> None:
        self._left: dict[Family, Lines] = {}

    def read(self, family: Family) -> Lines:
        """Return what the file holds; nothing where there is none."""
        try:
            text = path_of(family).read_text()
        except FileNotFoundError:
            text = ""
        return Lines(family, tuple(text.splitlines()))

    def apply(self, family: Family, change: LineChange) -> None:
        """Write the file anew and put it in the place of the other, or remove that."""
        path = path_of(family)
        if change.result.lines:
            path.with_suffix(".new").write_text("\n".join(change.result.lines) + "\n")
            path.with_suffix(".new").rename(path)
        else:
            path.unlink()
        self._left[family] = change.result

    def disturbed(self, failing: Collection[Family] = ()) -> bool:
        """Return whether a file is another than we left."""
        looked_at = self._left.keys() - failing
        return any(self.read(family) != self._left[family] for family in looked_at)


def has_file(placement: Placement) -> bool:
    """Whether state of ours is here."""
    return DIRECTORY in os.environ and any(path_of(family).exists() for family in Family)
