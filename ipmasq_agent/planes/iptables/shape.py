"""Signs of what is in a legacy table, without the program that reads it.

Its shape is one short question to the kernel, however many rules it has. For what its rules
say the kernel hands out all of them, which takes some 0.2 µs for each.
Numbers and layout: include/uapi/linux/netfilter_ipv4/ip_tables.h, ip6_tables.h, and x_tables.h
beside them.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import re
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from ipmasq_agent.errors import KernelReadError
from ipmasq_agent.libc import libc
from ipmasq_agent.planes.iptables.presence import legacy_table_exists
from ipmasq_agent.policy.addresses import Family

_GET_INFO, _GET_ENTRIES = 64, 65  # IPT_SO_..., IP6T_SO_...
_NAME_BYTES, _INFO_BYTES = 32, 84  # struct ipt_getinfo
# From after the name: valid_hooks, hook_entry, underflow, num_entries, size.
_INFO = struct.Struct("=I5I5III")
_HOOKS = {"PREROUTING": 0, "OUTPUT": 3, "POSTROUTING": 4}  # NF_INET_...
_ENTRIES_AT = 40  # in struct ipt_get_entries
_MOST = 16 << 20  # bytes of a table of which there is a digest: some 80,000 short rules
_OFFSETS = struct.Struct("=HH")  # target_offset, next_offset
_TARGET = struct.Struct("=2x29sxi")  # struct xt_entry_target, and the verdict of a standard one
_SIZE, _NAME_AT = struct.Struct("=H"), 2  # of a target with its data, and where its name is
_PACKETS, _COUNTERS_BYTES = struct.Struct("=Q"), 16  # struct xt_counters
_STANDARD, _ERROR = b"", b"ERROR"  # XT_STANDARD_TARGET, and what stands before each chain


class _Entry(NamedTuple):
    """Where in struct ipt_entry of a family the offsets end, and the counters."""

    offsets: int
    counters: int


class Counted(NamedTuple):
    """What a rule has counted: what tells it from others, its packets, and what they met.

    Attributes:
        extends: it does what an extension does, and not what a verdict says.
    """

    rule: int
    packets: int
    extends: bool


_ENTRY = {Family.IPV4: _Entry(92, 112), Family.IPV6: _Entry(144, 168)}
_LEVELS = {
    Family.IPV4: (socket.AF_INET, socket.IPPROTO_IP),
    Family.IPV6: (socket.AF_INET6, socket.IPPROTO_IPV6),
}


def shape(family: Family, table: str) -> bytes | None:
    """Return what tells a table from one with more rules or fewer; None where there is none.

    It is where its chains begin and end, and how many rules it has, in how many bytes.

    Raises:
        KernelReadError: it cannot be asked for.
        HostError: it cannot be told whether there is one.
    """
    if not legacy_table_exists(family, table):
        return None  # to ask for it would make it
    info = ctypes.create_string_buffer(table.encode(), _INFO_BYTES)
    code = _ask(family, _GET_INFO, info)
    if code:
        raise _refused(family, table, code)
    return info.raw[_NAME_BYTES:]


def digest(family: Family, table: str, hook: str, shape: bytes) -> int | None:
    """Return what tells the rules that packets at a hook may meet from any others.

    Counters are left out. None where the table is being replaced, or is too large.

    Args:
        family: whose table.
        table: its name.
        hook: a built-in chain that it has.
        shape: of the table now.

    Raises:
        KernelReadError: it cannot be read.
    """
    _, *places, _, _ = _INFO.unpack(shape)
    entries = _entries(family, table, shape)
    if entries is None:
        return None
    number = _HOOKS[hook]
    first, last = places[number], places[len(places) // 2 + number]
    return digest_of(entries, family, first, last)


def counts(family: Family, table: str, chain: str, shape: bytes) -> list[Counted]:
    """Return what the rules of a chain have counted, as ``counts_of`` does.

    Nothing where the table is being replaced, or is too large.

    Raises:
        KernelReadError: it cannot be read.
    """
    entries = _entries(family, table, shape)
    return [] if entries is None else counts_of(entries, family, chain)


def _entries(family: Family, table: str, shape: bytes) -> memoryview | None:
    """Return the rules of a table; None where it is being replaced, or is too large."""
    *_, size = _INFO.unpack(shape)
    if size > _MOST:
        return None
    # Memory that goes back to the kernel, where the heap would keep it.
    answer = mmap.mmap(-1, _ENTRIES_AT + size)
    answer[: len(table)] = table.encode()
    struct.pack_into("=I", answer, _NAME_BYTES, size)
    code = _ask(family, _GET_ENTRIES, (ctypes.c_char * len(answer)).from_buffer(answer))
    if code in (errno.EAGAIN, errno.ENOENT):  # of another size by now, or gone
        return None
    if code:
        raise _refused(family, table, code)
    return memoryview(answer)[_ENTRIES_AT:]


def digest_of(entries: memoryview, family: Family, first: int, last: int) -> int:
    """Return the digest of what packets may meet in a table.

    Args:
        entries: struct ipt_entry of the family one after the other, as the kernel has them.
        family: whose.
        first: where the chain begins that packets enter.
        last: where its last rule does.

    Raises:
        KernelReadError: they are no such entries.
    """
    told = 0
    try:
        for part in _reached(entries, _ENTRY[family], first, last):
            told = hash((told, part))
    except struct.error as cause:
        raise _broken(family) from cause
    return told


def _broken(family: Family) -> KernelReadError:
    return KernelReadError(f"a table of ip_tables ({family.value}) breaks off")


def counts_of(entries: memoryview, family: Family, chain: str) -> list[Counted]:
    """Return what each rule of a chain of a user's has counted; none where there is no such.

    The last one is what the kernel puts at the end of each: to return.

    Args:
        entries: struct ipt_entry of the family one after the other, as the kernel has them.
        family: whose.
        chain: its name.

    Raises:
        KernelReadError: they are no such entries.
    """
    layout = _ENTRY[family]
    # Before each chain stands a rule with this target, which says its name.
    begin = re.escape(_ERROR.ljust(30, b"\0") + chain.encode() + b"\0")
    found = re.search(begin, entries)
    counted = []
    try:
        at = len(entries)
        if found is not None:
            target = found.start() - _NAME_AT
            at = target + _SIZE.unpack_from(entries, target)[0]
        while at < len(entries):
            target, size = _OFFSETS.unpack_from(entries, at + layout.offsets - _OFFSETS.size)
            name, _ = _TARGET.unpack_from(entries, at + target)
            name = name.rstrip(b"\0")
            if name == _ERROR:
                break
            says = entries[at : at + layout.offsets], entries[at + layout.counters : at + size]
            (packets,) = _PACKETS.unpack_from(entries, at + layout.counters - _COUNTERS_BYTES)
            counted.append(Counted(hash(tuple(map(bytes, says))), packets, name != _STANDARD))
            at += size or len(entries)
    except struct.error as cause:
        raise _broken(family) from cause
    return counted


def _reached(entries: memoryview, layout: _Entry, first: int, last: int) -> Iterator[bytes]:
    """Yield what the rules from one to another say, and those of all chains that they lead to."""
    waiting, seen = [first], set()
    while waiting:
        at = waiting.pop()
        if at in seen:
            continue
        seen.add(at)
        while True:
            target, size = _OFFSETS.unpack_from(entries, at + layout.offsets - _OFFSETS.size)
            name, verdict = _TARGET.unpack_from(entries, at + target)
            name = name.rstrip(b"\0")
            if name == _ERROR:  # where the next chain begins
                break
            yield bytes(entries[at : at + layout.offsets])
            yield bytes(entries[at + layout.counters : at + size])
            # A rule without a target goes on with the next one.
            if name == _STANDARD and verdict >= 0 and verdict != at + size:
                waiting.append(verdict)
            if at == last:
                break
            at += size or len(entries)


def _ask(family: Family, option: int, answer: ctypes.Array[ctypes.c_char]) -> int:
    """Return the errno of a question, 0 for none; the answer is in its place."""
    size = ctypes.c_uint32(len(answer))
    domain, level = _LEVELS[family]
    with socket.socket(domain, socket.SOCK_DGRAM) as asking:
        done = libc.getsockopt(asking.fileno(), level, option, answer, ctypes.byref(size))
    return ctypes.get_errno() if done else 0


def _refused(family: Family, table: str, code: int) -> KernelReadError:
    return KernelReadError(
        f"the {table} table of ip_tables ({family.value}) cannot be asked about: "
        f"{os.strerror(code)}",
        remedy="run as root, or with the capability NET_ADMIN",
    )
