"""inotify watches on whatever decides where a path leads.

Of watchdog, only its inotify layer is used. The observer above it runs a thread for each
watch and holds back renames for up to half a second to pair them (its
``InotifyMoveEventGrouper``), and a rename is how documents are replaced.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import threading
import time
from collections.abc import Callable

from watchdog.observers.inotify_c import (
    CallbackId,
    InotifyConstants,
    InotifyEvent,
    InotifyFD,
    Mask,
    WatchDescriptor,
)

from ipmasq_agent.errors import AgentError, SourceError
from ipmasq_agent.host.threads import Guarded
from ipmasq_agent.sources.location import Location, Place, Step, locate

# In a directory: entries that come, go or are replaced; and the directory itself.
DIRECTORY = Mask(
    InotifyConstants.IN_CREATE
    | InotifyConstants.IN_DELETE
    | InotifyConstants.IN_MOVED_FROM
    | InotifyConstants.IN_MOVED_TO
    | InotifyConstants.IN_DELETE_SELF
    | InotifyConstants.IN_MOVE_SELF
    | InotifyConstants.IN_ATTRIB
    | InotifyConstants.IN_ONLYDIR
    | InotifyConstants.IN_DONT_FOLLOW
)
# On the file's inode, so that a writer is seen whichever path or mount it comes by.
FILE = Mask(
    InotifyConstants.IN_MODIFY
    | InotifyConstants.IN_CLOSE_WRITE
    | InotifyConstants.IN_ATTRIB
    | InotifyConstants.IN_DONT_FOLLOW
)

# A path that changes faster than it can be watched: events go on, and so do we later.
MAX_ROUNDS = 10


# What a set of watches depends on: the steps, and which files they lead to.
Watched = tuple[tuple[Step, ...], tuple[Place, ...]]


class PathWatch:
    """Follows one path, and calls ``changed(noticed)`` when it may lead elsewhere or hold more.

    ``noticed`` is ``time.monotonic()`` when the event was read. ``failed`` is told when the
    thread fails, whose work is begun anew. The callback runs in the
    one thread of this object; an instance can be neither restarted nor shared. ``lock``
    is the owner's: it is held in the callback, and must be held to call ``follow``.

    Attributes:
        error: why changes would go unnoticed now, or None. The next ``follow`` tries anew.
        modified: the files (``Place.identity``) that were seen to be written to and not to
            be closed since.
    """

    def __init__(
        self,
        path: str,
        changed: Callable[[float], None],
        failed: Callable[[AgentError], None],
        lock: threading.RLock,
    ) -> None:
        self._lock = lock
        self._failed = failed
        self._reader: Guarded | None = None
        self._path = path
        self._changed = changed
        self._inotify: InotifyFD | None = None
        self._ids = itertools.count()
        self._names: dict[WatchDescriptor, set[str | None]] = {}
        self._held: list[tuple[WatchDescriptor, CallbackId]] = []
        self._watched: Watched | None = None
        self._files: dict[WatchDescriptor, tuple[int, int]] = {}
        self.error: SourceError | None = None
        self.modified: set[tuple[int, int]] = set()

    def follow(self) -> Location:
        """Say where the path leads, with everything that decides it already watched.

        Any later change of the answer is followed by a call of ``changed``, unless
        ``error`` says otherwise.
        """
        location = locate(self._path)
        self.error = None
        complete = True
        for _ in range(MAX_ROUNDS):
            wanted = (location.steps, location.places)
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

    def stop(self) -> None:
        """End the watches and the thread; safe to call twice. The lock must be free."""
        inotify, self._inotify = self._inotify, None
        reader, self._reader = self._reader, None
        if inotify is not None:
            inotify.stop()
        if reader is not None:
            reader.stop(1)

    def _watch(self, location: Location) -> bool:
        """Put watches for ``location`` in place, then take the earlier ones away.

        Returns:
            False if we may not read a file: inotify wants what read(2) wants. Its
            directory reports the change of mode that would allow both.
        """
        if self._inotify is None:
            self._inotify = InotifyFD()
            # Its run is ours to begin, and to begin anew.
            self._reader = Guarded(self._inotify.run, "file-watch", self._failed)
            self._reader.start()
        names: dict[WatchDescriptor, set[str | None]] = {}
        held: list[tuple[WatchDescriptor, CallbackId]] = []
        files: dict[WatchDescriptor, tuple[int, int]] = {}
        try:
            entries: dict[str, set[str | None]] = {}
            for step in location.steps:
                entries.setdefault(step.directory, set()).add(step.entry)
            for directory, wanted in entries.items():
                names.setdefault(self._add(directory, DIRECTORY, held), set()).update(wanted)
            for place in location.places:
                with contextlib.suppress(PermissionError):
                    files[self._add(place.file, FILE, held)] = place.identity
        except OSError:
            self._inotify.remove_callbacks(held)
            raise
        self._inotify.remove_callbacks(self._held)
        # Of a file that was not watched until now, nothing is known.
        self.modified &= {file for number, file in files.items() if self._files.get(number) == file}
        self._names, self._held, self._files = names, held, files
        return set(files.values()) == {place.identity for place in location.places}

    def _add(
        self, path: str, mask: Mask, held: list[tuple[WatchDescriptor, CallbackId]]
    ) -> WatchDescriptor:
        assert self._inotify is not None
        number = CallbackId(next(self._ids))
        descriptor = self._inotify.add_callback(os.fsencode(path), mask, self, number)
        if descriptor == -1:
            # watchdog passes over EACCES in silence.
            self._inotify.remove_callbacks([(descriptor, number)])
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        held.append((descriptor, number))
        return descriptor

    # What watchdog calls, in its thread.

    def on_event(self, event: InotifyEvent) -> None:
        """Pass on what concerns the path."""
        noticed = time.monotonic()
        with self._lock:
            file = self._files.get(event.wd)
            if file is not None:
                if event.is_modify:
                    if file in self.modified:
                        return
                    self.modified.add(file)
                elif event.is_close_write:
                    self.modified.discard(file)
            else:
                names = self._names.get(event.wd, set())
                entry = os.fsdecode(event.name)
                # No name: the directory itself was removed, renamed or had its mode changed.
                if entry and entry not in names and None not in names:
                    return
            self._changed(noticed)

    def on_watch_deleted(self, wd: WatchDescriptor) -> None:
        """Forget a watch that ended with its file or directory, whose number may be reused."""
        with self._lock:
            if self._inotify is None or all(wd != held for held, _ in self._held):
                return
            self._held = [(held, number) for held, number in self._held if held != wd]
            self._watched = None
            self._changed(time.monotonic())

    def on_queue_overflow(self) -> None:
        """Look again, as the kernel has dropped events."""
        with self._lock:
            self.modified.clear()
            self._changed(time.monotonic())


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
    return SourceError(
        f"changes of {path} go unnoticed until the next resync: {reason}", remedy=remedy
    )
