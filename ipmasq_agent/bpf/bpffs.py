"""bpf file systems, on which maps, programs and links are pinned."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

from ipmasq_agent.errors import HostError
from ipmasq_agent.libc import checked, libc

USUAL = Path("/sys/fs/bpf")
MOUNTS = Path("/proc/self/mounts")
_MAGIC = 0xCAFE4A11  # BPF_FS_MAGIC, include/uapi/linux/magic.h
_STATFS = 256  # more than any machine's struct statfs, which begins with f_type


def mounts() -> list[Path]:
    """Return where bpf file systems are mounted, the usual place first."""
    found = set()
    for line in MOUNTS.read_text(errors="surrogateescape").splitlines():
        _, place, kind, *_ = line.split(" ")
        if kind == "bpf":
            # proc(5): a space in a path is shown as \040.
            found.add(Path(place.replace("\\040", " ")))
    return sorted(found, key=lambda path: (path != USUAL, path))


def holds(path: Path) -> bool:
    """Whether a path is on a bpf file system, or would be if it were made."""
    room = ctypes.create_string_buffer(_STATFS)
    if libc.statfs(os.fsencode(_existing(path)), room):
        return False
    return int.from_bytes(room.raw[: ctypes.sizeof(ctypes.c_long)], sys.byteorder) == _MAGIC


def provide(path: Path) -> None:
    """Make sure that a path to be is on a bpf file system; mount the usual one if need be.

    Raises:
        HostError: it is not, and that cannot be mended.
    """
    if holds(path):
        return
    if not path.is_relative_to(USUAL):
        raise HostError(
            f"{_existing(path)} is not on a bpf file system",
            remedy=f"mount one: mount -t bpf bpf {path.parent}",
        )
    try:
        checked(libc.mount(b"bpf", os.fsencode(USUAL), b"bpf", ctypes.c_ulong(0), b"mode=0700"))
    except OSError as cause:
        raise HostError(
            f"no bpf file system can be mounted on {USUAL}: {cause.strerror}",
            remedy="mount it on the host, and give it to the agent's container",
        ) from cause


def _existing(path: Path) -> Path:
    return next(one for one in (path, *path.parents) if one.exists())
