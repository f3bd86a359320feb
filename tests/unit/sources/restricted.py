"""What FileSource does as a process that may not do everything.

Runs in a process of its own, since limits and users are a matter of processes:
``python -m tests.unit.sources.restricted CASE PATH``, and exits with 0 if all is well.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from ipmasq_agent.errors import SourceError
from ipmasq_agent.sources import Document, SourceFailed, file, settled
from ipmasq_agent.sources.file import FileSource
from tests.unit.sources.heard import Heard

# Limits of a user namespace (namespaces(7)), which its own root may lower.
LIMITS = Path("/proc/sys/user")
NOBODY = 65534


def limit(name: str, path: Path) -> None:
    """The limit is in the way at first, and is raised later."""
    (LIMITS / name).write_text("1" if "watches" in name else "0")
    file.POLL = 0.02
    source, heard = FileSource(path), Heard()
    source.start(heard)
    for content in (b"first", b"second"):
        path.write_bytes(content)
        told = str(heard.content(content).caveat)
        assert f"fs.inotify.{name.replace('inotify', 'user')}" in told, told
    # It is there, or not, whether anybody can watch it or not.
    path.unlink()
    assert heard.content(None).caveat
    path.write_bytes(b"third")
    heard.content(b"third")

    (LIMITS / name).write_text("1000")
    heard.wait(lambda events: isinstance(events[-1], Document) and events[-1].caveat is None)
    file.POLL = 3600
    path.write_bytes(b"fourth")
    heard.content(b"fourth")
    source.stop()
    assert not any(isinstance(event, SourceFailed) for event in heard.events), heard.events


def stranger(path: Path) -> None:
    """A file of another user: it can be read, and a lease on it is refused."""
    os.setuid(NOBODY)
    assert not settled.read_settled(str(path))[1]
    source, heard = FileSource(path), Heard()
    source.start(heard)
    heard.content(b"first")
    path.write_bytes(b"second")
    heard.content(b"second")
    # Without a lease only the event about the write tells that it is not yet complete.
    with path.open("wb", buffering=0) as writer:
        writer.write(b"thi")
        writer.write(b"rd")
    heard.content(b"third")
    source.stop()
    assert set(heard.contents) <= {b"first", b"second", b"third"}, heard.contents


def forbidden(path: Path) -> None:
    """A file that nobody may read, until its mode is changed."""
    path.chmod(0o600)
    os.seteuid(NOBODY)
    source, heard = FileSource(path), Heard()
    source.start(heard)
    error = heard.failure("Permission denied").error
    assert error.remedy is not None
    assert f"chmod a+r {path}" in error.remedy
    assert "uid 65534" in error.remedy
    os.seteuid(0)
    path.chmod(0o644)
    os.seteuid(NOBODY)
    heard.content(b"first")
    source.stop()


def locked_directory(path: Path) -> None:
    """A directory that nobody may enter is not a directory without a document."""
    path.parent.chmod(0o600)
    os.setuid(NOBODY)
    with pytest.raises(SourceError, match="Permission denied"):
        FileSource(path).read()


if __name__ == "__main__":
    case, target = sys.argv[1], Path(sys.argv[2])
    if case.startswith("max_inotify_"):
        limit(case, target)
    else:
        {"stranger": stranger, "forbidden": forbidden, "locked": locked_directory}[case](target)
