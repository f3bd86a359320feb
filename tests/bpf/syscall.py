"""The calls of bpf(2) that the tests need, by ctypes. Source: include/uapi/linux/bpf.h."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MAP_CREATE, MAP_LOOKUP, MAP_UPDATE, MAP_DELETE, MAP_NEXT_KEY = range(5)
OBJ_PIN, OBJ_GET, PROG_TEST_RUN = 6, 7, 10
LPM_TRIE, NO_PREALLOC = 11, 1

_SYSCALL = {"x86_64": 321, "aarch64": 280}[platform.machine()]
_SK_BUFF_SIZE, _SK_BUFF_IFINDEX = 192, 40  # struct __sk_buff
_ROOM = 256  # a program may make a packet longer; these do not

_libc = ctypes.CDLL(None, use_errno=True)


def call(command: int, attributes: bytes) -> tuple[int, bytes]:
    """Call bpf(2); the result and the attributes as they are afterwards. Raises OSError."""
    buffer = ctypes.create_string_buffer(attributes.ljust(128, b"\0"), 128)
    result = _libc.syscall(_SYSCALL, command, buffer, len(buffer))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"bpf command {command}: {os.strerror(code)}")
    return result, buffer.raw


def pinned(path: Path) -> int:
    """Open what is pinned; a descriptor that outlives the file system."""
    name = ctypes.create_string_buffer(str(path).encode())
    return call(OBJ_GET, struct.pack("=QII", ctypes.addressof(name), 0, 0))[0]


def pin(descriptor: int, path: Path) -> None:
    """Pin a program or map, for those who want a path of it."""
    name = ctypes.create_string_buffer(str(path).encode())
    call(OBJ_PIN, struct.pack("=QII", ctypes.addressof(name), descriptor, 0))


def possible_cpus() -> int:
    """How many values a per-CPU map has."""
    last = Path("/sys/devices/system/cpu/possible").read_text().strip().split("-")[-1]
    return int(last) + 1


@dataclass(frozen=True)
class Map:
    """An open map; keys and values are bytes of exactly these sizes."""

    descriptor: int
    key_size: int
    value_size: int

    def get(self, key: bytes) -> bytes | None:
        value = ctypes.create_string_buffer(self.value_size)
        try:
            self._call(MAP_LOOKUP, key, ctypes.addressof(value))
        except FileNotFoundError:
            return None
        return value.raw

    def put(self, key: bytes, value: bytes) -> None:
        assert len(value) == self.value_size, f"{len(value)} bytes, not {self.value_size}"
        held = ctypes.create_string_buffer(value, self.value_size)
        self._call(MAP_UPDATE, key, ctypes.addressof(held))

    def delete(self, key: bytes) -> None:
        self._call(MAP_DELETE, key, 0)

    def keys(self) -> Iterator[bytes]:
        following = ctypes.create_string_buffer(self.key_size)
        key: bytes | None = None
        while True:
            try:
                self._call(MAP_NEXT_KEY, key, ctypes.addressof(following))
            except FileNotFoundError:
                return
            key = following.raw
            yield key

    def entries(self) -> dict[bytes, bytes]:
        found = ((key, self.get(key)) for key in list(self.keys()))
        return {key: value for key, value in found if value is not None}

    def clear(self) -> None:
        for key in list(self.keys()):
            self.delete(key)

    def _call(self, command: int, key: bytes | None, value: int) -> None:
        assert key is None or len(key) == self.key_size
        held = ctypes.create_string_buffer(key, self.key_size) if key is not None else None
        address = 0 if held is None else ctypes.addressof(held)
        call(command, struct.pack("=IxxxxQQQ", self.descriptor, address, value, 0))


def make_trie(key_size: int, value_size: int) -> Map:
    """Create an LPM trie of 64 entries."""
    attributes = struct.pack("=5I", LPM_TRIE, key_size, value_size, 64, NO_PREALLOC)
    return Map(call(MAP_CREATE, attributes)[0], key_size, value_size)


def run_program(descriptor: int, packet: bytes, ifindex: int) -> tuple[int, bytes]:
    """Run a tc program once on an Ethernet frame: its signed verdict, and the frame after it.

    The device is one of the network namespace of the calling thread. As the kernel does it
    (net/bpf/test_run.c), the packet belongs to a socket.
    """
    data = ctypes.create_string_buffer(packet, len(packet))
    out = ctypes.create_string_buffer(len(packet) + _ROOM)
    context = ctypes.create_string_buffer(_SK_BUFF_SIZE)
    struct.pack_into("=I", context, _SK_BUFF_IFINDEX, ifindex)
    attributes = struct.pack(
        "=4I2Q4I2Q",
        *(descriptor, 0, len(packet), len(out)),
        *(ctypes.addressof(data), ctypes.addressof(out)),
        *(1, 0, len(context), 0),
        *(ctypes.addressof(context), 0),
    )
    _, after = call(PROG_TEST_RUN, attributes)
    _, verdict, _, length = struct.unpack_from("=IiII", after)
    return verdict, out.raw[:length]
