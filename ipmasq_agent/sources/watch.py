"""inotify watches on whatever decides where a path leads."""

from __future__ import annotations

import contextlib
import errno
import os
import select
from collections.abc import Iterable

from ipmasq_agent.errors import SourceError
from ipmasq_agent.host import inotify
from ipmasq_agent.host.inotify import Inotify, InotifyEvent
from ipmasq_agent.sources.location import FoundFile, Location, PathStep, locate

# In a directory: entries that come, go or are replaced; and the directory itself.
DIRECTORY = (
    inotify.CREATE
    | inotify.DELETE
    | inotify.MOVED_FROM
    | inotify.MOVED_TO
    | inotify.DELETE_SELF
    | inotify.MOVE_SELF
    | inotify.ATTRIB
    | inotify.ONLYDIR
    | inotify.DONT_FOLLOW
)
# On the file's inode, so that a writer is seen whichever path or mount it comes by.
FILE = inotify.MODIFY | inotify.CLOSE_WRITE | inotify.ATTRIB | inotify.DONT_FOLLOW

# A path that changes faster than it can be watched: events go on, and so do we later.
MAX_ROUNDS = 10


# What a set of watches depends on: the steps, and which files they lead to.
Watched = tuple[tuple[PathStep, ...], tuple[FoundFile, ...]]


class PathWatch:
    """Follows one path, for one thread at a time.

    Attributes:
        error: why changes would go unnoticed now, or None. The next ``follow`` tries anew.
        modified: the files (``FoundFile.identity``) that were seen to be written to and not
            to be closed since.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._inotify: Inotify | None = None
        self._directories: dict[int, set[str | None]] = {}
        self._files: dict[int, tuple[int, int]] = {}
        self._watched: Watched | None = None
        self.error: SourceError | None = None
        self.modified: set[tuple[int, int]] = set()

    def follow(self) -> Location:
        """Say where the path leads, with everything that decides it already watched.

        Of any later change of the answer ``changed`` tells, unless ``error`` says otherwise.
        """
        location = locate(self._path)
        self.error = None
        complete = True
        for _ in range(MAX_ROUNDS):
            wanted = (location.steps, location.files)
            if wanted == self._watched or not complete:
                break
            try:
                complete = self._watch(location)
                self._watched = wanted if complete else None
            except (FileNotFoundError, NotADirectoryError):
                self._watched = None
            except OSError as cause:
                self._watched = None
                self.error = _unwatchable(self._path, cause)
                break
            # What was replaced before its watch was there raises no event: look again.
            location = locate(self._path)
        return location

    def register(self, poll: select.poll) -> None:
        """Have a poll end with the next event, where anything is watched."""
        if self._inotify is not None:
            poll.register(self._inotify, select.POLLIN)

    def changed(self) -> bool:
        """Take in what has happened; whether the path may lead elsewhere or hold more."""
        events = self._inotify.read() if self._inotify is not None else ()
        return True in [self._concerns(event) for event in events]  # each of them is taken in

    def close(self) -> None:
        """End the watches."""
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None

    def _watch(self, location: Location) -> bool:
        """Put watches for ``location`` in place, then take the earlier ones away.

        Returns:
            False if we may not read a file: inotify wants what read(2) wants. Its
            directory reports the change of mode that would allow both.
        """
        if self._inotify is None:
            self._inotify = Inotify()
        before = self._directories.keys() | self._files.keys()
        directories: dict[int, set[str | None]] = {}
        files: dict[int, tuple[int, int]] = {}
        entries: dict[str, set[str | None]] = {}
        for directory, _, _, entry in location.steps:
            entries.setdefault(directory, set()).add(entry)
        try:
            for directory, wanted in entries.items():
                number = self._inotify.add(directory, DIRECTORY)
                directories.setdefault(number, set()).update(wanted)
            for file in location.files:
                with contextlib.suppress(PermissionError):
                    files[self._inotify.add(file.path, FILE)] = file.identity
        except OSError:
            self._remove((directories.keys() | files.keys()) - before)
            raise
        self._remove(before - directories.keys() - files.keys())
        # Of a file that was not watched until now, nothing is known.
        self.modified &= {file for number, file in files.items() if self._files.get(number) == file}
        self._directories, self._files = directories, files
        return set(files.values()) == {file.identity for file in location.files}

    def _remove(self, numbers: Iterable[int]) -> None:
        assert self._inotify is not None
        for number in numbers:
            self._inotify.remove(number)

    def _concerns(self, event: InotifyEvent) -> bool:
        """Take in an event; whether it may change anything."""
        if event.mask & inotify.OVERFLOW:
            self.modified.clear()
            return True
        file, names = self._files.get(event.watch), self._directories.get(event.watch)
        if event.mask & inotify.IGNORED:
            # The watch ended with its file or directory.
            self._files.pop(event.watch, None)
            self._directories.pop(event.watch, None)
            known = file is not None or names is not None
            if known:
                self._watched = None
            return known
        if file is not None:
            if event.mask & inotify.MODIFY:
                news = file not in self.modified
                self.modified.add(file)
                return news
            if event.mask & inotify.CLOSE_WRITE:
                self.modified.discard(file)
            return True
        # No name: the directory itself was removed, renamed or had its mode changed.
        return names is not None and (not event.name or event.name in names or None in names)


def _unwatchable(path: str, cause: OSError) -> SourceError:
    """Return what to tell a user about a path whose changes go unnoticed."""
    match cause.errno:
        case errno.ENOSPC:
            reason = "the limit of inotify watches is reached"
            remedy = "raise it, as with `sysctl -w fs.inotify.max_user_watches=524288`"
        case errno.EMFILE:
            reason = "the limit of inotify instances (or of open files) is reached"
            remedy = "raise it, as with `sysctl -w fs.inotify.max_user_instances=1024`"
        case errno.EACCES:
            reason = f"uid {os.geteuid()} may not read {cause.filename}"
            remedy = f"allow it, as with `chmod a+rx {cause.filename}`"
        case _:
            reason = str(cause)
            remedy = "put the document on a file system that has inotify"
    return SourceError(f"the kernel tells of none of its changes, as {reason}", remedy=remedy)
