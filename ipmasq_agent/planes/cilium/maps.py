"""Tries of prefixes that others have pinned on a bpf file system, found by name and read."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ipmasq_agent.errors import HostError, KernelReadError
from ipmasq_agent.host.bpf_objects import LPM_TRIE, READ_ONLY, BpfMap, open_path
from ipmasq_agent.host.bpf_syscall import refused
from ipmasq_agent.policy.addresses import Family, Prefix

BPFFS = Path("/sys/fs/bpf")
MOUNTS = Path("/proc/self/mounts")
_LENGTH = struct.Struct("=I")  # prefixlen of struct bpf_lpm_trie_key
_TRIES = 10
_PRIVILEGE = "run as root, or with the capability BPF (SYS_ADMIN before Linux 5.8)"


@dataclass(frozen=True, slots=True)
class PrefixMap:
    """What a trie of prefixes holds.

    Attributes:
        path: where it is pinned.
        prefixes: sorted; bits past the length are zero, which the kernel does not see to.
        capacity: how many it can hold.
    """

    path: Path
    prefixes: tuple[Prefix, ...]
    capacity: int

    @property
    def full(self) -> bool:
        """Whether nothing more fits, so that something may have been left out."""
        return len(self.prefixes) >= self.capacity


def mounts() -> list[Path]:
    """Return where bpf file systems are mounted, the usual place first."""
    found = []
    for line in MOUNTS.read_text(errors="surrogateescape").splitlines():
        _, place, kind, *_ = line.split(" ")
        if kind == "bpf":
            # proc(5): a space in a path is shown as \040.
            found.append(Path(place.replace("\\040", " ")))
    return sorted(set(found), key=lambda path: (path != BPFFS, path))


def find(name: str, places: Iterable[Path], below: Path) -> Path | None:
    """Return the first path of that name in ``below``, or directly, in one of the places.

    Raises:
        HostError: this process may not look there.
    """
    for place in places:
        for path in (place / below / name, place / name):
            try:
                if path.exists():
                    return path
            except PermissionError as cause:
                raise HostError(
                    f"{path} cannot be looked at: {cause.strerror}", remedy=_PRIVILEGE
                ) from cause
    return None


def read_prefixes(path: Path, family: Family) -> PrefixMap:
    """Return the prefixes of a pinned trie.

    A trie is walked key by key while others may write it, so it is read until two walks
    agree.

    Raises:
        HostError: this process may not use bpf(2).
        KernelReadError: there is no such map, it is another kind of map, or it never
            stands still.
    """
    with _opened(path) as held:
        _check(held, path, family)
        before: set[bytes] | None = None
        for _ in range(_TRIES):
            keys = _walk(held)
            if keys is not None and keys == before:
                prefixes = sorted(_prefix(family, key) for key in keys)
                return PrefixMap(path, tuple(prefixes), held.capacity)
            before = keys
    raise KernelReadError(
        f"{path} changed {_TRIES} times while it was read",
        remedy="find out what rewrites it without pause, and try again",
    )


def _prefix(family: Family, key: bytes) -> Prefix:
    (length,) = _LENGTH.unpack_from(key)
    host_bits = family.bits - length
    address = int.from_bytes(key[_LENGTH.size :], "big")
    return Prefix(family, address >> host_bits << host_bits, length)


def _opened(path: Path) -> BpfMap:
    try:
        return BpfMap(open_path(path, READ_ONLY))
    except OSError as cause:
        raise _not_opened(path, cause) from cause


def _not_opened(path: Path, cause: OSError) -> HostError | KernelReadError:
    match cause.errno:
        case errno.EPERM:
            return HostError(f"{path} cannot be opened: {cause.strerror}", remedy=_PRIVILEGE)
        case errno.ENOSYS:
            return refused(f"open {path}", cause)
        case errno.EACCES:
            # What bpf_obj_do_get (kernel/bpf/inode.c) says of a plain file too.
            reason = f"it is not a pinned map, or its mode keeps uid {os.geteuid()} out"
        case _:
            reason = cause.strerror or str(cause)
    return KernelReadError(
        f"{path} cannot be opened: {reason}",
        remedy=f"see what is there with `bpftool map show pinned {path}`",
    )


def _check(held: BpfMap, path: Path, family: Family) -> None:
    """Make sure that the map is a trie of the family's prefixes."""
    wanted = _LENGTH.size + family.bits // 8
    if (held.kind, held.key_size) != (LPM_TRIE, wanted):
        raise KernelReadError(
            f"{path} is not a trie of {family.value} prefixes: it is a map of type {held.kind} "
            f"with keys of {held.key_size} bytes, not of type {LPM_TRIE} (LPM_TRIE) with {wanted}",
            remedy="name the file system on which the maps are that you mean",
        )


def _walk(held: BpfMap) -> set[bytes] | None:
    """Return all keys; None where one came twice."""
    keys: set[bytes] = set()
    for key in held.walk():
        if key in keys:
            return None
        keys.add(key)
    return keys
