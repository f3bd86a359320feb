"""A document in a file, or in the files of a directory as a mounted ConfigMap is one.

Changes are noticed through inotify and delivered when they are complete: on the close of
the last writer or on a rename, never in the middle of a write. Without a change nothing
runs; only a file that somebody has open for writing is looked at again until it is closed.
"""

from __future__ import annotations

import os
import select
import threading
import time
from pathlib import Path

from ipmasq_agent.errors import AgentError, SourceError, SourceUnavailable
from ipmasq_agent.host.threads import Guarded, caught
from ipmasq_agent.sources import Document, Part, Sink, SourceFailed, revision_of
from ipmasq_agent.sources.location import Location, locate
from ipmasq_agent.sources.settled import MAX_BYTES, BeingWritten, read_settled
from ipmasq_agent.sources.watch import PathWatch

# Editors replace a file by moving the old one away first: seconds for which a document
# that was there is given time to come back before it counts as removed.
GRACE = 0.1
# Seconds after which a file that stays open for writing is worth telling about.
STUCK = 5.0
# Seconds that `read` waits for writers.
PATIENCE = 2.0
# Seconds between looks at what cannot be watched.
POLL = 5.0
# The kernel reports a close before it takes the writer off its count (fs/file_table.c,
# __fput), so the lease may be refused for a moment more: look again after this, and then
# after twice as long each time, up to STUCK.
RECHECK = 0.004


class FileSource:
    """Implements ``Source`` for a path on this machine.

    The path may not exist yet, be a symbolic link at any place, or name a directory; which
    of its files are meant then, ``locate`` says.

    Where inotify's limits keep changes from being seen, the file is read again every few
    seconds, which each document's caveat says, until it can be watched.
    """

    cheap = True  # it is read at each resync, for file systems that tell no changes
    heard = None

    def __init__(self, path: Path | str) -> None:
        self.name = self._path = os.fspath(path)
        # Reentrant, because a sink may call refresh.
        self._lock = threading.RLock()
        self._sink: Sink | None = None
        self._watch: PathWatch | None = None
        self._thread = Guarded(self._run, "file-watch", self._interrupted)
        self._wake: int | None = None
        # When to look again without an event, and since when there is something to see.
        self._due: tuple[float, float] | None = None
        # What the sink was told last, to tell a change from a repetition.
        self._told: tuple[object, ...] | None = None
        self._present: frozenset[str] = frozenset()
        self._refreshing = False
        self._vanished: float | None = None
        self._busy: float | None = None
        self._recheck = RECHECK

    def read(self) -> Document:
        """Return the document as it is now, waiting up to two seconds for its writers.

        Raises:
            SourceUnavailable: somebody keeps it open for writing, or it is a link to nothing.
            SourceError: it cannot be read, or it is not clear which file it is.
        """
        deadline = time.monotonic() + PATIENCE
        pause = RECHECK
        while True:
            location = locate(self._path)
            try:
                with self._lock:
                    parts = self._parts(location)
                if parts is not None:
                    return self._document(location, parts, time.monotonic())
            except BeingWritten as cause:
                if time.monotonic() > deadline:
                    raise _still_open(str(cause)) from cause
            time.sleep(pause)
            pause = min(pause * 2, 0.1)

    def start(self, sink: Sink) -> None:
        """Watch, then read, then deliver the first state before returning.

        If somebody is writing the file at that moment, the first state comes later.
        """
        with self._lock:
            if self._sink is not None:
                raise RuntimeError("a source can be started once")
            self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._sink = sink
            self._watch = PathWatch(self._path)
            self._look_or_tell(time.monotonic())
        self._thread.start()

    def refresh(self) -> None:
        """Read again now and deliver, or deliver once the writers are done."""
        with self._lock:
            if self._watch is None or self._wake is None:
                return
            self._refreshing = True
            self._look_or_tell(time.monotonic())
            os.eventfd_write(self._wake, 1)  # what to wait for may be another

    def stop(self) -> None:
        """End the watch and its thread; not to be called by the sink.

        Nothing is delivered after it returns.
        """
        with self._lock:
            watch, self._watch = self._watch, None
            if watch is None or self._wake is None:
                return
            os.eventfd_write(self._wake, 1)
        self._thread.stop(1)
        if not self._thread.alive:
            watch.close()
            os.close(self._wake)

    # In the thread

    def _run(self) -> None:
        while (watch := self._watch) is not None:
            assert self._wake is not None
            poll = select.poll()
            poll.register(self._wake, select.POLLIN)
            with self._lock:
                watch.register(poll)
                due = self._due
            # Rounded up: to wake a fraction of a millisecond early is to go round once more.
            left = None if due is None else max(0.0, due[0] - time.monotonic()) * 1000 + 1
            if any(descriptor == self._wake for descriptor, _ in poll.poll(left)):
                os.eventfd_read(self._wake)
            now = time.monotonic()
            with self._lock:
                if watch.changed():
                    self._recheck = RECHECK
                    self._look_or_tell(now)
                elif self._due is not None and self._due[0] <= now:
                    self._look_or_tell(self._due[1])

    def _interrupted(self, error: AgentError) -> None:
        with self._lock:
            self._tell(None, error)
            self._look_or_tell(time.monotonic())

    # Everything below runs with the lock held, in whichever thread had a reason to look.

    def _look_or_tell(self, noticed: float) -> None:
        """Look; what fails unexpectedly is told, and looked at again soon."""
        try:
            self._look(noticed)
        except Exception as cause:
            self._tell(None, caught(cause, f"reading {self._path}", self._thread.name))
            self._look_later(STUCK, noticed)

    def _look(self, noticed: float) -> None:
        """Find out what the document is, and deliver it if that is news."""
        if self._watch is None:
            return
        self._due = None
        location = self._watch.follow()
        if self._watch.error is not None:
            self._look_later(POLL, time.monotonic() + POLL)
        if self._may_come_back(location, noticed):
            return
        try:
            parts = self._parts(location)
            if parts is None:
                self._look_later(RECHECK, noticed)
                return
        except BeingWritten as cause:
            self._wait_for_close(str(cause), noticed)
            return
        except SourceError as error:
            self._busy = None
            self._tell(None, error)
            return
        self._busy = None
        self._tell(self._document(location, parts, noticed))

    def _parts(self, location: Location) -> tuple[Part, ...] | None:
        """Read what is at ``location``: each file as a whole, between two of its writers.

        Returns:
            None where a file was removed after it was located: ask anew where the path leads.

        Raises:
            BeingWritten: look again when the writers are done.
            SourceError: it cannot be read.
        """
        if location.error is not None:
            raise location.error
        parts = []
        for file in location.files:
            try:
                content, leased = read_settled(file.path)
            except BeingWritten as cause:
                raise BeingWritten(file.shown) from cause
            if self._watch is not None:
                if leased:
                    self._watch.modified.discard(file.identity)
                elif file.identity in self._watch.modified:
                    raise BeingWritten(file.shown)
            if content is None:
                return None
            parts.append(Part(file.shown, content))
        if sum(len(part.content) for part in parts) > MAX_BYTES:
            raise SourceError(
                f"the files of {location.shown} are larger than {MAX_BYTES >> 20} MiB together",
                remedy="a document of 100,000 CIDRs takes 2 MiB; are these the right files?",
            )
        return tuple(parts)

    def _document(self, location: Location, parts: tuple[Part, ...], noticed: float) -> Document:
        blind = self._watch.error if self._watch is not None else None
        empty = not parts and os.path.isdir(location.shown.removesuffix("/*"))
        return Document(
            location.shown,
            parts,
            revision_of(parts),
            noticed,
            (f"{location.shown} exists and holds no file",) if empty else (),
            f"{self._path} is looked at every {POLL:g} s: {blind}" if blind else None,
        )

    def _may_come_back(self, location: Location, noticed: float) -> bool:
        """Wait a little before a file that was there counts as removed."""
        gone = self._present - {file.shown for file in location.files}
        # A link to nothing is vague; any other error is certain.
        if not gone or not isinstance(location.error, SourceUnavailable | None):
            self._vanished = None
            return False
        if self._vanished is None:
            self._vanished = noticed
        left = self._vanished + GRACE - time.monotonic()
        if left <= 0:
            return False
        self._look_later(left, noticed)
        return True

    def _wait_for_close(self, path: str, noticed: float) -> None:
        """Keep quiet until the writers are done, and tell if they take long."""
        now = time.monotonic()
        if self._busy is None:
            self._busy = now
        left = self._busy + STUCK - now
        if left <= 0:
            self._tell(None, _still_open(path))
        delay = self._recheck if left <= 0 else min(self._recheck, left)
        self._recheck *= 2
        if delay < STUCK:
            self._look_later(delay, noticed)

    def _tell(self, document: Document | None, error: AgentError | None = None) -> None:
        """Deliver, unless the sink knows all of it and nobody has asked."""
        outcome = (
            document.name if document else None,
            document.says if document else None,
            str(error) if error else document and document.caveat,
        )
        if outcome == self._told and not self._refreshing:
            return
        self._told, self._refreshing = outcome, False
        if self._sink is None:
            return
        if document is not None:
            self._present = frozenset(part.name for part in document.parts)
            self._sink(document)
        if error is not None:
            self._sink(SourceFailed(self._path, error))

    def _look_later(self, delay: float, noticed: float) -> None:
        self._due = time.monotonic() + delay, noticed


def _still_open(path: str) -> SourceUnavailable:
    return SourceUnavailable(
        f"{path} is open for writing, so it may be half written",
        remedy=f"see who has it open with `fuser -v {path}`, or replace it by a rename",
    )
