"""Cilium's tries of prefixes on a bpf file system: found by name, and read."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ipmasq_agent.bpf import bpffs, lpm
from ipmasq_agent.bpf.maps import LPM_TRIE, BpfMap
from ipmasq_agent.bpf.objects import READ_ONLY, open_path
from ipmasq_agent.bpf.syscall import refused
from ipmasq_agent.errors import HostError, KernelReadError
from ipmasq_agent.planes.cilium.decide import MAP_NAMES
from ipmasq_agent.policy.addresses import Family, Prefix

BELOW = Path("tc/globals")
"""Where on the file system Cilium pins its maps."""
_READINGS = 10
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
        """Whether nothing more fits."""
        return len(self.prefixes) >= self.capacity

    @property
    def overflow(self) -> str:
        """What to say of a map that is full."""
        return (
            f"{self.path} is full with {len(self.prefixes)} entries: what did not fit was "
            "left out without a word, so entries may be missing"
        )


def read_maps(file_systems: Sequence[Path]) -> dict[Family, PrefixMap]:
    """Return the maps of either family that are pinned on one of the file systems.

    Each is looked for where Cilium pins its maps, and at the root; the first one counts.

    Raises:
        HostError: there is no bpf file system, or this process may not read it.
        KernelReadError: there is no such map, or it is not what it should be.
    """
    places = [place for root in file_systems for place in (root / BELOW, root)]
    found = {}
    for family, name in MAP_NAMES.items():
        path = next((place / name for place in places if _exists(place / name)), None)
        if path is not None:
            found[family] = read_prefixes(path, family)
    if found:
        return found
    instead = "or compare with cilium:FILE, what `cilium-dbg bpf ipmasq list` printed"
    if not file_systems:
        raise HostError(
            "no bpf file system is mounted here, so Cilium's maps cannot be found",
            remedy=f"mount the node's {bpffs.USUAL} into this pod, {instead}",
        )
    raise KernelReadError(
        f"there is no map {' or '.join(MAP_NAMES.values())} in "
        f"{', '.join(map(str, file_systems))}: Cilium does not run here, or not with "
        "ipMasqAgent.enabled and bpf.masquerade",
        remedy=f"enable them, name the place with --bpffs, {instead}",
    )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError as cause:
        raise HostError(
            f"{path} cannot be looked at: {cause.strerror}", remedy=_PRIVILEGE
        ) from cause


def read_prefixes(path: Path, family: Family) -> PrefixMap:
    """Return the prefixes of a pinned trie.

    Cilium writes it entry by entry, and it is read in steps too: so it is read until two
    readings agree.

    Raises:
        HostError: this process may not use bpf(2).
        KernelReadError: there is no such map, it is another kind of map, or it never
            stands still.
    """
    with _opened(path) as held:
        _check(held, path, family)
        before: set[bytes] | None = None
        for _ in range(_READINGS):
            keys = _keys(held)
            if keys is not None and keys == before:
                items = sorted(lpm.unpack_keys(family, zip(keys, keys, strict=True)))
                prefixes = tuple(Prefix(family, first, length) for first, length, _ in items)
                return PrefixMap(path, prefixes, held.capacity)
            before = keys
    raise KernelReadError(
        f"{path} changed {_READINGS} times while it was read",
        remedy="find out what rewrites it without pause, and try again",
    )


def _keys(held: BpfMap) -> set[bytes] | None:
    """Return all keys; None where one came twice."""
    keys: set[bytes] = set()
    for key, _ in held.entries():
        if key in keys:
            return None
        keys.add(key)
    return keys


def _opened(path: Path) -> BpfMap:
    try:
        return BpfMap(open_path(path, READ_ONLY))
    except OSError as cause:
        if cause.errno == errno.EPERM:
            raise HostError(
                f"{path} cannot be opened: {cause.strerror}", remedy=_PRIVILEGE
            ) from cause
        if cause.errno == errno.ENOSYS:
            raise refused(f"open {path}", cause) from cause
        reason = cause.strerror
        if cause.errno == errno.EACCES:  # what the kernel says of a plain file too (bpf_obj_do_get)
            reason = f"it is not a pinned map, or its mode keeps uid {os.geteuid()} out"
        raise KernelReadError(
            f"{path} cannot be opened: {reason}",
            remedy=f"see what is there with `bpftool map show pinned {path}`",
        ) from cause


def _check(held: BpfMap, path: Path, family: Family) -> None:
    """Make sure that the map is a trie of the family's prefixes."""
    wanted = lpm.key_size(family.bits // 8)
    if (held.kind, held.key_size) != (LPM_TRIE, wanted):
        raise KernelReadError(
            f"{path} is not a trie of {family.value} prefixes: it is a map of type {held.kind} "
            f"with keys of {held.key_size} bytes, not of type {LPM_TRIE} (LPM_TRIE) with {wanted}",
            remedy="name the file system on which the maps are that you mean",
        )
