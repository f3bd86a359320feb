"""What the verifier of this kernel says of each program in a compiled object: a program of its own.

Run with the path of the object it prints, as JSON, the release of the kernel and for each
program either how many instructions the verifier went through and how much stack its deepest
chain of calls takes, or why it refused. Each program is loaded without the others, so that one
that is refused hides none.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import struct
import sys
from collections.abc import Iterator
from typing import Any

_LOG_SIZE = 1 << 24  # the most that Linux 6.1 takes
_LAST_LINES = 40
_STEPS, _STATISTICS = 1, 4  # BPF_LOG_LEVEL1, BPF_LOG_STATS
_INSTRUCTION = struct.Struct("=BBhi")
# Code and source register of a call of a function, and of one given to a helper.
_CALLS = {(0x85, 1), (0x18, 4)}
_LOOP = (0x85, 0, 181)  # bpf_loop(), which the kernel writes out once it has summed up
_INLINED_LOOP = 24


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
        ``{"instructions": count, "stack": bytes}``, or ``{"refused": text}`` with the
        verifier's last lines.
    """
    return _load(path, wanted, _STATISTICS) or _load(path, wanted, _STATISTICS | _STEPS) or {}


def _load(path: bytes, wanted: str, level: int) -> dict[str, Any] | None:
    """Load it with a log of that level; None where it is refused without the steps there."""
    opened = _open(path)
    log = ctypes.create_string_buffer(_LOG_SIZE)
    try:
        for one, name in _each(opened):
            _call("bpf_program__set_autoload", ctypes.c_int, one, ctypes.c_bool(name == wanted))
            if name == wanted:
                program = one
                size = ctypes.c_size_t(len(log))
                _call("bpf_program__set_log_buf", ctypes.c_int, one, log, size)
                _call("bpf_program__set_log_level", ctypes.c_int, one, ctypes.c_uint32(level))
        code = -_call("bpf_object__load", ctypes.c_int, opened)
        said = log.value.decode(errors="replace")
        if code and not level & _STEPS:
            return None
        if code:
            lines = said.splitlines()[-_LAST_LINES:]
            return {"refused": "\n".join([*lines, os.strerror(code)])}
        found = re.search(r"^processed (\d+) insns", said, re.MULTILINE)
        depths = re.search(r"^stack depth ([\d+]+)$", said, re.MULTILINE)
        assert found, said
        assert depths, said
        return {
            "instructions": int(found[1]),
            "stack": _deepest(_instructions(program), [int(n) for n in depths[1].split("+")]),
        }
    finally:
        _call("bpf_object__close", None, opened)


def _instructions(program: ctypes.c_void_p) -> bytes:
    count = _call("bpf_program__insn_cnt", ctypes.c_size_t, program)
    address = _call("bpf_program__insns", ctypes.c_void_p, program)
    return ctypes.string_at(address, count * _INSTRUCTION.size)


def _deepest(code: bytes, depths: list[int]) -> int:
    """Return the bytes of stack that the deepest chain of calls takes, of 512.

    As check_max_stack_depth() of Linux 6.1 sums it up, whose own sum nobody is told.

    Args:
        code: the program's instructions, those of its functions after it.
        depths: what each takes itself, in that order.
    """
    calls, loops = [], []
    for at, (kind, registers, _, value) in enumerate(_INSTRUCTION.iter_unpack(code)):
        if (kind, registers >> 4) in _CALLS:
            calls.append((at, at + value + 1))
        elif (kind, registers >> 4, value) == _LOOP:
            loops.append(at)
    starts = sorted({0, *(target for _, target in calls)})
    assert len(starts) == len(depths)

    def below(number: int) -> int:
        first, last = starts[number], [*starts, len(code)][number + 1]
        called = {starts.index(target) for at, target in calls if first <= at < last}
        own = depths[number]
        if any(first <= at < last for at in loops):
            own -= _INLINED_LOOP
        return -(-max(own, 1) // 32) * 32 + max(map(below, called), default=0)

    return below(0)


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
