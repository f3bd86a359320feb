"""The C library of this process, for calls that Python has no name for."""

from __future__ import annotations

import ctypes
import os

libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int, path: str | None = None) -> int:
    """Return what a call gave.

    Raises:
        OSError: -1, of which errno tells the reason.
    """
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    return result
