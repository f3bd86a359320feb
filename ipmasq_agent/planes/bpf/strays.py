"""Programs of ours on devices of this network namespace that no pins here account for.

The pins may be on a bpf file system that is not mounted for us, or somebody removed them.
A filter is listed to everybody. Of programs on links of tcx the kernel gives numbers, to
whoever may use bpf(2); their names only with CAP_SYS_ADMIN. Where it does not, the names
of all programs that are loaded, which it lists with its own symbols, still tell whether one
may be ours.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from ipmasq_agent.bpf.objects import object_info
from ipmasq_agent.bpf.syscall import bpf, refused
from ipmasq_agent.errors import NotPermitted
from ipmasq_agent.netlink.rt import list_links
from ipmasq_agent.planes.bpf.tc import HANDLE, PRIORITY, Direction, detach_filter
from ipmasq_agent.planes.bpf.tc_filters import EGRESS, list_bpf_filters

NAMES = {Direction.EGRESS: "outward", Direction.INGRESS: "inward"}
_PROGRAM_BY_NUMBER, _PROG_QUERY, _LINK_BY_NUMBER, _LINK_DETACH = 13, 16, 30, 34
_QUERY = struct.Struct("=IIIIQIIQQQQ")
_COUNT_AT = 24
_MOST = 64  # programs at one hook (BPF_MPROG_MAX, include/linux/bpf_mprog.h)
# type, id, tag, jited_prog_len, xlated_prog_len, two pointers, load_time, created_by_uid,
# nr_map_ids, map_ids, name: struct bpf_prog_info
_PROGRAM = struct.Struct("=II8sIIQQQIIQ16s")
_SYMBOLS = Path("/proc/kallsyms")
_REMEDY = (
    "mount the host's /sys/fs/bpf in the agent's container and give it the capability BPF, "
    "as deploy/ does; or run `ipmasq-agent cleanup --backend=bpf` as root on the node"
)


class Stray(NamedTuple):
    """A program of ours: on which device, and the link that holds it (0 for a filter)."""

    device: int
    direction: Direction
    link: int


def find(*, strict: bool) -> Iterator[Stray]:
    """Yield our programs on the devices, filters first.

    Args:
        strict: what may be one of ours, as far as can be seen, is an error.

    Raises:
        NotPermitted: there may be some, and we may not look.
        KernelReadError: the devices or their filters cannot be listed.
    """
    yield from _filters()
    yield from _links(strict)


def remove_filters() -> None:
    """Take our programs off the devices where they are filters.

    Raises:
        HostError: the kernel refuses.
        KernelReadError: as ``find``.
    """
    for stray in _filters():
        detach_filter(stray.device, stray.direction)


def remove_links() -> None:
    """Take our programs off the devices where links hold them.

    Raises:
        NotPermitted: only CAP_SYS_ADMIN may open a link that is not pinned; or as ``find``.
        HostError: the kernel refuses.
        KernelReadError: as ``find``.
    """
    for stray in _links(strict=True):
        try:
            held = bpf(_LINK_BY_NUMBER, struct.pack("=III", stray.link, 0, 0))
            try:
                bpf(_LINK_DETACH, struct.pack("=I", held))
            finally:
                os.close(held)
        except OSError as cause:
            if cause.errno not in (errno.ENOENT, errno.ENOLINK):  # it went by itself
                raise refused(f"detach from device {stray.device}", cause) from cause


def _filters() -> Iterator[Stray]:
    for found in list_bpf_filters():
        direction = Direction.EGRESS if found.parent == EGRESS else Direction.INGRESS
        name = found.name.partition(":")[0]
        if (found.handle, found.priority, name) == (HANDLE, PRIORITY, NAMES[direction]):
            yield Stray(found.device, direction, 0)


def _links(strict: bool) -> Iterator[Stray]:
    nameless = []
    for device in list_links():
        for direction in Direction:
            try:
                held = _attached(device.number, direction)
            except OSError as cause:
                if cause.errno in (errno.EPERM, errno.EACCES):
                    if strict:
                        _make_sure(_loaded())
                    return
                if cause.errno in (errno.EINVAL, errno.ENODEV):  # no tcx; the device has gone
                    continue
                raise refused("list the programs of a device", cause) from cause
            for program, link in held:
                try:
                    name = _name(program)
                except OSError as cause:
                    if cause.errno == errno.ENOENT:
                        continue
                    nameless.append(program)
                    continue
                if name == NAMES[direction]:
                    yield Stray(device.number, direction, link)
    if strict and nameless:
        _make_sure(_loaded_with(tuple(nameless)))


def _attached(device: int, direction: Direction) -> list[tuple[int, int]]:
    """Return the numbers of programs and of their links, in the order in which they run."""
    programs, links = (ctypes.create_string_buffer(4 * _MOST) for _ in range(2))
    kind, _ = direction.value
    room = ctypes.addressof(programs), ctypes.addressof(links)
    query = _QUERY.pack(device, kind, 0, 0, room[0], _MOST, 0, 0, room[1], 0, 0)
    answer = ctypes.create_string_buffer(query, len(query))
    bpf(_PROG_QUERY, answer)
    (count,) = struct.unpack_from("=I", answer, _COUNT_AT)
    numbers = struct.Struct(f"={min(count, _MOST)}I")
    return list(zip(numbers.unpack_from(programs), numbers.unpack_from(links), strict=True))


def _name(program: int) -> str:
    held = bpf(_PROGRAM_BY_NUMBER, struct.pack("=III", program, 0, 0))
    try:
        found: bytes = _PROGRAM.unpack(object_info(held, _PROGRAM.size))[-1]
    finally:
        os.close(held)
    return found.rstrip(b"\0").decode(errors="replace")


def _loaded() -> bool:
    """Whether programs with our names are loaded on this machine, as far as it tells."""
    try:
        with _SYMBOLS.open("rb") as lines:  # bpf_prog_TAG_NAME
            names = {line.split()[2].split(b"_", 3)[-1] for line in lines if b"[bpf]" in line}
    except (FileNotFoundError, PermissionError):  # a kernel or a sandbox without the list
        return False
    return {name.encode() for name in NAMES.values()} <= names


# To read all symbols takes 60 ms; what a number means never changes.
@lru_cache(maxsize=1)
def _loaded_with(numbers: tuple[int, ...]) -> bool:
    return _loaded()


def _make_sure(loaded: bool) -> None:
    if loaded:
        raise NotPermitted(
            "eBPF programs of this agent are loaded on the machine, and it may not be seen from "
            "here whether they are on devices of this node and decide by an older policy",
            remedy=_REMEDY,
        )
