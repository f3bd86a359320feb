"""MergedSource over files, which are the simplest sources there are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipmasq_agent.errors import SourceError
from ipmasq_agent.sources import Document, SourceFailed
from ipmasq_agent.sources.file import FileSource
from ipmasq_agent.sources.merged import MergedSource
from tests.unit.sources.heard import Heard


@pytest.fixture
def paths(tmp_path: Path) -> tuple[Path, Path]:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"1")
    two.write_bytes(b"2")
    return one, two


@pytest.fixture
def source(paths: tuple[Path, Path]) -> Iterator[MergedSource]:
    source = MergedSource([FileSource(path) for path in paths])
    yield source
    source.stop()


def broken(path: Path) -> None:
    """Put something in place of a file that cannot be read as one."""
    path.with_name(".broken").symlink_to(path.name)
    os.rename(path.with_name(".broken"), path)


def mended(path: Path, content: bytes) -> None:
    """Put a file in its place in one step: in between, none would be an answer too."""
    path.with_name(".mended").write_bytes(content)
    os.rename(path.with_name(".mended"), path)


def test_all_parts_are_read_in_the_order_of_the_sources(
    source: MergedSource, paths: tuple[Path, Path]
) -> None:
    document = source.read()
    assert [part.content for part in document.parts] == [b"1", b"2"]
    assert document.name == source.name == f"{paths[0]}, {paths[1]}"


def test_what_does_not_exist_is_named(source: MergedSource, paths: tuple[Path, Path]) -> None:
    assert source.read().lacking == ()
    paths[1].unlink()
    document = source.read()
    assert document.lacking == (f"{paths[1]} does not exist",)
    assert [part.content for part in document.parts] == [b"1"]


def test_the_first_document_is_whole(source: MergedSource) -> None:
    heard = Heard()
    source.start(heard)
    heard.parts(one=b"1", two=b"2")
    assert len(heard.events) == 1


def test_each_change_is_delivered_with_what_the_others_have(
    source: MergedSource, paths: tuple[Path, Path]
) -> None:
    heard = Heard()
    source.start(heard)
    revision = heard.parts(one=b"1", two=b"2").revision
    paths[1].write_bytes(b"3")
    assert heard.parts(one=b"1", two=b"3").revision != revision
    paths[0].unlink()
    heard.parts(two=b"3")


def test_nothing_is_delivered_while_a_source_has_never_answered(
    source: MergedSource, paths: tuple[Path, Path]
) -> None:
    broken(paths[1])
    heard = Heard()
    source.start(heard)
    heard.failure("two")
    paths[0].write_bytes(b"changed")
    mended(paths[1], b"2")
    heard.parts(one=b"changed", two=b"2")
    parts = [len(event.parts) for event in heard.events if isinstance(event, Document)]
    assert set(parts) == {2}


def test_a_source_that_fails_stands_with_what_it_said_last_and_stays_told(
    source: MergedSource, paths: tuple[Path, Path]
) -> None:
    heard = Heard()
    source.start(heard)
    broken(paths[1])
    heard.failure("two")
    paths[0].write_bytes(b"changed")

    def told(events: list[Document | SourceFailed]) -> bool:
        return len(events) > 2 and isinstance(events[-1], SourceFailed)

    heard.wait(told)
    document = heard.events[-2]
    assert isinstance(document, Document)
    assert [part.content for part in document.parts] == [b"changed", b"2"]


def test_a_source_that_cannot_be_read_is_an_error(
    source: MergedSource, paths: tuple[Path, Path]
) -> None:
    broken(paths[0])
    with pytest.raises(SourceError, match="one cannot be read"):
        source.read()


def test_all_sources_are_looked_at_again(source: MergedSource) -> None:
    heard = Heard()
    source.start(heard)
    source.refresh()
    heard.wait(lambda events: len(events) == 3)
    assert source.cheap
