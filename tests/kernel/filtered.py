"""Runs a program under a seccomp profile, as runtimes of containers do it: by libseccomp.

``python filtered.py PROFILE PROGRAM [ARGUMENT...]``. A profile is what the runtime
specification calls LinuxSeccomp. May not import the package.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# seccomp.h
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_COMPARISONS = {"SCMP_CMP_EQ": 4, "SCMP_CMP_MASKED_EQ": 7}
_UNKNOWN = -1  # no system call of any machine; others, below it, are those of other machines


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("one", ctypes.c_uint64),
        ("two", ctypes.c_uint64),
    )


def load(profile: Mapping[str, Any]) -> None:
    """Put this process, and all that it becomes, under a profile.

    Raises:
        OSError: the library or the kernel does not take it.
        ValueError: it says what is not known here.
    """
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    if profile["defaultAction"] != "SCMP_ACT_ERRNO":
        raise ValueError(profile["defaultAction"])
    held = ctypes.c_void_p(
        library.seccomp_init(ctypes.c_uint32(_ERRNO | profile["defaultErrnoRet"]))
    )
    for rule in profile["syscalls"]:
        if rule["action"] != "SCMP_ACT_ALLOW":
            raise ValueError(rule["action"])
        given = [
            _Comparison(
                each["index"], _COMPARISONS[each["op"]], each["value"], each.get("valueTwo", 0)
            )
            for each in rule.get("args", ())
        ]
        comparisons = (_Comparison * len(given))(*given)
        for name in rule["names"]:
            number = library.seccomp_syscall_resolve_name(name.encode())
            if number == _UNKNOWN:
                raise ValueError(name)
            _done(
                library.seccomp_rule_add_array(
                    held, ctypes.c_uint32(_ALLOW), number, len(given), comparisons
                ),
                name,
            )
    _done(library.seccomp_load(held), "load")


def _done(code: int, what: str) -> None:
    # Those of other machines are left out, as runtimes do.
    if code and code != -errno.EDOM:
        raise OSError(-code, f"{what}: {os.strerror(-code)}")


if __name__ == "__main__":
    load(json.loads(Path(sys.argv[1]).read_text()))
    os.execvp(sys.argv[2], sys.argv[2:])
