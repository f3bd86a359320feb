"""A root file system for a guest: files of this machine, each where it is here.

An archive that the kernel unpacks into memory when it boots, in the format "newc" of
Documentation/driver-api/early-userspace/buffer-format.rst. Nobody is asked to mount or to
convert anything.
"""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path

_CONSOLE = (5, 1)


class Image:
    """Files, directories and links under their names here; what they lead to comes along."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._names: set[str] = set()
        self.directory("/")
        self.directory("/dev")
        # The kernel opens it for the first process, before anything is mounted.
        self._entry("/dev/console", stat.S_IFCHR | 0o600, device=_CONSOLE)

    def directory(self, name: str) -> None:
        """Make an empty directory."""
        self._entry(name, stat.S_IFDIR | 0o755)

    def write(self, name: str, content: bytes, mode: int = 0o755) -> None:
        """Make a file that is not of this machine."""
        self._above(Path(name))
        self._entry(name, stat.S_IFREG | mode, content)

    def link(self, name: str, target: str) -> None:
        """Make a symbolic link that is not of this machine."""
        self._entry(name, stat.S_IFLNK | 0o777, os.fsencode(target))

    def add(self, *paths: Path | str) -> None:
        """Take files of this machine, with the libraries that programs and libraries load."""
        for path in map(Path, paths):
            self._take(path)
            for needed in _libraries(path):
                self._take(needed)

    def tree(self, top: Path, leave_out: Iterable[str] = ()) -> None:
        """Take a directory with all below it.

        Args:
            top: a directory of this machine.
            leave_out: names of files and directories that stay behind.
        """
        skipped = frozenset(leave_out)
        for place, directories, files in os.walk(top):
            directories[:] = sorted(set(directories) - skipped)
            for name in sorted(set(files) - skipped):
                path = Path(place, name)
                if path.suffix == ".so":
                    self.add(path)
                else:
                    self._take(path)

    def archive(self) -> bytes:
        """Return the whole."""
        return b"".join([*self._parts, _packed("TRAILER!!!", 0)])

    def _take(self, path: Path) -> None:
        if str(path) in self._names:
            return
        self._above(path)
        found = path.lstat()
        if stat.S_ISLNK(found.st_mode):
            target = os.readlink(path)
            self._entry(str(path), found.st_mode, os.fsencode(target))
            self._take(Path(os.path.normpath(path.parent / target)))
        elif stat.S_ISDIR(found.st_mode):
            self._entry(str(path), found.st_mode)
        else:
            # Python takes compiled modules only where the source is of the time they name.
            self._entry(str(path), found.st_mode, path.read_bytes(), written=int(found.st_mtime))

    def _above(self, path: Path) -> None:
        for parent in reversed(path.parents):
            if parent.exists() or parent.is_symlink():
                self._take(parent)
            else:
                self.directory(str(parent))

    def _entry(
        self,
        name: str,
        mode: int,
        content: bytes = b"",
        *,
        written: int = 0,
        device: tuple[int, int] = (0, 0),
    ) -> None:
        if name not in self._names:
            self._names.add(name)
            self._parts.append(_packed(name.lstrip("/") or ".", mode, content, written, device))


def _packed(
    name: str,
    mode: int,
    content: bytes = b"",
    written: int = 0,
    device: tuple[int, int] = (0, 0),
) -> bytes:
    called = os.fsencode(name) + b"\0"
    # ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor,
    # namesize, check
    fields = (0, mode, 0, 0, 1, written, len(content), 0, 0, *device, len(called), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + called
    return _padded(head) + _padded(content)


def _padded(part: bytes) -> bytes:
    return part + bytes(-len(part) % 4)


@cache
def _libraries(path: Path) -> list[Path]:
    """Return what the dynamic linker would load for a program or a library."""
    if not path.is_file() or not path.read_bytes().startswith(b"\x7fELF"):
        return []
    done = subprocess.run(["ldd", path], capture_output=True, text=True, check=False)
    words = done.stdout.split()
    return [Path(word) for word in words if word.startswith("/")]
