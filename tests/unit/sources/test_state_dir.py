"""What is kept on the node: whole, and taken only where nobody else could have written it."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from ipmasq_agent.errors import SourceError
from ipmasq_agent.sources import state_dir
from ipmasq_agent.sources.state_dir import StateDir


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state"


def test_what_is_written_is_read_by_the_next_one_of_the_same_purpose(path: Path) -> None:
    StateDir(str(path), "a").write("document", {"x": [1, "é\udc80"]})
    assert StateDir(str(path), "a").read("document") == {"x": [1, "é\udc80"]}
    assert StateDir(str(path), "a").read("nodes") is None
    assert StateDir(str(path), "b").read("document") is None


def test_nobody_else_can_read_or_write_it_and_nothing_else_stays_behind(path: Path) -> None:
    before = os.umask(0)
    try:
        StateDir(str(path), "a").write("document", 1)
        StateDir(str(path), "a").write("document", 2)
    finally:
        os.umask(before)
    [file] = path.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_nothing_is_there_before_something_was_written(path: Path) -> None:
    assert StateDir(str(path), "a").read("document") is None
    assert not path.exists()


def linked(directory: Path, file: Path) -> None:
    file.rename(directory.parent / "elsewhere")
    file.symlink_to(directory.parent / "elsewhere")


def hard_linked(directory: Path, file: Path) -> None:
    os.link(file, directory.parent / "elsewhere")


def fifo(directory: Path, file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def directory_linked(directory: Path, file: Path) -> None:
    directory.rename(directory.parent / "elsewhere")
    directory.symlink_to(directory.parent / "elsewhere")


def of_another_source(directory: Path, file: Path) -> None:
    StateDir(str(directory), "b").write("document", 1)
    [other] = set(directory.iterdir()) - {file}
    other.rename(file)


def of_another_kind(directory: Path, file: Path) -> None:
    StateDir(str(directory), "a").write("nodes", 1)
    [other] = set(directory.iterdir()) - {file}
    other.rename(file)


def cut(directory: Path, file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def edited(directory: Path, file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b"good", b"evil"))


def large(directory: Path, file: Path) -> None:
    os.truncate(file, state_dir.MAX_BYTES + 1)


CASES: list[tuple[Callable[[Path, Path], object], str]] = [
    (lambda _, file: file.chmod(0o620), "could have been written by others than root"),
    (lambda _, file: file.chmod(0o602), "could have been written by others than root"),
    (lambda _, file: os.chown(file, 65534, 0), "could have been written by others than root"),
    (lambda directory, _: directory.chmod(0o770), "could have been written by others than root"),
    (lambda directory, _: os.chown(directory, 65534, 0), "could have been written by others"),
    (linked, "Too many levels of symbolic links"),
    (directory_linked, "Not a directory"),
    (hard_linked, "is not a file of its own"),
    (fifo, "is not a file of its own"),
    (of_another_source, "was kept for another source"),
    (of_another_kind, "was kept for another source"),
    (cut, "is not whole"),
    (edited, "is not whole"),
    (large, "is larger than"),
]


@pytest.mark.parametrize(("harm", "words"), CASES)
def test_what_is_not_trusted_is_refused_with_its_reason(
    path: Path, harm: Callable[[Path, Path], object], words: str
) -> None:
    StateDir(str(path), "a").write("document", "good")
    [file] = path.iterdir()
    harm(path, file)
    with pytest.raises(SourceError, match=re.escape(words)) as refused:
        StateDir(str(path), "a").read("document")
    assert "--state-dir" in str(refused.value)


def test_a_directory_that_others_can_write_to_is_not_written_to(path: Path) -> None:
    path.mkdir()
    path.chmod(0o777)
    with pytest.raises(SourceError, match="others than root"):
        StateDir(str(path), "a").write("document", 1)
    assert not list(path.iterdir())


def test_a_link_in_place_of_the_new_file_is_not_followed(path: Path, tmp_path: Path) -> None:
    state = StateDir(str(path), "a")
    state.write("document", 1)
    [file] = path.iterdir()
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    (path / f".{file.name}.new").symlink_to(victim)
    state.write("document", 2)
    assert victim.read_text() == "untouched"
    assert state.read("document") == 2


def test_a_place_where_nothing_can_be_written_is_an_error_of_ours(tmp_path: Path) -> None:
    for place in (tmp_path / "a" / "b", Path("/proc/ipmasq"), tmp_path / "file"):
        (tmp_path / "file").write_text("")
        with pytest.raises(SourceError, match="--state-dir"):
            StateDir(str(place), "a").write("document", 1)


def test_what_cannot_be_kept_leaves_nothing_older(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = StateDir(str(path), "a")
    state.write("document", "before")

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SourceError, match="No space left on device"):
        state.write("document", "after")
    assert state.read("document") is None
    assert not list(path.iterdir())


def test_more_than_fits_is_not_kept(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = StateDir(str(path), "a")
    state.write("document", "before")
    monkeypatch.setattr(state_dir, "MAX_BYTES", 1000)
    with pytest.raises(SourceError, match="would be larger"):
        state.write("document", "x" * 1000)
    assert state.read("document") is None


@pytest.mark.parametrize("body", [b"[]", b"{}", b"x", b"1", b"[" * 100000])
def test_another_form_is_refused(path: Path, body: bytes) -> None:
    import hashlib

    StateDir(str(path), "a").write("document", 1)
    [file] = path.iterdir()
    file.write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    with pytest.raises(SourceError, match="is not of this form"):
        StateDir(str(path), "a").read("document")


def test_what_is_kept_can_be_read_by_people(path: Path) -> None:
    StateDir(str(path), "a").write("document", 1)
    [file] = path.iterdir()
    assert json.loads(file.read_text().splitlines()[1])["value"] == 1
