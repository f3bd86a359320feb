"""FileSource where inotify's limits are reached, or files belong to somebody else."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture
def path() -> Iterator[Path]:
    # Not tmp_path, which pytest keeps from other users.
    with tempfile.TemporaryDirectory(prefix="ipmasq-source-") as directory:
        Path(directory).chmod(0o755)
        document = Path(directory) / "document"
        document.write_bytes(b"first")
        document.chmod(0o666)
        yield document


def run(case: str, path: Path, prefix: Sequence[str] = ()) -> None:
    done = subprocess.run(
        [*prefix, sys.executable, "-m", "tests.unit.sources.restricted", case, str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("limit", ["max_inotify_watches", "max_inotify_instances"])
def test_where_inotify_s_limits_are_reached_the_file_is_read_again_and_again_until_they_are_raised(
    path: Path, limit: str
) -> None:
    run(limit, path, ["unshare", "--user", "--map-root-user"])


def test_a_file_of_another_user_is_followed_without_leases(path: Path) -> None:
    run("stranger", path)


def test_a_file_that_may_not_be_read_is_a_failure_until_its_mode_changes(path: Path) -> None:
    run("forbidden", path)


def test_a_directory_that_may_not_be_entered_is_not_taken_for_an_absent_document(
    path: Path,
) -> None:
    run("locked", path)
