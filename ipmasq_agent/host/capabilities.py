"""The capabilities of this process: what it holds, what it lacks, and giving up the rest.

Names are those of linux/capability.h without CAP_ in front, as Kubernetes has them.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path

from ipmasq_agent.errors import HostError

_NAMES = (
    *("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID"),
    *("SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW"),
    *("IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT"),
    *("SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD"),
    *("LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG"),
    *("WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE"),
)
# linux/prctl.h, linux/capability.h
_BOUNDING_DROP, _NO_NEW_PRIVILEGES, _VERSION_3 = 24, 38, 0x20080522


def held() -> frozenset[str]:
    """Return the capabilities that this thread is permitted."""
    return frozenset(map(_name, _bits("CapPrm")))


def lacking(wanted: Iterable[str]) -> list[str]:
    """Return those that it is not, in order."""
    return sorted({*wanted} - held())


def keep_only(kept: Collection[str]) -> None:
    """Give up all capabilities but some, for this thread and all that it will start.

    To be called before there are other threads, each of which has its own. Programs get no
    more either: root's gain what the bounding set has, and nobody gains what we do not hold.

    Raises:
        HostError: the kernel refuses.
    """
    from ctypes import c_ulong

    from ipmasq_agent.libc import checked, libc

    def prctl(option: int, value: int) -> None:
        checked(libc.prctl(option, c_ulong(value), *[c_ulong(0)] * 3))

    sets = [
        sum(1 << number for number in _bits(name) if _name(number) in kept)
        for name in ("CapEff", "CapPrm", "CapInh")
    ]
    # Ambient ones go with the permitted (capabilities(7)).
    words = [each >> shift & 0xFFFFFFFF for shift in (0, 32) for each in sets]
    try:
        for number in _bits("CapBnd"):
            # Only with SETPCAP. Without it, no new privileges means none that we do not hold.
            if _name(number) not in kept:
                with suppress(PermissionError):
                    prctl(_BOUNDING_DROP, number)
        prctl(_NO_NEW_PRIVILEGES, 1)
        checked(libc.capset(struct.pack("=Ii", _VERSION_3, 0), struct.pack("=6I", *words)))
    except OSError as cause:
        raise HostError(f"capabilities cannot be given up: {cause.strerror}") from cause


def _name(number: int) -> str:
    return _NAMES[number] if number < len(_NAMES) else f"number {number}"


def _bits(field: str) -> list[int]:
    """Return the numbers in one of the sets of this thread, as proc(5) shows them."""
    for line in Path("/proc/thread-self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return [number for number in range(64) if int(value, 16) >> number & 1]
    return []
