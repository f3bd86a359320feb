"""A ring buffer: records of one size that programs write, read where the kernel keeps them.

Layout and protocol: kernel/bpf/ringbuf.c. The page of the reader's place may be written; behind
it are that of the writers and the data, which are mapped twice, one after the other, so that
no record is ever torn.
"""

from __future__ import annotations

import mmap
import struct

from ipmasq_agent.bpf.maps import RING, create
from ipmasq_agent.bpf.syscall import asked_to

_PLACE = struct.Struct("=Q")
_HEADER = 8  # BPF_RINGBUF_HDR_SZ
_BUSY = 1 << 31  # BPF_RINGBUF_BUSY_BIT: it is being written


class Ring:
    """A ring that lives until nothing holds it.

    Args:
        name: that the kernel shows.
        size: in bytes, a power of 2 and of whole pages.
        record: the size of each record, in bytes.

    Attributes:
        fd: to be put into a map of maps.
        step: bytes from one record that is read to the next; the record begins behind a header.
        header: its size in bytes.
    """

    header = _HEADER

    def __init__(self, name: str, size: int, record: int) -> None:
        self.step = _HEADER + (record + 7 & ~7)
        self._size = size
        self._map = create(RING, name, 0, 0, size)
        self.fd = self._map.fd
        page = mmap.PAGESIZE
        with asked_to("read a ring buffer"):
            self._mine = mmap.mmap(self.fd, page)
            self._theirs = mmap.mmap(self.fd, page + 2 * size, prot=mmap.PROT_READ, offset=page)
        self._data = page

    def read(self, most: int) -> bytes:
        """Return records that are complete, each behind its header; and make room there."""
        (begin,) = _PLACE.unpack_from(self._mine)
        (end,) = _PLACE.unpack_from(self._theirs)
        end = min(end, begin + most * self.step)
        start = self._data + (begin & self._size - 1)
        heads = memoryview(self._theirs[start : start + end - begin]).cast("I")
        # Those before the first that is still being written. They are copied once more after
        # their headers were looked at: the kernel writes a record before it says so there.
        length = 0
        for head in heads[:: self.step // 4]:
            if head & _BUSY:
                break
            length += self.step
        found = self._theirs[start : start + length]
        _PLACE.pack_into(self._mine, 0, begin + length)
        return found

    def close(self) -> None:
        """Hold it no more."""
        self._mine.close()
        self._theirs.close()
        self._map.__exit__()
