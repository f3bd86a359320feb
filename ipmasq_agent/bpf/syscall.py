"""bpf(2) itself, and what its errors mean to whoever runs us.

Commands and layouts: include/uapi/linux/bpf.h. The structures in the modules that call it
are members of union bpf_attr, each beside the names of its fields.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import platform
from collections.abc import Iterator
from contextlib import contextmanager

from ipmasq_agent.errors import HostError, NotPermitted
from ipmasq_agent.libc import checked, libc

PRIVILEGE = "run as root, or with the capabilities BPF, PERFMON and NET_ADMIN"
# arch/*/entry/syscalls; the generic table (asm-generic/unistd.h) is for all newer ones.
_GENERIC_SYSCALL = 280
_SYSCALLS = {
    "x86_64": 321,
    "i386": 357,
    "i686": 357,
    "armv7l": 386,
    "ppc64le": 361,
    "ppc64": 361,
    "s390x": 351,
}


class BpfCommand(enum.IntEnum):
    """What bpf(2) is asked to do: enum bpf_cmd, as far as it is used here."""

    MAP_CREATE = 0
    MAP_LOOKUP_ELEM = 1
    MAP_UPDATE_ELEM = 2
    MAP_DELETE_ELEM = 3
    MAP_GET_NEXT_KEY = 4
    PROG_LOAD = 5
    OBJ_PIN = 6
    OBJ_GET = 7
    PROG_TEST_RUN = 10
    PROG_GET_FD_BY_ID = 13
    MAP_GET_FD_BY_ID = 14
    OBJ_GET_INFO_BY_FD = 15
    PROG_QUERY = 16
    MAP_LOOKUP_BATCH = 24
    MAP_UPDATE_BATCH = 26
    LINK_CREATE = 28
    LINK_UPDATE = 29
    LINK_GET_FD_BY_ID = 30
    ENABLE_STATS = 32
    LINK_DETACH = 34


def bpf(command: BpfCommand, attributes: bytes | ctypes.Array[ctypes.c_char]) -> int:
    """Make the system call; its buffers are kept alive by whoever packed their addresses.

    Raises:
        OSError: the kernel refuses.
    """
    number = _SYSCALLS.get(platform.machine(), _GENERIC_SYSCALL)
    size = len(attributes)
    return checked(
        libc.syscall(ctypes.c_long(number), ctypes.c_int(command), attributes, ctypes.c_uint(size))
    )


@contextmanager
def asked_to(what: str) -> Iterator[None]:
    """Tell the user what the kernel refused to do."""
    try:
        yield
    except OSError as cause:
        raise refused(what, cause) from cause


def refused(what: str, cause: OSError) -> HostError:
    """Return what to tell the user when bpf(2) fails to do ``what``."""
    match cause.errno:
        case errno.EPERM | errno.EACCES:
            return NotPermitted(f"may not {what}: {cause.strerror}", remedy=PRIVILEGE)
        case errno.ENOSYS:
            return HostError(
                "this kernel has no bpf(2)", remedy="use one built with CONFIG_BPF_SYSCALL"
            )
        case errno.ENOMEM:
            return HostError(
                f"the kernel has no memory to {what}",
                remedy="raise the memory limit of the agent, to which maps count",
            )
        case errno.ENOSPC | errno.E2BIG:
            return HostError(f"cannot {what}: the map is full")
        case _:
            return HostError(f"cannot {what}: {cause.strerror}")
