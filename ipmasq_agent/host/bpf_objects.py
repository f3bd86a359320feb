"""eBPF maps and programs by their descriptors: pinned, opened, read, written."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TypeAlias

from ipmasq_agent.host.bpf_syscall import bpf, refused

_MAP_CREATE, _LOOKUP, _UPDATE, _DELETE, _NEXT_KEY = 0, 1, 2, 3, 4
_PIN, _GET, _RUN, _INFO = 6, 7, 10, 15
_LOOKUP_BATCH, _UPDATE_BATCH = 24, 26
LPM_TRIE, _NO_PREALLOC = 11, 1  # BPF_MAP_TYPE_LPM_TRIE, BPF_F_NO_PREALLOC
READ_ONLY = 1 << 3  # BPF_F_RDONLY
_PER_CPU = frozenset({5, 6, 10})  # hash, array, LRU hash
# type, id, key_size, value_size, max_entries: how struct bpf_map_info begins.
_MAP_INFO = struct.Struct("=5I")
_PROGRAM_INFO = struct.Struct("=II8s")  # type, id, tag: how struct bpf_prog_info begins
_NAME_LENGTH = 15
_BATCH = 4096
# Not EINVAL alone: some maps have look-ups in batches and no updates, or the reverse.
_NO_BATCHES = frozenset({errno.EINVAL, errno.EOPNOTSUPP, 524})  # 524: ENOTSUPP
_Buffer: TypeAlias = "ctypes.Array[ctypes.c_char]"
_POSSIBLE = Path("/sys/devices/system/cpu/possible")


def open_path(path: Path, flags: int = 0) -> int:
    """Return a descriptor of what is pinned at a path.

    Raises:
        OSError: nothing is, or it may not be opened.
    """
    name = ctypes.create_string_buffer(os.fsencode(path))
    return bpf(_GET, struct.pack("=QII", ctypes.addressof(name), 0, flags))


def get_pinned(path: Path) -> int | None:
    """Return a descriptor of what is pinned at a path; None where nothing is.

    Raises:
        HostError: it may not be opened, or is not pinned.
    """
    try:
        return open_path(path)
    except OSError as cause:
        if cause.errno == errno.ENOENT:
            return None
        raise refused(f"open {path}", cause) from cause


def pin(descriptor: int, path: Path) -> None:
    """Pin a map, a program or a link at a path of a bpf file system.

    Raises:
        HostError: the kernel refuses.
    """
    name = ctypes.create_string_buffer(os.fsencode(path))
    try:
        bpf(_PIN, struct.pack("=QII", ctypes.addressof(name), descriptor, 0))
    except OSError as cause:
        raise refused(f"pin {path}", cause) from cause


def program_id(descriptor: int) -> int:
    """Return the number of a program by which the kernel tells it from every other one.

    Raises:
        HostError: it cannot be asked.
    """
    _, number, _ = _PROGRAM_INFO.unpack(object_info(descriptor, _PROGRAM_INFO.size))
    return int(number)


def object_info(descriptor: int, size: int) -> bytes:
    """Return the first ``size`` bytes of what the kernel tells about an object.

    Raises:
        HostError: it cannot be asked.
    """
    info = ctypes.create_string_buffer(size)
    attributes = struct.pack("=IIQ", descriptor, size, ctypes.addressof(info))
    try:
        bpf(_INFO, attributes)
    except OSError as cause:
        raise refused("ask about a map or program", cause) from cause
    return info.raw


def run_program(descriptor: int) -> int:
    """Run a program of tc once, on an empty packet, and return what it returned.

    Raises:
        HostError: the kernel does not run it.
    """
    packet = ctypes.create_string_buffer(64)
    # prog_fd, retval, data_size_in, data_size_out, data_in, data_out, repeat, duration
    attributes = ctypes.create_string_buffer(
        struct.pack("=IIIIQQII", descriptor, 0, 64, 0, ctypes.addressof(packet), 0, 1, 0), 40
    )
    try:
        bpf(_RUN, attributes)
    except OSError as cause:
        raise refused("run a program", cause) from cause
    (returned,) = struct.unpack_from("=I", attributes, 4)
    return int(returned)


class BpfMap:
    """A map; a context manager that closes it.

    Attributes:
        fd: its descriptor.
        kind: BPF_MAP_TYPE_...
        number: by which the kernel tells it from every other map.
        key_size, value_size: in bytes.
        capacity: how many entries it may hold.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.kind, self.number, self.key_size, self.value_size, self.capacity = _MAP_INFO.unpack(
            object_info(fd, _MAP_INFO.size)
        )

    def __enter__(self) -> BpfMap:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor; the map lives as long as something else holds it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def lookup(self, key: bytes) -> bytes | None:
        """Return the value of a key; None without one.

        Raises:
            HostError: the kernel refuses.
        """
        value = ctypes.create_string_buffer(self._room)
        try:
            self._element(_LOOKUP, key, ctypes.addressof(value))
        except OSError as cause:
            if cause.errno == errno.ENOENT:
                return None
            raise refused("read a map", cause) from cause
        return value.raw

    def per_cpu(self, key: bytes) -> list[bytes]:
        """Return the values of a key, one for each CPU that the machine may have."""
        whole = self.lookup(key) or b""
        step = self._padded
        return [whole[at : at + self.value_size] for at in range(0, len(whole), step)]

    def update(self, key: bytes, value: bytes) -> None:
        """Write the value of a key.

        Raises:
            HostError: the kernel refuses.
        """
        self._check(key, value, 1)
        held = ctypes.create_string_buffer(value, len(value))
        try:
            self._element(_UPDATE, key, ctypes.addressof(held))
        except OSError as cause:
            raise refused("write a map", cause) from cause

    def delete(self, key: bytes) -> bool:
        """Remove a key; false where it was not there.

        Raises:
            HostError: the kernel refuses.
        """
        try:
            self._element(_DELETE, key, 0)
        except OSError as cause:
            if cause.errno == errno.ENOENT:
                return False
            raise refused("change a map", cause) from cause
        return True

    def fill(self, keys: bytes, values: bytes, count: int) -> None:
        """Write many keys, with as few calls as the kernel lets us.

        Args:
            keys: one after the other.
            values: one after the other.
            count: how many there are.

        Raises:
            HostError: the kernel refuses.
        """
        self._check(keys, values, count)
        held = ctypes.create_string_buffer(keys, len(keys) or 1)
        with_ = ctypes.create_string_buffer(values, len(values) or 1)
        attributes = self._batch(held, with_, count)
        try:
            bpf(_UPDATE_BATCH, attributes)
        except OSError as cause:
            if cause.errno not in _NO_BATCHES:
                raise refused(f"write {count} entries of a map", cause) from cause
            for n in range(count):
                self.update(
                    keys[n * self.key_size : (n + 1) * self.key_size],
                    values[n * self.value_size : (n + 1) * self.value_size],
                )

    def items(self) -> list[tuple[bytes, bytes]]:
        """Return all entries; not for maps with a value for each CPU.

        Raises:
            HostError: the kernel refuses.
        """
        return list(self.entries())

    def entries(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield all entries, read as they are asked for.

        Raises:
            HostError: the kernel refuses.
        """
        found = 0
        try:
            for entry in self._in_batches():
                yield entry
                found += 1
            return
        except OSError as cause:
            if found or cause.errno not in _NO_BATCHES:
                raise refused("read a map", cause) from cause
        yield from self._one_by_one()

    def _in_batches(self) -> Iterator[tuple[bytes, bytes]]:
        size = _BATCH
        keys = ctypes.create_string_buffer(size * self.key_size)
        values = ctypes.create_string_buffer(size * self.value_size)
        # A hash gives its place in buckets, which fits into a key's room or 4 bytes.
        places = [ctypes.create_string_buffer(max(self.key_size, 8)) for _ in range(2)]
        began, ended = False, False
        while not ended:
            before = ctypes.addressof(places[0]) if began else 0
            attributes = self._batch(keys, values, size, before, ctypes.addressof(places[1]))
            try:
                bpf(_LOOKUP_BATCH, attributes)
            except OSError as cause:
                if cause.errno == errno.ENOSPC:  # a bucket of a hash has more than fit
                    size *= 2
                    keys = ctypes.create_string_buffer(size * self.key_size)
                    values = ctypes.create_string_buffer(size * self.value_size)
                    continue
                if cause.errno != errno.ENOENT:
                    raise
                ended = True
            (count,) = struct.unpack_from("=I", attributes, 32)
            raw_keys, raw_values = keys.raw, values.raw
            for n in range(count):
                yield (
                    raw_keys[n * self.key_size : (n + 1) * self.key_size],
                    raw_values[n * self.value_size : (n + 1) * self.value_size],
                )
            places.reverse()
            began = True

    def _one_by_one(self) -> Iterator[tuple[bytes, bytes]]:
        for key in self.walk():
            value = self.lookup(key)
            if value is not None:
                yield key, value

    def walk(self) -> Iterator[bytes]:
        """Yield all keys, read as they are asked for.

        Where a key goes while it is the way to the next one the kernel begins again at the
        first (trie_get_next_key, kernel/bpf/lpm_trie.c): then a key comes twice.

        Raises:
            HostError: the kernel refuses.
        """
        key = ctypes.create_string_buffer(self.key_size)
        # The same buffer is read and then written; a null pointer asks for the first key.
        here = ctypes.addressof(key)
        attributes = struct.pack("=IIQQ", self.fd, 0, 0, here)
        following = struct.pack("=IIQQ", self.fd, 0, here, here)
        try:
            while True:
                bpf(_NEXT_KEY, attributes)
                yield key.raw
                attributes = following
        except OSError as cause:
            if cause.errno != errno.ENOENT:
                raise refused("read a map", cause) from cause

    def _check(self, keys: bytes, values: bytes, count: int) -> None:
        """Make sure that the kernel reads nothing behind what we have."""
        if len(keys) != count * self.key_size or len(values) != count * self.value_size:
            raise ValueError(
                f"{count} entries of {self.key_size} and {self.value_size} bytes cannot be "
                f"made of {len(keys)} and {len(values)}"
            )

    def _batch(
        self, keys: _Buffer, values: _Buffer, count: int, before: int = 0, after: int = 0
    ) -> _Buffer:
        pointers = ctypes.addressof(keys), ctypes.addressof(values)
        return ctypes.create_string_buffer(
            struct.pack("=QQQQIIQQ", before, after, *pointers, count, self.fd, 0, 0)
        )

    def _element(self, command: int, key: bytes, value: int) -> None:
        held = ctypes.create_string_buffer(key, len(key))
        bpf(command, struct.pack("=IIQQQ", self.fd, 0, ctypes.addressof(held), value, 0))

    @property
    def _padded(self) -> int:
        size: int = self.value_size
        return (size + 7) & ~7 if self.kind in _PER_CPU else size

    @property
    def _room(self) -> int:
        return self._padded * (possible_cpus() if self.kind in _PER_CPU else 1)


def possible_cpus() -> int:
    """Return how many CPUs the kernel has room for: it keeps a value for each."""
    last = _POSSIBLE.read_text().strip().rpartition(",")[2]
    return int(last.rpartition("-")[2]) + 1


def open_pinned(path: Path) -> BpfMap | None:
    """Return the map that is pinned at a path; None where nothing is.

    Raises:
        HostError: it may not be opened.
    """
    descriptor = get_pinned(path)
    return None if descriptor is None else BpfMap(descriptor)


def create_trie(name: str, key_size: int, value_size: int, capacity: int) -> BpfMap:
    """Return a new trie of prefixes, which lives until nothing holds it.

    Raises:
        HostError: the kernel refuses.
    """
    attributes = struct.pack(
        "=IIIIIII16s",
        *(LPM_TRIE, key_size, value_size, capacity, _NO_PREALLOC, 0, 0),
        name.encode()[:_NAME_LENGTH],
    )
    try:
        return BpfMap(bpf(_MAP_CREATE, attributes))
    except OSError as cause:
        raise refused(f"make the trie {name}", cause) from cause
