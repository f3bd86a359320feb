"""Which file a path means now, and every directory entry that decides it.

A path is walked one component at a time, as the kernel does (path_resolution(7)), so that
each directory in which a rename, a new symbolic link or a removal would change the answer
is known and can be watched. This is what makes kubelet's volumes work: their files are
links to ``..data/KEY``, and ``..data`` is a link which is swapped in one rename.

Nothing is opened or read here but directories.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass

from ipmasq_agent.errors import SourceError, SourceUnavailable

# As the kernel: include/linux/namei.h, MAXSYMLINKS.
MAX_LINKS = 40
# The keys that ConfigMaps for this agent have, in the order of preference.
KEYS = ("config", "ip-masq-agent")


@dataclass(frozen=True, slots=True)
class Step:
    """A directory on the way, and the entry in it that decides where the way goes on.

    Attributes:
        directory: its path, with no symbolic link in it.
        device: its st_dev; with ``inode`` it tells a directory from its replacement.
        inode: its st_ino.
        entry: the name that matters in it, or None where any name does.
    """

    directory: str
    device: int
    inode: int
    entry: str | None


@dataclass(frozen=True, slots=True)
class Location:
    """Where a path leads at one moment.

    Attributes:
        steps: what to watch; a change of any of these entries may change the location.
        shown: the document's path as a user would write it.
        file: path of the regular file, with no symbolic link in it; None if there is none.
        identity: the file's st_dev and st_ino, which tell it from a replacement.
        error: why nothing can be said about the document, or None. With ``file`` also None
            the document does not exist.
    """

    steps: tuple[Step, ...]
    shown: str
    file: str | None = None
    identity: tuple[int, int] | None = None
    error: SourceError | None = None

    @property
    def gone(self) -> bool:
        """Whether the path leads to nothing: no such file, or a link to no such file."""
        return self.file is None and (
            self.error is None or isinstance(self.error, SourceUnavailable)
        )


def unreadable(path: str, cause: OSError) -> SourceError:
    """Return what to tell a user whose document the kernel refuses us."""
    match cause.errno:
        case errno.EACCES | errno.EPERM:
            remedy = (
                f"let uid {os.geteuid()} read it and enter every directory above it, "
                f"as `chmod a+r {path}` does"
            )
        case errno.ELOOP:
            remedy = "one of its symbolic links leads back to itself; replace it"
        case errno.ENAMETOOLONG:
            remedy = "use a shorter path"
        case _:
            remedy = "the kernel's log (dmesg) may say more about the disk or the mount"
    reason = os.strerror(cause.errno) if cause.errno else str(cause)
    return SourceError(f"{path} cannot be read: {reason}", remedy=remedy)


def locate(path: str) -> Location:
    """Find the document at ``path``: a file, or a directory that holds it.

    In a directory (a whole ConfigMap, mounted) the document is the entry ``config``, else
    ``ip-masq-agent``, else the only regular file; names that start with a dot are kubelet's
    own and do not count. A directory with several others is an error that names them.
    """
    steps: list[Step] = []
    try:
        end, links = _walk(os.path.join(os.getcwd(), path), steps)
        if end is None or not os.path.isdir(end):
            return _ending(path, end, links, steps)
        here = os.stat(end)
        steps.append(Step(end, here.st_dev, here.st_ino, None))
        name = _choose(end, path)
        if name is None:
            return Location(tuple(steps), path)
        end, links = _walk(os.path.join(end, name), steps)
        return _ending(os.path.join(path, name), end, links, steps)
    except SourceError as error:
        return Location(tuple(steps), path, error=error)
    except FileNotFoundError:
        # It went while we looked: as good as not there, and the steps tell if it comes back.
        return Location(tuple(steps), path)
    except OSError as cause:
        return Location(tuple(steps), path, error=unreadable(path, cause))


def _ending(shown: str, end: str | None, links: int, steps: Sequence[Step]) -> Location:
    """Say what a walk has come to: a file, nothing, or something that is no document."""
    if end is not None:
        status = os.lstat(end)
        if stat.S_ISREG(status.st_mode):
            return Location(tuple(steps), shown, end, (status.st_dev, status.st_ino))
        error = SourceError(
            f"{shown} is not a regular file", remedy="name a file, or a directory that holds one"
        )
        return Location(tuple(steps), shown, error=error)
    if not links:
        return Location(tuple(steps), shown)
    # A link to nothing is somebody's unfinished work (kubelet's, a mount that is to come),
    # whereas a document that was taken away takes its link along.
    missing = os.path.join(steps[-1].directory, steps[-1].entry or "")
    dangling = SourceUnavailable(
        f"{shown} is a symbolic link to {missing}, which does not exist",
        remedy="create it, or remove the link to have the defaults",
    )
    return Location(tuple(steps), shown, error=dangling)


def _walk(path: str, steps: list[Step]) -> tuple[str | None, int]:
    """Follow an absolute ``path`` to its end, adding a step for each directory entered.

    Returns:
        The end with no link in it, or None where the way ends early; and the number of
        symbolic links that were followed.

    Raises:
        OSError: a directory may not be entered, or there are too many links.
    """
    here, status = "/", os.stat("/")
    pending = [part for part in reversed(path.split("/")) if part not in ("", ".")]
    links = 0
    while pending:
        part = pending.pop()
        if part == "..":
            here = os.path.dirname(here)
            status = os.stat(here)
            continue
        steps.append(Step(here, status.st_dev, status.st_ino, part))
        following = os.path.join(here, part)
        try:
            found = os.lstat(following)
            if stat.S_ISLNK(found.st_mode):
                target = os.readlink(following)
        except (FileNotFoundError, NotADirectoryError):
            return None, links
        if stat.S_ISLNK(found.st_mode):
            links += 1
            if links > MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            if target.startswith("/"):
                here, status = "/", os.stat("/")
            pending.extend(each for each in reversed(target.split("/")) if each not in ("", "."))
        elif pending and not stat.S_ISDIR(found.st_mode):
            return None, links
        else:
            here, status = following, found
    return here, links


def _choose(directory: str, shown: str) -> str | None:
    """Return the name of the document in a directory, or None if it holds none.

    Raises:
        SourceError: several files could be meant.
    """
    with os.scandir(directory) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    names = {entry.name for entry in visible}
    for key in KEYS:
        if key in names:
            return key
    files = sorted(entry.name for entry in visible if entry.is_file())
    if len(files) > 1:
        raise SourceError(
            f"the directory {shown} holds several files ({', '.join(files)}), "
            f"and none is named {' or '.join(KEYS)}",
            remedy=f"name the file itself, as --config {os.path.join(shown, files[0])}",
        )
    return files[0] if files else None
