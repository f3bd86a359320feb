"""Keys of tries of prefixes: struct bpf_lpm_trie_key, a length and then the address.

The room for an address may be larger than those of a family: one trie layout serves both
then, with an IPv4 address in the first four bytes and zeros after it.
"""

from __future__ import annotations

import struct

from ipmasq_agent.errors import KernelReadError
from ipmasq_agent.policy.addresses import Family, Prefix

_LENGTH = struct.Struct("=I")  # in the machine's order; the address is in that of the network


def key_size(address_size: int) -> int:
    """Return the bytes of a key with this room for an address."""
    return _LENGTH.size + address_size


def pack_key(family: Family, first: int, length: int, address_size: int) -> bytes:
    """Return the key of a prefix."""
    return _LENGTH.pack(length) + first.to_bytes(family.bits // 8).ljust(address_size, b"\0")


def unpack_key(family: Family, key: bytes) -> Prefix:
    """Return the prefix of a key; bits past the length are dropped, as a look-up does.

    Raises:
        KernelReadError: it has a length that no prefix of the family has.
    """
    (length,) = _LENGTH.unpack_from(key)
    host_bits = family.bits - length
    if host_bits < 0:
        raise KernelReadError(
            f"a trie of {family.value} prefixes has one of length {length}",
            remedy="another program writes our maps; `ipmasq-agent cleanup` removes them",
        )
    end = _LENGTH.size + family.bits // 8
    first = int.from_bytes(key[_LENGTH.size : end])
    return Prefix(family, first >> host_bits << host_bits, length)
