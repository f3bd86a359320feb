"""Which files a path means now, and every directory entry that decides it.

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
from collections.abc import Collection
from typing import NamedTuple

from ipmasq_agent.errors import SourceError, SourceUnavailable

# As the kernel: include/linux/namei.h, MAXSYMLINKS.
MAX_LINKS = 40
# The keys that ConfigMaps for this agent have, in the order of preference.
KEYS = ("config", "ip-masq-agent")
# In place of a name: all files of the directory, all keys of the ConfigMap.
EVERY = "*"


PathStep = tuple[str, int, int, str | None]
"""A directory on the way, with no symbolic link in its path; its st_dev and st_ino, which tell
it from a replacement; and the entry in it that decides where the way goes on, None for any."""


class FoundFile(NamedTuple):
    """A regular file that was found.

    Attributes:
        shown: its path as a user would write it.
        path: its path with no symbolic link in it.
        identity: its st_dev and st_ino, which tell it from a replacement.
    """

    shown: str
    path: str
    identity: tuple[int, int]


class Location(NamedTuple):
    """Where a path leads at one moment.

    Attributes:
        steps: what to watch; a change of any of these entries may change the location.
        shown: the document's path as a user would write it.
        files: the files that make up the document, in the order in which they are merged.
        error: why nothing can be said about the document, or None. With no files either
            the document does not exist.
    """

    steps: tuple[PathStep, ...]
    shown: str
    files: tuple[FoundFile, ...] = ()
    error: SourceError | None = None


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
    ``ip-masq-agent``, else all regular files, in the order of their names; names that start
    with a dot are kubelet's own and do not count. ``DIRECTORY/*`` means all files of it,
    whatever their names.
    """
    every = os.path.basename(path) == EVERY
    # As a dict: the steps of a thousand files in one directory are nearly all the same.
    steps: dict[PathStep, None] = {}
    try:
        start = os.path.join(os.getcwd(), os.path.dirname(path) if every else path)
        end, links = _walk("/", start, steps)
        if end is None or not os.path.isdir(end):
            if end is not None and every:
                raise SourceError(
                    f"{os.path.dirname(path)} is not a directory", remedy="leave the /* out"
                )
            file = _ending(path, end, links, steps)
            return Location(tuple(steps), path, (file,) if file else ())
        shown = os.path.dirname(path) if every else path
        files = []
        end = _enter(end, steps)
        for name in _choose(end, every=every):
            found, links = _walk(end, name, steps)
            file = _ending(os.path.join(shown, name), found, links, steps)
            if file is not None:
                files.append(file)
        single = len(files) == 1 and not every
        return Location(tuple(steps), files[0].shown if single else path, tuple(files))
    except SourceError as error:
        return Location(tuple(steps), path, error=error)
    except FileNotFoundError:
        # It went while we looked: as good as not there, and the steps tell if it comes back.
        return Location(tuple(steps), path)
    except OSError as cause:
        return Location(tuple(steps), path, error=unreadable(path, cause))


def _enter(directory: str, steps: dict[PathStep, None]) -> str:
    """Return where the files of a directory are: in a volume of kubelet's, behind ``..data``.

    Kubelet swaps that link first and adds and removes the links of single keys after it
    (pkg/volume/util/atomic_writer.go), so only what is behind it is one state of them all.
    """
    here = os.stat(directory)
    steps[directory, here.st_dev, here.st_ino, None] = None
    if not os.path.islink(os.path.join(directory, "..data")):
        return directory
    data, _ = _walk(directory, "..data", steps)
    if data is None or not os.path.isdir(data):
        return directory
    here = os.stat(data)
    steps[data, here.st_dev, here.st_ino, None] = None
    return data


def _ending(
    shown: str, end: str | None, links: int, steps: Collection[PathStep]
) -> FoundFile | None:
    """Say what a walk has come to: a file, or nothing.

    Raises:
        SourceError: it is no document.
    """
    if end is not None:
        status = os.lstat(end)
        if stat.S_ISREG(status.st_mode):
            return FoundFile(shown, end, (status.st_dev, status.st_ino))
        raise SourceError(
            f"{shown} is not a regular file", remedy="name a file, or a directory that holds one"
        )
    if not links:
        return None
    # A link to nothing is somebody's unfinished work (kubelet's, a mount that is to come),
    # whereas a document that was taken away takes its link along.
    directory, _, _, entry = list(steps)[-1]
    missing = os.path.join(directory, entry or "")
    raise SourceUnavailable(
        f"{shown} is a symbolic link to {missing}, which does not exist",
        remedy="create it, or remove the link to have the defaults",
    )


def _walk(here: str, path: str, steps: dict[PathStep, None]) -> tuple[str | None, int]:
    """Follow ``path`` from ``here`` to its end, adding a step for each directory entered.

    Returns:
        The end with no link in it, or None where the way ends early; and the number of
        symbolic links that were followed.

    Raises:
        OSError: a directory may not be entered, or there are too many links.
    """
    status = os.stat(here)
    pending = [part for part in reversed(path.split("/")) if part not in ("", ".")]
    links = 0
    while pending:
        part = pending.pop()
        if part == "..":
            here = os.path.dirname(here)
            status = os.stat(here)
            continue
        steps[here, status.st_dev, status.st_ino, part] = None
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


def _choose(directory: str, *, every: bool) -> list[str]:
    """Return the names of the files in a directory that make up the document, in order."""
    with os.scandir(directory) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    names = {entry.name for entry in visible}
    if not every:
        for key in KEYS:
            if key in names:
                return [key]
    files = [entry for entry in visible if entry.is_file()]
    if every or len(files) > 1:
        # A link to nothing is a part that is missing, not a part that nobody wants.
        files += [e for e in visible if e.is_symlink() and not os.path.exists(e.path)]
    return sorted(entry.name for entry in files)
