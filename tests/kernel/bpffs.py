"""A bpf file system that only this test sees, and maps pinned on it with bpftool.

May not import the package: what it makes is what the package is tested on.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

CLONE_NEWNS = 0x00020000
BPFFS = Path("/sys/fs/bpf")
GLOBALS = Path("tc/globals")

_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def private_mounts() -> Iterator[None]:
    """Give the calling thread mounts of its own, no bpf file system among them.

    Its subprocesses share them.
    """
    here = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    directory = Path.cwd()
    try:
        _checked(_libc.unshare(CLONE_NEWNS), "unshare")
        try:
            _run("mount", "--make-rprivate", "/")
            for place in _mounted():
                _run("umount", "--lazy", place)
            yield
        finally:
            _checked(_libc.setns(here, CLONE_NEWNS), "setns")
            os.chdir(directory)  # setns(2): the working directory becomes the root
    finally:
        os.close(here)


def _mounted() -> list[str]:
    """Return where bpf file systems are mounted, the latest first."""
    lines = Path("/proc/thread-self/mounts").read_text().splitlines()
    return [words[1] for words in map(str.split, reversed(lines)) if words[2] == "bpf"]


def mount(place: Path = BPFFS) -> Path:
    """Mount an empty bpf file system, with the directory in which Cilium pins its maps."""
    place.mkdir(parents=True, exist_ok=True)
    _run("mount", "-t", "bpf", "bpf", str(place))
    (place / GLOBALS).mkdir(parents=True)
    return place


def make_map(place: Path, version: int, prefixes: Iterable[str] = (), capacity: int = 64) -> Path:
    """Pin a map as Cilium lays it out (pkg/maps/ipmasq), and return where it is."""
    name = f"cilium_ipmasq_v{version}"
    path = place / GLOBALS / name
    _run(
        *("bpftool", "map", "create", str(path), "type", "lpm_trie", "name", name),
        *("key", str(8 if version == 4 else 20), "value", "1"),
        *("entries", str(capacity), "flags", "1"),  # BPF_F_NO_PREALLOC
    )
    put(path, prefixes)
    return path


def put(path: Path, prefixes: Iterable[str]) -> None:
    """Add prefixes to a map; bits past the length are stored as they are given."""
    _batch(f"map update pinned {path} key hex {_key(text)} value hex 00" for text in prefixes)


def delete(path: Path, prefixes: Iterable[str]) -> None:
    """Take prefixes out of a map."""
    _batch(f"map delete pinned {path} key hex {_key(text)}" for text in prefixes)


def _key(text: str) -> str:
    address, _, length = text.partition("/")
    key = int(length).to_bytes(4, sys.byteorder) + ipaddress.ip_address(address).packed
    return key.hex(" ")


def _batch(lines: Iterable[str]) -> None:
    _run("bpftool", "batch", "file", "-", stdin="".join(f"{line}\n" for line in lines))


def _run(*argv: str, stdin: str = "") -> None:
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stdout[-500:]}{done.stderr[-500:]}"


def _checked(result: int, call: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{call}: {os.strerror(code)}")
