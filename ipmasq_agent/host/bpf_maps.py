"""eBPF maps pinned on a bpf file system, read through bpf(2) itself.

Only what reading an LPM trie of prefixes takes: find it by name, check its shape, walk its
keys. No program and no library is needed, so it works on any node whose kernel has the map.

Numbers and layouts: include/uapi/linux/bpf.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ipmasq_agent.errors import HostError, KernelReadError
from ipmasq_agent.host.bpf_syscall import bpf
from ipmasq_agent.policy.addresses import Family, Prefix

BPFFS = Path("/sys/fs/bpf")
MOUNTS = Path("/proc/self/mounts")
_GET_NEXT_KEY, _OBJECT_GET, _OBJECT_INFO = 4, 7, 15
_READ_ONLY = 1 << 3  # BPF_F_RDONLY
_LPM_TRIE = 11  # BPF_MAP_TYPE_LPM_TRIE
# type, id, key_size, value_size, max_entries: how struct bpf_map_info begins.
_INFO = struct.Struct("=5I")
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
    with _opened(path) as descriptor:
        capacity = _capacity(descriptor, path, family)
        before: set[bytes] | None = None
        for _ in range(_TRIES):
            keys = _walk(descriptor, path, _LENGTH.size + family.bits // 8)
            if keys is not None and keys == before:
                prefixes = sorted(_prefix(family, key) for key in keys)
                return PrefixMap(path, tuple(prefixes), capacity)
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


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    name = ctypes.create_string_buffer(os.fsencode(path))
    try:
        descriptor = bpf(_OBJECT_GET, struct.pack("=QII", ctypes.addressof(name), 0, _READ_ONLY))
    except OSError as cause:
        raise _not_opened(path, cause) from cause
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _not_opened(path: Path, cause: OSError) -> HostError | KernelReadError:
    match cause.errno:
        case errno.EPERM:
            return HostError(f"{path} cannot be opened: {cause.strerror}", remedy=_PRIVILEGE)
        case errno.ENOSYS:
            return HostError(
                "this kernel has no bpf(2)", remedy="use one built with CONFIG_BPF_SYSCALL"
            )
        case errno.EACCES:
            # What bpf_obj_do_get (kernel/bpf/inode.c) says of a plain file too.
            reason = f"it is not a pinned map, or its mode keeps uid {os.geteuid()} out"
        case _:
            reason = cause.strerror or str(cause)
    return KernelReadError(
        f"{path} cannot be opened: {reason}",
        remedy=f"see what is there with `bpftool map show pinned {path}`",
    )


def _capacity(descriptor: int, path: Path, family: Family) -> int:
    """Check that the map is a trie of the family's prefixes; return how many it can hold."""
    info = ctypes.create_string_buffer(_INFO.size)
    try:
        bpf(
            _OBJECT_INFO,
            struct.pack("=IIQ", descriptor, len(info), ctypes.addressof(info)),
        )
    except OSError as cause:
        raise _unreadable(path, cause) from cause
    kind, _, key_size, _, capacity = _INFO.unpack(info.raw)
    wanted = _LENGTH.size + family.bits // 8
    if (kind, key_size) != (_LPM_TRIE, wanted):
        raise KernelReadError(
            f"{path} is not a trie of {family.value} prefixes: it is a map of type {kind} with "
            f"keys of {key_size} bytes, not of type {_LPM_TRIE} (LPM_TRIE) with {wanted}",
            remedy="name the file system on which the maps are that you mean",
        )
    return int(capacity)


def _walk(descriptor: int, path: Path, size: int) -> set[bytes] | None:
    """Return all keys; None where a key went while it was the way to the next one.

    The kernel then begins again at the first one (trie_get_next_key, kernel/bpf/
    lpm_trie.c), which is noticed when a key comes twice.
    """
    keys: set[bytes] = set()
    key = ctypes.create_string_buffer(size)
    # The same buffer is read and then written; a null pointer asks for the first key.
    here = ctypes.addressof(key)
    attributes = struct.pack("=IIQQ", descriptor, 0, 0, here)
    following = struct.pack("=IIQQ", descriptor, 0, here, here)
    try:
        while True:
            bpf(_GET_NEXT_KEY, attributes)
            if key.raw in keys:
                return None
            keys.add(key.raw)
            attributes = following
    except OSError as cause:
        if cause.errno == errno.ENOENT:
            return keys
        raise _unreadable(path, cause) from cause


def _unreadable(path: Path, cause: OSError) -> KernelReadError:
    return KernelReadError(
        f"{path} cannot be read: {cause.strerror}",
        remedy=_PRIVILEGE,
    )
