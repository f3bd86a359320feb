"""Loading a compiled program through libbpf, its maps and programs pinned in a directory.

What is pinned there already is used again: flows outlive an upgrade of the programs.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ipmasq_agent.bpf.maps import BpfMap, open_pinned
from ipmasq_agent.bpf.objects import pin
from ipmasq_agent.bpf.syscall import refused
from ipmasq_agent.errors import HostError, MissingTool
from ipmasq_agent.host.capabilities import lacking
from ipmasq_agent.libc import libc

_LIBRARY = "libbpf.so.1"
_NEW = "_new"  # no dots: bpffs keeps names with them for itself
_SHAPE = "type", "key_size", "value_size", "map_flags", "max_entries"
_SHOWN = 12
_PRINTF = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


class _Library:
    """libbpf, with the types of what we call; and its last messages."""

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL(_LIBRARY, use_errno=True)
        except OSError as cause:
            raise MissingTool(
                f"{_LIBRARY} is not installed, and eBPF programs are loaded through it",
                remedy="apt-get install libbpf1",
            ) from cause
        self.messages: deque[str] = deque(maxlen=200)

        def note(level: int, form: bytes, arguments: int) -> int:
            # A verifier's log may be megabytes long, and its end is what counts.
            text = ctypes.c_char_p()
            if libc.vasprintf(ctypes.byref(text), form, ctypes.c_void_p(arguments)) < 0:
                return 0
            self.messages.extend((text.value or b"").decode(errors="replace").splitlines())
            libc.free(text)
            return 0

        self._note = _PRINTF(note)  # kept alive as long as the library may call it
        self._library.libbpf_set_print(self._note)

    def call(self, name: str, result: Any, *arguments: Any) -> Any:
        """Call a function whose result has that type."""
        function = getattr(self._library, name)
        function.restype = result
        return function(*arguments)

    def each(self, opened: ctypes.c_void_p, kind: str) -> Iterator[tuple[ctypes.c_void_p, str]]:
        """Yield the maps or programs of an object with their names."""
        item = None
        while True:
            following = f"bpf_object__next_{kind}"
            item = self.call(following, ctypes.c_void_p, opened, ctypes.c_void_p(item))
            if not item:
                return
            one = ctypes.c_void_p(item)
            yield one, self.call(f"bpf_{kind}__name", ctypes.c_char_p, one).decode()

    def last_words(self) -> str:
        """Return what the verifier found, or without that the last messages."""
        lines = list(self.messages)
        ends = [n for n, line in enumerate(lines) if "END PROG LOAD LOG" in line]
        end = ends[0] if ends else len(lines)
        return "\n".join(lines[max(0, end - _SHOWN) : end])


_library = functools.cache(_Library)  # once: libbpf keeps the function to which it says things


def load(
    bytecode: Path, pins: Path, capacities: Mapping[str, int], in_use: Mapping[str, BpfMap]
) -> list[str]:
    """Load what was compiled, and pin its maps and programs by their names.

    Args:
        bytecode: the ELF object that clang made.
        pins: a directory on a bpf file system. Maps that are there are used as they are, if
            they are of the kind and the sizes that are asked for; programs that are there are
            replaced, each in one step.
        capacities: name of a map → how many entries it is to hold where it is made.
        in_use: maps to be used and pinned in place of those, if all of them are such.

    Returns:
        The names of the maps that were made.

    Raises:
        MissingTool: libbpf is not installed.
        HostError: the kernel refuses; with the verifier's last words.
    """
    libbpf = _library()
    libbpf.messages.clear()
    found = libbpf.call("bpf_object__open_file", ctypes.c_void_p, os.fsencode(bytecode), None)
    if not found:
        raise HostError(
            f"{bytecode} cannot be opened: {os.strerror(ctypes.get_errno())}",
            remedy="install the package again, with clang there to compile it",
        )
    opened = ctypes.c_void_p(found)
    try:
        maps = {name: one for one, name in libbpf.each(opened, "map")}
        made = _pin_maps(libbpf, maps, pins, capacities, in_use)
        if libbpf.call("bpf_object__load", ctypes.c_int, opened):
            raise _not_loaded(libbpf, ctypes.get_errno())
        for one, name in libbpf.each(opened, "program"):
            descriptor = libbpf.call("bpf_program__fd", ctypes.c_int, one)
            fresh = pins / f"{name}{_NEW}"
            fresh.unlink(missing_ok=True)
            pin(descriptor, fresh)
            fresh.rename(pins / name)
        return made
    finally:
        libbpf.call("bpf_object__close", None, opened)


def _not_loaded(libbpf: _Library, code: int) -> HostError:
    # To who lacks PERFMON the verifier gives other reasons, of the program's own code.
    if code in (errno.EPERM, errno.ENOMEM) or (code == errno.EACCES and lacking({"PERFMON"})):
        return refused("load the eBPF programs", OSError(code, os.strerror(code)))
    return HostError(
        f"the kernel refuses the eBPF programs: {os.strerror(code)}\n{libbpf.last_words()}",
        remedy="Linux 6.1 or newer is needed; choose another --backend on this node",
    )


def _pin_maps(
    libbpf: _Library,
    maps: Mapping[str, ctypes.c_void_p],
    pins: Path,
    capacities: Mapping[str, int],
    in_use: Mapping[str, BpfMap],
) -> list[str]:
    """Say where maps are pinned; return the names of those that are to be made."""

    def fits(name: str, held: BpfMap) -> bool:
        wanted = [libbpf.call(f"bpf_map__{of}", ctypes.c_uint32, maps[name]) for of in _SHAPE]
        shape = [held.kind, held.key_size, held.value_size, held.flags, held.capacity]
        # Of some the size is the node's to choose, once: libbpf asks for the same.
        return shape == [*wanted[:-1], held.capacity if name in capacities else wanted[-1]]

    known = maps.keys() & in_use
    usable = all(fits(name, in_use[name]) for name in known)
    made = []
    for name, one in maps.items():
        path, capacity = pins / name, capacities.get(name)
        with ExitStack() as stack:
            pinned = open_pinned(path)
            held = stack.enter_context(pinned) if pinned is not None else None
            if usable and name in known and (held is None or held.number != in_use[name].number):
                path.unlink(missing_ok=True)
                pin(in_use[name].fd, path)
                held = in_use[name]
            if held is not None and fits(name, held):
                capacity = held.capacity
            else:
                path.unlink(missing_ok=True)
                made.append(name)
        if capacity is not None:
            _checked(libbpf, "bpf_map__set_max_entries", one, ctypes.c_uint32(capacity))
        _checked(libbpf, "bpf_map__set_pin_path", one, os.fsencode(path))
    return made


def _checked(libbpf: _Library, name: str, *arguments: Any) -> None:
    code = libbpf.call(name, ctypes.c_int, *arguments)
    if code:
        raise refused(f"prepare the maps ({name})", OSError(-code, os.strerror(-code)))
