"""Reading a file only when nobody is in the middle of writing it.

A program that truncates a file and then writes it leaves it empty for a moment, and to
this agent an empty document has a meaning of its own. Whether somebody has the file open
for writing is known to the kernel alone, and it tells: a read lease (fcntl(2), F_SETLEASE)
is refused with EAGAIN as long as there is a writer, whichever path or namespace it came by
and however long ago. While we hold the lease, whoever wants to write waits in open(2) or
truncate(2), so what we read is one state of the file. It is held for one read, well below
a millisecond, and the kernel would take it away after /proc/sys/fs/lease-break-time.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat

from ipmasq_agent.errors import SourceError
from ipmasq_agent.sources.location import unreadable

# The API server takes 1 MiB (1.5 MiB in etcd); a file may be larger, within reason.
MAX_BYTES = 64 << 20


class BeingWritten(Exception):
    """A file is open for writing, or changed while we read it: look again later.

    Whoever knows what users call it passes it on as the text.
    """


def read_settled(path: str) -> tuple[bytes | None, bool]:
    """Read a regular file as a whole, between two writers.

    Returns:
        Its bytes, or None where it is no longer there; and whether the kernel vouches that
        nobody was writing. Where it does not (file systems without leases, files of other users
        without CAP_LEASE), who asks has to know from inotify that the last writer has closed it.

    Raises:
        BeingWritten: somebody has it open for writing.
        SourceError: it may not be read, or is larger than ``MAX_BYTES``.
    """
    try:
        # O_NONBLOCK: should the file have become a FIFO meanwhile, nobody hangs.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except (FileNotFoundError, NotADirectoryError):
        return None, True
    except OSError as cause:
        raise unreadable(path, cause) from cause
    try:
        # Closing the descriptor gives the lease back.
        leased = take_lease(descriptor)
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            raise SourceError(f"{path} is not a regular file", remedy="name a file")
        content = _read(descriptor, before.st_size, path)
        after = os.fstat(descriptor)
    except OSError as cause:
        raise unreadable(path, cause) from cause
    finally:
        os.close(descriptor)
    if not leased and _stamp(before) != _stamp(after):
        raise BeingWritten
    return content, leased


def take_lease(descriptor: int) -> bool:
    """Take a read lease, and return whether this file can have one.

    Raises:
        BeingWritten: a writer has the file open.
    """
    try:
        # A writer that comes while we hold it makes the kernel send us a signal, and the
        # default, SIGIO, ends the process. Nothing needs to be done on it: we are about
        # to close. SIGURG is ignored unless somebody asks for it (signal(7)).
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as cause:
        if cause.errno == errno.EAGAIN:
            raise BeingWritten from cause
        if cause.errno in (errno.EACCES, errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP):
            return False
        raise
    return True


def _read(descriptor: int, size: int, path: str) -> bytes:
    """Read to the end, up to ``MAX_BYTES``."""
    if size <= MAX_BYTES:
        parts: list[bytes] = []
        total = 0
        while total <= MAX_BYTES:
            part = os.read(descriptor, size - total if total < size else 65536)
            if not part:
                return b"".join(parts)
            parts.append(part)
            total += len(part)
    raise SourceError(
        f"{path} is larger than {MAX_BYTES >> 20} MiB",
        remedy="a document of 100,000 CIDRs takes 2 MiB; is this the right file?",
    )


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns
