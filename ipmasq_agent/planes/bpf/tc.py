"""Programs at the ingress and egress of a device: by a tcx link, or as a filter of clsact.

A link belongs to whoever holds it: pinned, it outlives us, and other tools that replace
filters do not touch it. Kernels before 6.6 have no tcx; there our filter has a handle and
a priority of its own.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import os
import struct
import time
from pathlib import Path

from ipmasq_agent.bpf.objects import get_pinned, object_info, pin
from ipmasq_agent.bpf.syscall import bpf, refused
from ipmasq_agent.errors import NotPermitted
from ipmasq_agent.planes.bpf.libbpf import library

HANDLE, PRIORITY = 0x6D61, 49
"""Of our filter in clsact, where tcx is not to be had."""
_LINK_CREATE, _LINK_UPDATE, _LINK_DETACH = 28, 29, 34
_LINK_INFO = struct.Struct("=III4xII")  # type, id, prog_id, and of tcx: ifindex, attach type
_REPLACE = 1  # BPF_TC_F_REPLACE
_LETTING_GO = 2.0
"""Seconds that a link has to end after its pin: the kernel ends it in the background."""
# No filter of ours, no clsact (EINVAL), no such device.
_NOT_THERE = frozenset({errno.ENOENT, errno.EINVAL, errno.ENODEV})


class Direction(enum.Enum):
    """Which way packets go: the attach types of tcx and of libbpf's filters."""

    INGRESS = (46, 1)
    EGRESS = (47, 2)


class _Hook(ctypes.Structure):
    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("ifindex", ctypes.c_int),
        ("attach_point", ctypes.c_int),
        ("parent", ctypes.c_uint32),
    ]


class _Options(ctypes.Structure):
    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("prog_fd", ctypes.c_int),
        ("flags", ctypes.c_uint32),
        ("prog_id", ctypes.c_uint32),
        ("handle", ctypes.c_uint32),
        ("priority", ctypes.c_uint32),
    ]


def attach(ifindex: int, direction: Direction, program: int, link: Path, *, tcx: bool) -> None:
    """Attach a program, in place of the one that we have there.

    Args:
        ifindex: of a device in this network namespace.
        direction: where at the device.
        program: its descriptor.
        link: where the link is pinned, or is to be.
        tcx: try that first.

    Raises:
        HostError: the kernel refuses, or the device is gone.
    """
    held = get_pinned(link) if tcx else None
    if held is not None:
        try:
            if _ifindex(held) == ifindex:
                bpf(_LINK_UPDATE, struct.pack("=IIII", held, program, 0, 0))
                return
        except OSError as cause:
            raise refused(f"replace the program of device {ifindex}", cause) from cause
        finally:
            os.close(held)
        link.unlink()  # its device is gone, and another one has the number
    if not tcx or not _link(ifindex, direction, program, link):
        _filter(ifindex, direction, program)


def _link(ifindex: int, direction: Direction, program: int, link: Path) -> bool:
    """Attach by a link, and pin it; false where the kernel has no tcx."""
    kind, _ = direction.value
    request = struct.pack("=IIIIIIQ", program, ifindex, kind, 0, 0, 0, 0)
    deadline = time.monotonic() + _LETTING_GO
    while True:
        try:
            made = bpf(_LINK_CREATE, request)
            break
        except OSError as cause:
            if cause.errno == errno.EINVAL:
                return False
            # The program is there by a link whose pin somebody has just removed.
            if cause.errno != errno.EEXIST or time.monotonic() > deadline:
                raise refused(f"attach to device {ifindex}", cause) from cause
        time.sleep(0.01)
    try:
        pin(made, link)
    finally:
        os.close(made)
    return True


def _filter(ifindex: int, direction: Direction, program: int) -> None:
    libbpf, hook = library(), _hook(ifindex, direction)
    code = libbpf.call("bpf_tc_hook_create", ctypes.c_int, ctypes.byref(hook))
    if code not in (0, -errno.EEXIST):
        raise refused(f"give device {ifindex} a clsact", OSError(-code, os.strerror(-code)))
    options = _options(prog_fd=program, flags=_REPLACE)
    code = libbpf.call("bpf_tc_attach", ctypes.c_int, ctypes.byref(hook), ctypes.byref(options))
    if code:
        raise refused(f"attach to device {ifindex}", OSError(-code, os.strerror(-code)))


def attached(ifindex: int, direction: Direction, link: Path) -> int | None:
    """Return the number of the program that we have there, by link or filter; None for none.

    Raises:
        HostError: the kernel cannot be asked.
    """
    held = get_pinned(link)
    if held is not None:
        try:
            _, _, program, device, _ = _LINK_INFO.unpack(object_info(held, _LINK_INFO.size))
        finally:
            os.close(held)
        return int(program) if device == ifindex else None
    hook, options = _hook(ifindex, direction), _options()
    libbpf = library()
    code = libbpf.call("bpf_tc_query", ctypes.c_int, ctypes.byref(hook), ctypes.byref(options))
    if code and -code not in _NOT_THERE:
        raise refused(f"ask about device {ifindex}", OSError(-code, os.strerror(-code)))
    return None if code else int(options.prog_id)


def detach(link: Path) -> None:
    """Take away the program that a pinned link holds, and its pin.

    Raises:
        HostError: the kernel refuses.
    """
    try:
        held = get_pinned(link)
    except NotPermitted:  # then it goes with its pin, a moment later
        held = None
    if held is not None:
        try:
            bpf(_LINK_DETACH, struct.pack("=I", held))
        except OSError as cause:
            if cause.errno != errno.ENOLINK:  # its device is gone already
                raise refused(f"detach what {link} holds", cause) from cause
        finally:
            os.close(held)
    link.unlink(missing_ok=True)


def detach_filter(ifindex: int, direction: Direction) -> None:
    """Take our filter away; whatever else is there stays, clsact too.

    Raises:
        HostError: the kernel refuses.
    """
    hook, options = _hook(ifindex, direction), _options()
    libbpf = library()
    code = libbpf.call("bpf_tc_detach", ctypes.c_int, ctypes.byref(hook), ctypes.byref(options))
    if code and -code not in _NOT_THERE:
        raise refused(f"detach from device {ifindex}", OSError(-code, os.strerror(-code)))


def _ifindex(link: int) -> int:
    return int(_LINK_INFO.unpack(object_info(link, _LINK_INFO.size))[3])


def _hook(ifindex: int, direction: Direction) -> _Hook:
    return _Hook(ctypes.sizeof(_Hook), ifindex, direction.value[1], 0)


def _options(prog_fd: int = 0, flags: int = 0) -> _Options:
    return _Options(ctypes.sizeof(_Options), prog_fd, flags, 0, HANDLE, PRIORITY)
