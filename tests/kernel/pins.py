"""A bpf file system for one test, which ends with it, however it ends.

It is mounted nowhere: whoever needs it goes through the descriptor of this process, and
when that is closed the kernel lets go of all that was pinned.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

from ipmasq_agent.planes.placement import Placement

PINS = "IPMASQ_BPF_PINS"
# arch/x86/entry/syscalls and the generic table have the same numbers for these.
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_CREATE = 6  # FSCONFIG_CMD_CREATE

_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def bpf_file_system() -> Iterator[Path]:
    """Yield the path of an empty bpf file system, good in this process and in its children."""
    opened = _call(_FSOPEN, ctypes.c_char_p(b"bpf"), 0)
    try:
        _call(_FSCONFIG, opened, _CREATE, None, None, 0)
        mounted = _call(_FSMOUNT, opened, 0, 0)
    finally:
        os.close(opened)
    try:
        yield Path(f"/proc/{os.getpid()}/fd/{mounted}")
    finally:
        os.close(mounted)


def placement() -> Placement:
    """Return where things of ours are, with pins on the file system of this test."""
    return Placement(pins=os.environ[PINS])


def _call(number: int, *arguments: object) -> int:
    result = int(_libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
