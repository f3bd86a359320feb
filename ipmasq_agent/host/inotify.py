"""inotify(7): word of what happens to files and directories, read from one descriptor.

Three calls of libc, as the masks, the events and the errors are what matters here. watchdog's
observers start a thread for each watch, hold back half of a rename, tell neither that events
were lost nor that a file may not be watched, and a thread of theirs may end unnoticed.
"""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

from ipmasq_agent.libc import checked, libc

# include/uapi/linux/inotify.h
MODIFY, ATTRIB, CLOSE_WRITE = 0x2, 0x4, 0x8
MOVED_FROM, MOVED_TO, CREATE, DELETE = 0x40, 0x80, 0x100, 0x200
DELETE_SELF, MOVE_SELF = 0x400, 0x800
OVERFLOW, IGNORED = 0x4000, 0x8000
ONLYDIR, DONT_FOLLOW = 0x1000000, 0x2000000

_HEADER = struct.Struct("iIII")
_ROOM = 1 << 16


class InotifyEvent(NamedTuple):
    """What happened.

    Attributes:
        watch: the number that ``Inotify.add`` gave; -1 where events were lost (``OVERFLOW``).
        mask: one of the constants above, with flags.
        name: of the entry in a directory; empty for what is watched itself.
    """

    watch: int
    mask: int
    name: str


class Inotify:
    """One instance of inotify.

    Raises:
        OSError: EMFILE where the user has too many of them.
    """

    def __init__(self) -> None:
        self._descriptor = checked(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))

    def fileno(self) -> int:
        """Return the descriptor that becomes readable with the next event."""
        return self._descriptor

    def add(self, path: str, mask: int) -> int:
        """Watch a file or directory; who is watched already keeps its number.

        Raises:
            OSError: it is not there, may not be read, or (ENOSPC) watches are used up.
        """
        encoded = os.fsencode(path)
        return checked(libc.inotify_add_watch(self._descriptor, encoded, mask), path)

    def remove(self, watch: int) -> None:
        """Watch something no more; it may be gone already."""
        libc.inotify_rm_watch(self._descriptor, watch)

    def read(self) -> list[InotifyEvent]:
        """Return what happened, without waiting for more."""
        try:
            data = os.read(self._descriptor, _ROOM)
        except BlockingIOError:
            return []
        events, position = [], 0
        while position < len(data):
            watch, mask, _, length = _HEADER.unpack_from(data, position)
            position += _HEADER.size + length
            name = os.fsdecode(data[position - length : position].rstrip(b"\0"))
            events.append(InotifyEvent(watch, mask, name))
        return events

    def close(self) -> None:
        """End all watches."""
        os.close(self._descriptor)
