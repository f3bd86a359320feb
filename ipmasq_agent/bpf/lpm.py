"""Keys of tries of prefixes: struct bpf_lpm_trie_key, a length and then the address.

The room for an address may be larger than those of a family: one trie layout serves both
then, with an IPv4 address in the first four bytes and zeros after it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import TypeVar

from ipmasq_agent.errors import KernelReadError
from ipmasq_agent.policy.addresses import Family

V = TypeVar("V")
_LENGTH = struct.Struct("=I")  # in the machine's order; the address is in that of the network


def key_size(address_size: int) -> int:
    """Return the bytes of a key with this room for an address."""
    return _LENGTH.size + address_size


def pack_keys(family: Family, prefixes: Iterable[tuple[int, int]], address_size: int) -> bytes:
    """Return the keys of prefixes, first address and length each, one after the other."""
    size = family.bits // 8
    pack = struct.Struct(f"=I{size}s{address_size - size}x").pack
    return b"".join([pack(length, first.to_bytes(size)) for first, length in prefixes])


def unpack_keys(family: Family, entries: Iterable[tuple[bytes, V]]) -> Iterator[tuple[int, int, V]]:
    """Yield first address and length of each key, and what goes with it.

    Bits past the length are dropped, as a look-up does.

    Raises:
        KernelReadError: one has a length that no prefix of the family has.
    """
    bits, size = family.bits, _LENGTH.size
    end = size + bits // 8
    for key, value in entries:  # a loop of its own: there may be a hundred thousand
        (length,) = _LENGTH.unpack_from(key)
        host_bits = bits - length
        if host_bits < 0:
            raise KernelReadError(
                f"a trie of {family.value} prefixes has one of length {length}",
                remedy="another program writes our maps; `ipmasq-agent cleanup` removes them",
            )
        yield int.from_bytes(key[size:end]) >> host_bits << host_bits, length, value
