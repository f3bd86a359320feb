"""Values kept on the node, for whoever runs here next: written whole, taken only from root.

A value is taken back if the directory and the file are real ones that nobody but root or us
could have written, if it was kept for the same purpose, and if it is whole. /run, where the
directory is by default, is empty after a boot: what is kept there is never older.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from typing import Any

from ipmasq_agent.errors import MALFORMED, SourceError

# Documents of several ConfigMaps of 1 MiB each, in base64.
MAX_BYTES = 32 << 20
_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_OPEN = os.O_NOFOLLOW | os.O_CLOEXEC
_AWAY = "choose another place with --state-dir, or none with an empty one"


class StateDir:
    """A directory of values.

    Args:
        path: of the directory, which is made (0700) where there is none.
        purpose: what the values are for: those of another purpose are not found.
    """

    def __init__(self, path: str, purpose: str) -> None:
        self._path = path
        self._purpose = purpose
        self._suffix = hashlib.sha256(purpose.encode(errors="surrogateescape")).hexdigest()[:12]

    def write(self, kind: str, value: Any) -> None:
        """Keep a value, in place of the one of its kind before: all of it, or nothing.

        Raises:
            SourceError: it cannot be kept, nor is the one before.
        """
        name = self._name(kind)
        with self._directory(make=True) as directory:
            body = json.dumps({"purpose": self._purpose, "kind": kind, "value": value}).encode()
            content = hashlib.sha256(body).hexdigest().encode() + b"\n" + body
            new = f".{name}.new"
            with contextlib.suppress(FileNotFoundError):
                os.unlink(new, dir_fd=directory)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _OPEN
            try:
                if len(content) > MAX_BYTES:
                    raise self._refused(name, f"would be larger than {MAX_BYTES >> 20} MiB")
                with open(os.open(new, flags, 0o600, dir_fd=directory), "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(new, name, src_dir_fd=directory, dst_dir_fd=directory)
            except (OSError, SourceError):
                # Who starts next would undo what came since; without any value nobody does.
                for left in (new, name):
                    with contextlib.suppress(OSError):
                        os.unlink(left, dir_fd=directory)
                raise

    def read(self, kind: str) -> Any:
        """Return the value of a kind; None where none was kept.

        Raises:
            SourceError: there is one that must not be taken.
        """
        name = self._name(kind)
        try:
            with self._directory(make=False) as directory:
                # O_NONBLOCK: should it be a FIFO, nobody hangs.
                flags = os.O_RDONLY | os.O_NONBLOCK | _OPEN
                with open(os.open(name, flags, dir_fd=directory), "rb") as file:
                    status = os.fstat(file.fileno())
                    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
                        raise self._refused(name, "is not a file of its own")
                    self._only_ours(name, status)
                    content = file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            return None
        if len(content) > MAX_BYTES:
            raise self._refused(name, f"is larger than {MAX_BYTES >> 20} MiB")
        digest, _, body = content.partition(b"\n")
        if hashlib.sha256(body).hexdigest().encode() != digest:
            raise self._refused(name, "is not whole")
        try:
            kept = json.loads(body)
            found, value = (kept["purpose"], kept["kind"]), kept["value"]
        except MALFORMED as cause:
            raise self._refused(name, "is not of this form") from cause
        if found != (self._purpose, kind):
            raise self._refused(name, "was kept for another source")
        return value

    def _name(self, kind: str) -> str:
        return f"{kind}-{self._suffix}"

    @contextlib.contextmanager
    def _directory(self, *, make: bool) -> Iterator[int]:
        try:
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(self._path, 0o700)
            directory = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | _OPEN)
            try:
                self._only_ours("", os.fstat(directory))
                yield directory
            finally:
                os.close(directory)
        except FileNotFoundError:
            if not make:
                raise
            raise self._refused("", "cannot be made: the directory above it is missing") from None
        except OSError as cause:
            reason = os.strerror(cause.errno) if cause.errno else type(cause).__name__
            raise self._refused("", f"cannot be used: {reason}") from cause

    def _only_ours(self, name: str, status: os.stat_result) -> None:
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & _OTHERS:
            raise self._refused(name, "could have been written by others than root")

    def _refused(self, name: str, why: str) -> SourceError:
        return SourceError(f"{os.path.join(self._path, name).rstrip('/')} {why}", remedy=_AWAY)
