"""eBPF maps by their descriptors: made, opened, read whole and key by key, written."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from ipmasq_agent.bpf.objects import get_pinned, object_info
from ipmasq_agent.bpf.syscall import BpfCommand, asked_to, bpf, refused

HASH, LPM_TRIE, RING = 1, 11, 27  # BPF_MAP_TYPE_...
_NO_PREALLOC = 1  # BPF_F_NO_PREALLOC
_PER_CPU = frozenset({5, 6, 10})  # hash, array, LRU hash
# type, id, key_size, value_size, max_entries, map_flags, name: how struct bpf_map_info begins.
_INFO = struct.Struct("=6I16s")
# map_type, key_size, value_size, max_entries, map_flags, inner_map_fd, numa_node, map_name
_CREATE = struct.Struct("=7I16s")
_NAME_LENGTH = 15
_ELEMENT = struct.Struct("=I4xQQQ")  # map_fd, key, value or next_key, flags
_ANY, _ONLY_NEW = 0, 1  # BPF_ANY, BPF_NOEXIST
# in_batch, out_batch, keys, values, count, map_fd, elem_flags, flags
_BATCH = struct.Struct("=QQQQIIQQ")
_BATCH_COUNT = 4  # which field of these
_ENTRIES_AT_ONCE = 4096
_ENOTSUPP = 524  # not errno.ENOTSUP; include/linux/errno.h
# What older kernels say of the command, of tries, and of whatever has no batches.
_NO_BATCHES = frozenset({errno.EINVAL, errno.EOPNOTSUPP, _ENOTSUPP})
_Buffer: TypeAlias = "ctypes.Array[ctypes.c_char]"
_POSSIBLE = Path("/sys/devices/system/cpu/possible")


class BpfMap:
    """A map; a context manager that closes it, and it lives as long as something else holds it.

    Each method raises HostError where the kernel refuses.

    Attributes:
        fd: its descriptor, which is the map's from now on.
        kind: BPF_MAP_TYPE_...
        number: tells it from every other one, as long as it lives.
        key_size, value_size: in bytes.
        capacity: how many entries it may hold.
        flags: BPF_F_... with which it was made.
        name: that it was given, cut off where it is long.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        try:
            *sizes, self.flags, name = _INFO.unpack(object_info(fd, _INFO.size))
            self.kind, self.number, self.key_size, self.value_size, self.capacity = sizes
            copies = possible_cpus() if self.kind in _PER_CPU else 1
        except BaseException:
            os.close(fd)
            raise
        self.name: str = name.rstrip(b"\0").decode(errors="replace")
        self._step: int = self.value_size + 7 & ~7 if self.kind in _PER_CPU else self.value_size
        self._room = self._step * copies

    def __enter__(self) -> BpfMap:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    # -- one key ----------------------------------------------------------------------------

    def lookup(self, key: bytes) -> bytes | None:
        """Return the value of a key; None without one."""
        value = ctypes.create_string_buffer(self._room)
        try:
            self._element(BpfCommand.MAP_LOOKUP_ELEM, key, ctypes.addressof(value))
        except FileNotFoundError:
            return None
        except OSError as cause:
            raise refused("read a map", cause) from cause
        return value.raw

    def per_cpu(self, key: bytes) -> list[bytes]:
        """Return the values of a key, one for each CPU that the machine may have."""
        whole = self.lookup(key) or b""
        starts = range(0, len(whole), self._step)
        return [whole[start : start + self.value_size] for start in starts]

    def update(self, key: bytes, value: bytes) -> None:
        """Write the value of a key."""
        with asked_to("write a map"):
            self._write(key, value, _ANY)

    def add(self, key: bytes, value: bytes) -> bool:
        """Write the value of a key that is not there; false where it is."""
        try:
            self._write(key, value, _ONLY_NEW)
        except FileExistsError:
            return False
        except OSError as cause:
            raise refused("write a map", cause) from cause
        return True

    def _write(self, key: bytes, value: bytes, flags: int) -> None:
        self._check(key, value, 1)
        held = ctypes.create_string_buffer(value, len(value))
        self._element(BpfCommand.MAP_UPDATE_ELEM, key, ctypes.addressof(held), flags)

    def delete(self, key: bytes) -> bool:
        """Remove a key; false where it was not there."""
        try:
            self._element(BpfCommand.MAP_DELETE_ELEM, key, 0)
        except FileNotFoundError:
            return False
        except OSError as cause:
            raise refused("change a map", cause) from cause
        return True

    def _element(self, command: BpfCommand, key: bytes, value: int, flags: int = 0) -> None:
        held = ctypes.create_string_buffer(key, len(key))
        bpf(command, _ELEMENT.pack(self.fd, ctypes.addressof(held), value, flags))

    # -- all keys ---------------------------------------------------------------------------

    def fill(self, keys: bytes, values: bytes, count: int) -> None:
        """Write many keys of a trie (Linux 5.13) or a hash (5.6) at once."""
        self._check(keys, values, count)
        held = ctypes.create_string_buffer(keys, len(keys) or 1)
        with_ = ctypes.create_string_buffer(values, len(values) or 1)
        with asked_to(f"write {count} entries of a map"):
            bpf(BpfCommand.MAP_UPDATE_BATCH, self._batch(held, with_, count))

    def entries(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield all entries; see ``columns``."""
        for keys, values in self.columns():
            columns = zip(
                struct.iter_unpack(f"{self.key_size}s", keys),
                struct.iter_unpack(f"{self.value_size}s", values),
                strict=True,
            )
            for (key,), (value,) in columns:
                yield key, value

    def columns(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield keys and values, of many entries one after the other, read as they are asked for.

        A trie that is written meanwhile may be begun again, and a key then comes twice:
        where the key goes that was the way to the next one, the kernel goes on with the
        first (trie_get_next_key, kernel/bpf/lpm_trie.c).

        Not for maps with a value for each CPU.
        """
        size = _ENTRIES_AT_ONCE
        keys, values = self._room_for(size)
        # A hash gives its place in buckets, which fits into a key's room or 4 bytes.
        before, after = (ctypes.create_string_buffer(max(self.key_size, 8)) for _ in range(2))
        begin, ended = 0, False  # a null pointer asks for the first entries
        while not ended:
            request = self._batch(keys, values, size, begin, ctypes.addressof(after))
            try:
                bpf(BpfCommand.MAP_LOOKUP_BATCH, request)
            except OSError as cause:
                if cause.errno == errno.ENOSPC:  # a bucket of a hash has more than fit
                    size *= 2
                    keys, values = self._room_for(size)
                    continue
                if not begin and cause.errno in _NO_BATCHES:
                    yield from self._one_by_one()
                    return
                ended = cause.errno == errno.ENOENT
                # EINTR: a key went while it was read; those before it are here.
                if not ended and cause.errno != errno.EINTR:
                    raise refused("read a map", cause) from cause
            count = _BATCH.unpack(request)[_BATCH_COUNT]
            yield keys.raw[: count * self.key_size], values.raw[: count * self.value_size]
            if count:
                before, after = after, before
                begin = ctypes.addressof(before)

    def _one_by_one(self) -> Iterator[tuple[bytes, bytes]]:
        key = ctypes.create_string_buffer(self.key_size)
        # The same buffer is read and then written; a null pointer asks for the first key.
        begin, here = 0, ctypes.addressof(key)
        try:
            while True:
                bpf(BpfCommand.MAP_GET_NEXT_KEY, _ELEMENT.pack(self.fd, begin, here, 0))
                begin = here
                value = self.lookup(key.raw)
                if value is not None:
                    yield key.raw, value
        except FileNotFoundError:
            return
        except OSError as cause:
            raise refused("read a map", cause) from cause

    def _room_for(self, count: int) -> tuple[_Buffer, _Buffer]:
        return (
            ctypes.create_string_buffer(count * self.key_size),
            ctypes.create_string_buffer(count * self.value_size),
        )

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
        pointers = before, after, ctypes.addressof(keys), ctypes.addressof(values)
        return ctypes.create_string_buffer(
            _BATCH.pack(*pointers, count, self.fd, 0, 0), _BATCH.size
        )


def possible_cpus() -> int:
    """Return how many CPUs the kernel has room for: it keeps a value for each."""
    last = _POSSIBLE.read_text().strip().rpartition(",")[2]
    return int(last.rpartition("-")[2]) + 1


def open_pinned(path: Path) -> BpfMap | None:
    """Return the map that is pinned at a path; None where nothing is."""
    descriptor = get_pinned(path)
    return None if descriptor is None else BpfMap(descriptor)


def create(kind: int, name: str, key_size: int, value_size: int, capacity: int) -> BpfMap:
    """Return a new map, which lives until nothing holds it; its memory grows with entries.

    A ring has no keys and values, and so many bytes.
    """
    flags, its_name = 0 if kind == RING else _NO_PREALLOC, name.encode()[:_NAME_LENGTH]
    with asked_to(f"make the map {name}"):
        request = _CREATE.pack(kind, key_size, value_size, capacity, flags, 0, 0, its_name)
        return BpfMap(bpf(BpfCommand.MAP_CREATE, request))
