"""What the verifier of this kernel says of each program in a compiled object: a program of its own.

Run with the path of the object it prints, as JSON, the release of the kernel and for each
program either how many instructions the verifier went through, or why it refused. Each
program is loaded without the others, so that one that is refused hides none.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_LOG_SIZE = 1 << 24  # the most that Linux 6.1 takes
_LAST_LINES = 40


def main() -> None:
    """Print what the verifier says of the object that is named on the command line."""
    path = os.fsencode(sys.argv[1])
    opened = _open(path)
    names = [name for _, name in _each(opened)]
    _call("bpf_object__close", None, opened)
    said = {"release": os.uname().release, "programs": {name: load(path, name) for name in names}}
    print(json.dumps(said))


def load(path: bytes, wanted: str) -> dict[str, Any]:
    """Load one program of an object, and nothing else.

    Returns:
        ``{"instructions": count}``, or ``{"refused": text}`` with the verifier's last lines.
    """
    opened = _open(path)
    log = ctypes.create_string_buffer(_LOG_SIZE)
    try:
        for one, name in _each(opened):
            _call("bpf_program__set_autoload", ctypes.c_int, one, ctypes.c_bool(name == wanted))
            if name == wanted:
                program = one
                size = ctypes.c_size_t(len(log))
                _call("bpf_program__set_log_buf", ctypes.c_int, one, log, size)
        code = -_call("bpf_object__load", ctypes.c_int, opened)
        if code:
            lines = log.value.decode(errors="replace").splitlines()[-_LAST_LINES:]
            return {"refused": "\n".join([*lines, os.strerror(code)])}
        descriptor = _call("bpf_program__fd", ctypes.c_int, program)
        told = Path(f"/proc/self/fdinfo/{descriptor}").read_text()
        found = re.search(r"^verified_insns:\s+(\d+)$", told, re.MULTILINE)
        assert found, told
        return {"instructions": int(found[1])}
    finally:
        _call("bpf_object__close", None, opened)


def _open(path: bytes) -> ctypes.c_void_p:
    found = _call("bpf_object__open_file", ctypes.c_void_p, path, None)
    assert found, f"{os.fsdecode(path)}: {os.strerror(ctypes.get_errno())}"
    return ctypes.c_void_p(found)


def _each(opened: ctypes.c_void_p) -> Iterator[tuple[ctypes.c_void_p, str]]:
    item = None
    while True:
        last = ctypes.c_void_p(item)
        item = _call("bpf_object__next_program", ctypes.c_void_p, opened, last)
        if not item:
            return
        one = ctypes.c_void_p(item)
        yield one, _call("bpf_program__name", ctypes.c_char_p, one).decode()


def _call(name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(_libbpf, name)
    function.restype = result
    return function(*arguments)


_libbpf = ctypes.CDLL("libbpf.so.1", use_errno=True)
_libbpf.libbpf_set_print(None)  # the log says it, and libbpf would say it again

if __name__ == "__main__":
    main()
