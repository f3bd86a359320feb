"""FileSource on a real file system, with real inotify events."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from ipmasq_agent.errors import SourceError, SourceUnavailable
from ipmasq_agent.sources import Document, Part, SourceFailed, file, settled
from ipmasq_agent.sources.file import FileSource
from tests.unit.sources.heard import Heard, content_of


class Watching(Protocol):
    def __call__(self, path: Path | str) -> tuple[FileSource, Heard]: ...


@pytest.fixture
def watching() -> Iterator[Watching]:
    sources: list[FileSource] = []

    def watch(path: Path | str) -> tuple[FileSource, Heard]:
        source, heard = FileSource(path), Heard()
        sources.append(source)
        source.start(heard)
        return source, heard

    yield watch
    for source in sources:
        source.stop()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "document"
    path.write_bytes(b"first")
    return path


def rename_over(path: Path, content: bytes) -> None:
    fresh = path.with_name(".fresh")
    fresh.write_bytes(content)
    fresh.rename(path)


def volume(mount: Path, version: str, documents: dict[str, bytes]) -> None:
    """Do what kubelet's AtomicWriter does to a mounted ConfigMap."""
    mount.mkdir(exist_ok=True)
    (mount / version).mkdir()
    for key, content in documents.items():
        (mount / version / key).write_bytes(content)
    old = os.readlink(mount / "..data") if (mount / "..data").is_symlink() else None
    (mount / "..data_tmp").symlink_to(version)
    (mount / "..data_tmp").rename(mount / "..data")
    for key in documents:
        if not (mount / key).is_symlink():
            (mount / key).symlink_to(f"..data/{key}")
    for link in mount.iterdir():
        if not link.name.startswith("..") and link.name not in documents:
            link.unlink()
    if old is not None:
        for left in (mount / old).iterdir():
            left.unlink()
        (mount / old).rmdir()


# What is delivered at first


def test_the_first_state_is_delivered_before_start_returns(watching: Watching, path: Path) -> None:
    before = time.monotonic()
    _, heard = watching(path)
    [event] = heard.events
    assert isinstance(event, Document)
    assert (event.name, content_of(event)) == (str(path), b"first")
    assert before <= event.noticed <= time.monotonic()


def test_a_missing_file_is_a_document_without_content(watching: Watching, tmp_path: Path) -> None:
    _, heard = watching(tmp_path / "no" / "such" / "file")
    [event] = heard.events
    assert isinstance(event, Document)
    assert (content_of(event), event.revision) == (None, "absent")


def test_a_path_below_a_file_is_a_document_without_content(watching: Watching, path: Path) -> None:
    _, heard = watching(path / "below")
    assert heard.contents == [None]


def test_an_empty_file_is_a_document_of_zero_bytes(watching: Watching, path: Path) -> None:
    path.write_bytes(b"")
    _, heard = watching(path)
    assert heard.contents == [b""]


def test_a_relative_path_is_followed_from_the_working_directory(
    watching: Watching, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    _, heard = watching("../" + path.parent.name + "/./document")
    heard.content(b"first")
    rename_over(path, b"second")
    heard.content(b"second")


# Changes


def test_a_write_in_place_is_delivered(watching: Watching, path: Path) -> None:
    _, heard = watching(path)
    path.write_bytes(b"second")
    heard.content(b"second")


def test_a_rename_over_the_file_is_delivered(watching: Watching, path: Path) -> None:
    _, heard = watching(path)
    rename_over(path, b"second")
    heard.content(b"second")
    path.write_bytes(b"third, in place of the new file")
    heard.content(b"third, in place of the new file")


def test_a_file_that_takes_the_place_of_one_that_lives_on_elsewhere_is_followed(
    watching: Watching, path: Path
) -> None:
    # The kernel ends a watch with its inode, and this one lives on: nothing tells but us.
    path.with_name("kept").hardlink_to(path)
    successor = path.with_name("successor")
    successor.write_bytes(b"second")
    _, heard = watching(path)
    path.unlink()
    heard.content(None)
    path.hardlink_to(successor)
    heard.content(b"second")
    path.write_bytes(b"third")
    heard.content(b"third")


def test_a_file_removed_and_made_anew_at_once_is_followed_even_with_the_same_inode_number(
    watching: Watching, path: Path
) -> None:
    source, heard = watching(path)
    # Nobody looks between the two, and ext4 gives the number to the next file.
    with source._lock:
        path.unlink()
        path.write_bytes(b"second")
    heard.content(b"second")
    other = path.with_name("other")
    _, barrier = watching(other)
    other.write_bytes(b"")
    barrier.content(b"")
    path.write_bytes(b"third")
    heard.content(b"third")


def test_a_write_through_another_name_of_the_same_file_is_delivered(
    watching: Watching, path: Path
) -> None:
    other = path.parent / "elsewhere"
    other.mkdir()
    (other / "name").hardlink_to(path)
    _, heard = watching(path)
    (other / "name").write_bytes(b"second")
    heard.content(b"second")


def test_a_removed_file_is_absent_and_may_come_back(watching: Watching, path: Path) -> None:
    _, heard = watching(path)
    path.unlink()
    assert heard.content(None).revision == "absent"
    path.write_bytes(b"again")
    heard.content(b"again")


def test_an_editor_that_moves_the_old_file_away_first_does_not_flash_an_absent_document(
    watching: Watching, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file, "GRACE", 5.0)
    source, heard = watching(path)
    path.rename(path.with_name("document~"))
    source.refresh()
    path.write_bytes(b"second")
    heard.content(b"second")
    assert None not in heard.contents


def test_a_directory_that_appears_later_is_followed_down(
    watching: Watching, tmp_path: Path
) -> None:
    late = tmp_path / "a" / "b" / "c"
    _, heard = watching(late / "document")
    for _ in range(3):
        late.mkdir(parents=True)
        (late / "document").write_bytes(b"here")
        heard.content(b"here")
        (late / "document").unlink()
        late.rmdir()
        late.parent.rmdir()
        late.parent.parent.rmdir()
        heard.content(None)


def test_a_directory_above_that_is_replaced_is_noticed(watching: Watching, tmp_path: Path) -> None:
    for name, content in (("one", b"first"), ("two", b"second")):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "document").write_bytes(content)
    (tmp_path / "one").rename(tmp_path / "current")
    _, heard = watching(tmp_path / "current" / "deep" / "document")
    (tmp_path / "current").rename(tmp_path / "old")
    (tmp_path / "two").rename(tmp_path / "current")
    heard.content(b"second")


def test_a_parent_that_is_a_symbolic_link_may_be_pointed_elsewhere(
    watching: Watching, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "document").write_bytes(name.encode())
    (tmp_path / "current").symlink_to(tmp_path / "one")
    _, heard = watching(tmp_path / "current" / "document")
    heard.content(b"one")
    (tmp_path / "next").symlink_to("two")
    (tmp_path / "next").rename(tmp_path / "current")
    heard.content(b"two")
    (tmp_path / "two" / "document").write_bytes(b"two, changed")
    heard.content(b"two, changed")


def test_a_hundred_changes_are_all_noticed_and_nothing_else_is_delivered(
    watching: Watching, path: Path
) -> None:
    _, heard = watching(path)
    expected = [b"first"]
    for number in range(100):
        content = b"change %d" % number
        expected.append(content)
        if number % 2:
            rename_over(path, content)
        else:
            path.write_bytes(content)
        heard.content(content)
    assert heard.contents == expected


def test_the_same_content_again_is_no_news(watching: Watching, path: Path) -> None:
    _, heard = watching(path)
    path.write_bytes(b"first")
    rename_over(path, b"first")
    path.chmod(0o640)
    (path.parent / "unrelated").write_bytes(b"")
    path.write_bytes(b"second")
    heard.content(b"second")
    assert heard.contents == [b"first", b"second"]


def test_refresh_delivers_what_is_already_known(watching: Watching, path: Path) -> None:
    source, heard = watching(path)
    source.refresh()
    source.refresh()
    assert heard.contents == [b"first"] * 3


def test_the_revision_depends_on_the_content_alone(watching: Watching, path: Path) -> None:
    _, heard = watching(path)
    revisions = []
    for content in (b"second", b"third", b"second"):
        path.write_bytes(content)
        revisions.append(heard.content(content).revision)
    assert revisions[0] == revisions[2] != revisions[1]


# Writers


def test_a_truncated_file_is_not_read_before_its_writer_closes_it(
    watching: Watching, path: Path
) -> None:
    source, heard = watching(path)
    with path.open("wb", buffering=0) as writer:
        source.refresh()
        writer.write(b"sec")
        source.refresh()
        writer.write(b"ond")
        source.refresh()
    heard.content(b"second")
    assert heard.contents == [b"first", b"second"]


def test_a_writer_from_before_the_start_is_waited_for(watching: Watching, path: Path) -> None:
    with path.open("wb", buffering=0) as writer:
        source, heard = watching(path)
        source.refresh()
        writer.write(b"whole")
        source.refresh()
        assert heard.events == []
    heard.content(b"whole")
    assert heard.contents == [b"whole"]


def test_a_refresh_while_somebody_writes_is_answered_when_the_file_is_closed(
    watching: Watching, path: Path
) -> None:
    source, heard = watching(path)
    with path.open("r+b"):
        source.refresh()
        assert len(heard.events) == 1
    heard.wait(lambda events: len(events) == 2)
    assert heard.contents == [b"first", b"first"]


def test_a_file_renamed_into_place_before_it_is_closed_is_waited_for(
    watching: Watching, path: Path
) -> None:
    source, heard = watching(path)
    fresh = path.with_name("fresh")
    with fresh.open("wb", buffering=0) as writer:
        writer.write(b"half")
        fresh.rename(path)
        source.refresh()
        writer.write(b" and half")
    heard.content(b"half and half")
    assert heard.contents == [b"first", b"half and half"]


def test_two_writers_are_both_waited_for(watching: Watching, path: Path) -> None:
    source, heard = watching(path)
    with path.open("wb", buffering=0) as slow:
        path.write_bytes(b"quick")
        source.refresh()
        slow.write(b"slow!")
    heard.content(b"slow!")
    assert heard.contents == [b"first", b"slow!"]


def test_truncate_and_write_never_shows_an_empty_or_a_half_document(
    watching: Watching, path: Path
) -> None:
    source, heard = watching(path)
    documents = {b"first"}
    for number in range(300):
        document = b"%d " % number * 2000
        documents.add(document)
        with path.open("wb", buffering=0) as writer:
            writer.write(document[:5000])
            if number % 3 == 0:
                source.refresh()
            writer.write(document[5000:])
    heard.content(document)
    assert set(heard.contents) <= documents


def test_writers_are_not_refused_and_wait_for_our_read_at_most(
    watching: Watching, path: Path
) -> None:
    source, heard = watching(path)
    stop = threading.Event()

    def refresh() -> None:
        while not stop.is_set():
            source.refresh()

    thread = threading.Thread(target=refresh)
    thread.start()
    try:
        for number in range(300):
            path.write_bytes(b"%d" % number)
    finally:
        stop.set()
        thread.join()
    heard.content(b"299")


def test_a_file_that_stays_open_is_told_about_once_and_read_when_it_is_closed(
    watching: Watching, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file, "STUCK", 0.05)
    _, heard = watching(path)
    with path.open("wb", buffering=0) as writer:
        failed = heard.failure("open for writing")
        assert isinstance(failed.error, SourceUnavailable)
        writer.write(b"at last")
    heard.content(b"at last")
    assert len(heard.events) == 3


def test_without_leases_a_file_is_not_read_between_a_write_and_the_close(
    watching: Watching, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settled, "take_lease", lambda descriptor: False)
    source, heard = watching(path)
    with path.open("wb", buffering=0) as writer:
        # The truncation is known once its event is read: a second change tells that it was.
        other = path.with_name("other")
        watching(other)[1].content(None)
        writer.write(b"sec")
        _wait_until(lambda: source._watch is not None and source._watch.modified)
        source.refresh()
        writer.write(b"ond")
        source.refresh()
    heard.content(b"second")
    assert heard.contents == [b"first", b"second"]
    rename_over(path, b"third")
    heard.content(b"third")


def _wait_until(condition: threading.Condition | object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        os.sched_yield()


# Reading once


def test_read_returns_the_document_without_watching(path: Path) -> None:
    threads = threading.active_count()
    document = FileSource(path).read()
    assert (content_of(document), document.name) == (b"first", str(path))
    assert threading.active_count() == threads


def test_read_waits_for_a_writer_to_finish(path: Path) -> None:
    writer = path.open("wb", buffering=0)
    writer.write(b"whole")
    closing = threading.Timer(0.05, writer.close)
    closing.start()
    try:
        assert content_of(FileSource(path).read()) == b"whole"
    finally:
        closing.join()


def test_read_gives_up_on_a_writer_that_does_not_finish(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file, "PATIENCE", 0.02)
    with path.open("r+b"), pytest.raises(SourceUnavailable, match="half written"):
        FileSource(path).read()


# Kubelet's volumes


def test_a_mounted_configmap_is_followed_from_version_to_version(
    watching: Watching, tmp_path: Path
) -> None:
    mount = tmp_path / "volume"
    volume(mount, "..1", {"ip-masq-agent": b"version 1", "unrelated": b""})
    _, heard = watching(mount / "ip-masq-agent")
    for number in range(2, 30):
        volume(mount, f"..{number}", {"ip-masq-agent": b"version %d" % number, "unrelated": b""})
        heard.content(b"version %d" % number)
    assert heard.contents == [b"version %d" % number for number in range(1, 30)]


def test_a_key_taken_out_of_a_mounted_configmap_is_absent_and_no_failure(
    watching: Watching, tmp_path: Path
) -> None:
    mount = tmp_path / "volume"
    volume(mount, "..1", {"config": b"here", "other": b""})
    _, heard = watching(mount / "config")
    volume(mount, "..2", {"other": b""})
    heard.content(None)
    volume(mount, "..3", {"config": b"back", "other": b""})
    heard.content(b"back")
    assert heard.contents == [b"here", None, b"back"]


def test_a_mounted_directory_is_followed_to_its_document(
    watching: Watching, tmp_path: Path
) -> None:
    mount = tmp_path / "volume"
    volume(mount, "..1", {"config": b"version 1"})
    _, heard = watching(mount)
    assert heard.content(b"version 1").name == str(mount / "config")
    volume(mount, "..2", {"config": b"version 2"})
    heard.content(b"version 2")


def test_a_link_to_nothing_is_unavailable_and_not_absent(
    watching: Watching, tmp_path: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to("later/document")
    _, heard = watching(link)
    failed = heard.failure("symbolic link to")
    assert isinstance(failed.error, SourceUnavailable)
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "document").write_bytes(b"there")
    heard.content(b"there")


# Directories


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["config", "ip-masq-agent", "other"], "config"),
        (["ip-masq-agent", "other"], "ip-masq-agent"),
        (["masq.yaml", ".hidden"], "masq.yaml"),
    ],
)
def test_the_document_of_a_directory_is_found_by_its_name(
    tmp_path: Path, names: list[str], chosen: str
) -> None:
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    document = FileSource(tmp_path).read()
    assert (content_of(document), document.name) == (chosen.encode(), str(tmp_path / chosen))


def test_an_empty_directory_holds_no_document_until_one_comes(
    watching: Watching, tmp_path: Path
) -> None:
    (tmp_path / "subdirectory").mkdir()
    (tmp_path / ".hidden").write_bytes(b"")
    _, heard = watching(tmp_path)
    assert heard.contents == [None]
    (tmp_path / "masq.yaml").write_bytes(b"here")
    heard.content(b"here")


# Several files


def test_several_files_are_one_document_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b", "a", "10-team", "9-user", ".hidden"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "directory").mkdir()
    document = FileSource(tmp_path).read()
    assert document.name == str(tmp_path)
    assert document.parts == tuple(
        Part(str(tmp_path / name), name.encode()) for name in ("10-team", "9-user", "a", "b")
    )


def test_all_files_of_a_directory_can_be_asked_for(tmp_path: Path) -> None:
    (tmp_path / "config").write_bytes(b"1")
    assert [part.content for part in FileSource(tmp_path / "*").read().parts] == [b"1"]
    (tmp_path / "more").write_bytes(b"2")
    assert [part.content for part in FileSource(tmp_path / "*").read().parts] == [b"1", b"2"]
    assert content_of(FileSource(tmp_path).read()) == b"1"


def test_a_file_is_not_taken_for_a_directory(path: Path) -> None:
    with pytest.raises(SourceError, match="is not a directory"):
        FileSource(path / "*").read()


def test_a_directory_without_files_holds_no_document(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "*", tmp_path / "missing" / "*"):
        assert FileSource(path).read().parts == ()


def test_the_revision_tells_where_one_file_ends_and_the_next_begins(tmp_path: Path) -> None:
    revisions = set()
    for first, second in ((b"ab", b""), (b"a", b"b"), (b"", b"ab")):
        (tmp_path / "a").write_bytes(first)
        (tmp_path / "b").write_bytes(second)
        revisions.add(FileSource(tmp_path).read().revision)
    assert len(revisions) == 3


def test_files_that_come_change_and_go_are_noticed(watching: Watching, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"2")
    _, heard = watching(tmp_path)
    first = heard.parts(a=b"1", b=b"2")
    (tmp_path / "c").write_bytes(b"3")
    assert heard.parts(a=b"1", b=b"2", c=b"3").revision != first.revision
    (tmp_path / "b").write_bytes(b"changed in place")
    heard.parts(a=b"1", b=b"changed in place", c=b"3")
    (tmp_path / "new").write_bytes(b"by a rename")
    (tmp_path / "new").rename(tmp_path / "a")
    heard.parts(a=b"by a rename", b=b"changed in place", c=b"3")
    (tmp_path / "a").unlink()
    (tmp_path / "b").unlink()
    heard.parts(c=b"3")
    (tmp_path / "config").write_bytes(b"one name goes before all others")
    heard.parts(config=b"one name goes before all others")


def test_a_file_that_is_being_written_holds_back_all_of_them(
    watching: Watching, tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"2")
    _, heard = watching(tmp_path)
    with (tmp_path / "a").open("wb", buffering=0) as writer:
        writer.write(b"half")
        (tmp_path / "b").write_bytes(b"3")
        writer.write(b" and half")
    heard.parts(a=b"half and half", b=b"3")
    assert [len(e.parts) for e in heard.events if isinstance(e, Document)] == [2, 2]


def test_a_file_that_is_replaced_by_way_of_another_name_is_not_left_out(
    watching: Watching, tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"2")
    _, heard = watching(tmp_path)
    (tmp_path / "b").rename(tmp_path / ".b~")
    (tmp_path / ".b.new").write_bytes(b"3")
    (tmp_path / ".b.new").rename(tmp_path / "b")
    heard.parts(a=b"1", b=b"3")
    assert len(heard.events) == 2


def test_a_part_that_is_a_link_to_nothing_is_not_left_out(
    watching: Watching, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "c").symlink_to("missing/c")
    _, heard = watching(tmp_path)
    heard.failure("c is a symbolic link to")
    (tmp_path / "missing").mkdir()
    (tmp_path / "missing" / "c").write_bytes(b"c")
    heard.parts(a=b"a", b=b"b", c=b"c")


def test_a_mounted_configmap_of_several_keys_changes_in_one_step(
    watching: Watching, tmp_path: Path
) -> None:
    mount = tmp_path / "volume"
    # Keys that come and go as well: their links lag behind the swap of ..data.
    states = [
        {key: f"{number}".encode() for key in keys}
        for number, keys in enumerate(["ab", "abc", "bc", "abcd", "ad"] * 5)
    ]
    volume(mount, "..0", states[0])
    _, heard = watching(mount)
    heard.parts(**states[0])
    for number, state in enumerate(states[1:], start=1):
        volume(mount, f"..{number}", state)
        heard.parts(**state)
    documents = [event for event in heard.events if isinstance(event, Document)]
    assert heard.events == documents
    seen = [{part.content for part in document.parts} for document in documents]
    assert seen == [{f"{number}".encode()} for number in range(len(states))]


def test_the_swap_of_a_volume_counts_and_not_the_links_of_its_keys(
    watching: Watching, tmp_path: Path
) -> None:
    mount = tmp_path / "volume"
    volume(mount, "..1", {"a": b"1", "b": b"1"})
    _, heard = watching(mount)
    heard.parts(a=b"1", b=b"1")
    (mount / "..2").mkdir()
    (mount / "..2/b").write_bytes(b"2")
    (mount / "..2/c").write_bytes(b"2")
    (mount / "..data_tmp").symlink_to("..2")
    (mount / "..data_tmp").rename(mount / "..data")
    # The link of `a` is still there, that of `c` not yet.
    heard.parts(b=b"2", c=b"2")


def test_a_thousand_files_are_followed(watching: Watching, tmp_path: Path) -> None:
    for number in range(1000):
        (tmp_path / f"part{number:03}").write_bytes(b"%d" % number)
    _, heard = watching(tmp_path)
    heard.wait(lambda events: isinstance(events[-1], Document) and len(events[-1].parts) == 1000)
    (tmp_path / "part500").write_bytes(b"changed")
    heard.wait(
        lambda events: (
            isinstance(events[-1], Document) and events[-1].parts[500].content == b"changed"
        )
    )


def test_files_that_are_too_large_together_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file, "MAX_BYTES", 10)
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"123456")
    with pytest.raises(SourceError, match="together"):
        FileSource(tmp_path).read()


# What cannot be read


def test_a_loop_of_links_is_a_failure_with_a_remedy(watching: Watching, tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    _, heard = watching(loop)
    assert "leads back to itself" in str(heard.failure("symbolic links").error)
    loop.unlink()
    loop.write_bytes(b"file")
    heard.content(b"file")


def test_something_that_is_no_file_is_a_failure(watching: Watching, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    _, heard = watching(tmp_path / "fifo")
    heard.failure("not a regular file")


def test_a_directory_where_the_document_should_be_is_a_failure(
    watching: Watching, tmp_path: Path
) -> None:
    (tmp_path / "config").mkdir()
    _, heard = watching(tmp_path)
    heard.failure("not a regular file")


def test_a_file_that_is_too_large_is_a_failure(watching: Watching, path: Path) -> None:
    os.truncate(path, settled.MAX_BYTES + 1)
    _, heard = watching(path)
    heard.failure("larger than 64 MiB")
    path.write_bytes(b"small")
    heard.content(b"small")


def test_an_error_of_the_disk_is_a_failure_and_not_an_absent_document(
    watching: Watching, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, heard = watching(path)

    def broken(descriptor: int, size: int, name: str) -> bytes:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(settled, "_read", broken)
        source.refresh()
        failed = heard.failure("Input/output error")
        assert failed.error.remedy is not None
    source.refresh()
    heard.content(b"first")


# The end


def test_stop_leaves_no_thread_and_no_descriptor_and_ends_deliveries(path: Path) -> None:
    FileSource(path).read()
    threads = set(threading.enumerate())
    descriptors = set(os.listdir("/proc/self/fd"))
    source, heard = FileSource(path), Heard()
    source.start(heard)
    path.write_bytes(b"second")
    heard.content(b"second")
    source.stop()
    source.stop()
    path.write_bytes(b"third")
    source.refresh()
    assert heard.contents == [b"first", b"second"]
    for thread in set(threading.enumerate()) - threads:
        thread.join(20)
    assert set(threading.enumerate()) <= threads
    assert set(os.listdir("/proc/self/fd")) == descriptors


def test_stop_without_start_is_harmless(path: Path) -> None:
    FileSource(path).stop()


def test_a_source_that_is_started_twice_says_so(watching: Watching, path: Path) -> None:
    source, heard = watching(path)
    with pytest.raises(RuntimeError, match="once"):
        source.start(heard)


def test_a_failing_sink_does_not_end_the_watch(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    heard = Heard()

    def sink(event: Document | SourceFailed) -> None:
        heard(event)
        if isinstance(event, Document) and content_of(event) == b"second":
            raise ValueError("a bug elsewhere")

    source = FileSource(path)
    source.start(sink)
    try:
        path.write_bytes(b"second")
        # Not as the newest: what the sink raises is told after it.
        heard.wait(lambda _: b"second" in heard.contents)
        path.write_bytes(b"third")
        heard.content(b"third")
    finally:
        source.stop()
    traces = [getattr(record, "fields", {}).get("trace", "") for record in caplog.records]
    assert any("test_file.py" in trace and trace.endswith("ValueError") for trace in traces)
    assert "a bug elsewhere" not in str(traces)


def test_a_watch_whose_reading_fails_is_told_and_goes_on(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard()
    source = FileSource(path)
    source.start(heard)
    read, failing = os.read, threading.Event()

    def failing_once(descriptor: int, count: int) -> bytes:
        if threading.current_thread().name == "file-watch" and not failing.is_set():
            failing.set()
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(descriptor, count)

    monkeypatch.setattr(os, "read", failing_once)
    try:
        path.write_bytes(b"second")
        heard.content(b"second")
        assert failing.is_set()
        path.write_bytes(b"third")
        heard.content(b"third")
    finally:
        source.stop()


def test_errors_of_read_are_source_errors(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(SourceError, match="not a regular file"):
        FileSource(tmp_path / "fifo").read()
