"""Programs on devices by links of tcx (Linux 6.6).

A link belongs to whoever holds it: pinned, it outlives us, and other tools that replace
filters do not touch it. What the kernel refuses is a HostError, where nothing else is said.
"""

from __future__ import annotations

import ctypes
import errno
import struct
import time
from pathlib import Path

from ipmasq_agent.bpf.objects import by_id, closing, get_pinned, object_info, pin, program_info
from ipmasq_agent.bpf.syscall import BpfCommand, asked_to, bpf, refused
from ipmasq_agent.errors import NotPermitted
from ipmasq_agent.planes.bpf.layout import TcHook

_ATTACH_TYPES = {TcHook.INGRESS: 46, TcHook.EGRESS: 47}  # BPF_TCX_INGRESS, BPF_TCX_EGRESS
# prog_fd, target_ifindex, attach_type, flags, relative_fd, pad, expected_revision
_CREATE = struct.Struct("=6IQ")
_UPDATE = struct.Struct("=4I")  # link_fd, new_prog_fd, flags, old_prog_fd
_DETACH = struct.Struct("=I")  # link_fd
# target_ifindex, attach_type, query_flags, attach_flags, prog_ids, count, pad,
# prog_attach_flags, link_ids, link_attach_flags, revision
_QUERY = struct.Struct("=4IQIIQQQQ")
_QUERY_COUNT = 5  # which field of these
_INFO = struct.Struct("=III4xI")  # type, id, prog_id, and of tcx ifindex: struct bpf_link_info
_MOST = 64  # programs at one hook: BPF_MPROG_MAX, include/linux/bpf_mprog.h
_LETTING_GO = 2.0
"""Seconds that a link has to end after its pin: the kernel ends it in the background."""


def attach(ifindex: int, hook: TcHook, program: int, link: Path) -> bool:
    """Attach a program, in place of what the pinned link holds there; false without tcx."""
    held = get_pinned(link)
    if held is not None:
        with closing(held), asked_to(f"replace the program of device {ifindex}"):
            if _info(held)[1] == ifindex:
                bpf(BpfCommand.LINK_UPDATE, _UPDATE.pack(held, program, 0, 0))
                return True
        link.unlink()  # its device is gone, and another one has the number
    request = _CREATE.pack(program, ifindex, _ATTACH_TYPES[hook], 0, 0, 0, 0)
    deadline = time.monotonic() + _LETTING_GO
    while True:
        try:
            with closing(bpf(BpfCommand.LINK_CREATE, request)) as made:
                pin(made, link)
                return True
        except OSError as cause:
            if cause.errno == errno.EINVAL:
                return False
            # The program is there by a link whose pin somebody has removed.
            if cause.errno == errno.EEXIST and _pin_again(ifindex, hook, program, link):
                return True
            if cause.errno != errno.EEXIST or time.monotonic() > deadline:
                raise refused(f"attach to device {ifindex}", cause) from cause
        time.sleep(0.01)


def _pin_again(ifindex: int, hook: TcHook, program: int, link: Path) -> bool:
    """Pin the link by which a program is on a device; false where we may not, or it goes."""
    number, _ = program_info(program)
    try:
        held = dict(list_attached(ifindex, hook))[number]
        with by_id(BpfCommand.LINK_GET_FD_BY_ID, held) as found:
            pin(found, link)
    except (KeyError, OSError):
        return False
    return True


def attached(ifindex: int, link: Path) -> int | None:
    """Return the number of the program that a pinned link has on a device; None for none."""
    held = get_pinned(link)
    if held is None:
        return None
    with closing(held):
        program, device = _info(held)
    return program if device == ifindex else None


def _info(link: int) -> tuple[int, int]:
    """Return a link's program and device; no device where that is gone."""
    _, _, program, device = _INFO.unpack(object_info(link, _INFO.size))
    return program, device


def detach(link: Path) -> None:
    """Take away the program that a pinned link holds, and its pin."""
    try:
        held = get_pinned(link)
    except NotPermitted:  # then it goes with its pin, a moment later
        held = None
    if held is not None:
        with closing(held):
            detach_link(held)
    link.unlink(missing_ok=True)


def detach_unpinned(number: int, ifindex: int) -> None:
    """Take away the program that a link without a pin holds.

    Raises:
        NotPermitted: only CAP_SYS_ADMIN may open a link by its number.
        HostError: the kernel refuses.
    """
    with asked_to(f"detach from device {ifindex}"):
        try:
            with by_id(BpfCommand.LINK_GET_FD_BY_ID, number) as held:
                detach_link(held)
        except FileNotFoundError:
            return  # it went by itself


def detach_link(link: int) -> None:
    """Take away the program that a link holds."""
    try:
        bpf(BpfCommand.LINK_DETACH, _DETACH.pack(link))
    except OSError as cause:
        if cause.errno != errno.ENOLINK:  # its device is gone already
            raise refused("detach a program", cause) from cause


def list_attached(ifindex: int, hook: TcHook) -> list[tuple[int, int]]:
    """Return the numbers of all programs there and of their links, as they run.

    Raises:
        OSError: EINVAL without tcx; ENODEV without the device; we may not ask.
    """
    programs, links = (ctypes.create_string_buffer(4 * _MOST) for _ in range(2))
    room = ctypes.addressof(programs), ctypes.addressof(links)
    query = _QUERY.pack(ifindex, _ATTACH_TYPES[hook], 0, 0, room[0], _MOST, 0, 0, room[1], 0, 0)
    answer = ctypes.create_string_buffer(query, len(query))
    bpf(BpfCommand.PROG_QUERY, answer)
    count = min(_QUERY.unpack(answer)[_QUERY_COUNT], _MOST)
    numbers = struct.Struct(f"={count}I")
    return list(zip(numbers.unpack_from(programs), numbers.unpack_from(links), strict=True))
