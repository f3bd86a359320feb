"""Elements of nf_tables sets as the kernel's bytes, by the hundred thousand.

A set of intervals holds two elements for each: the first address, and the one after the
last marked as an end; an interval that reaches the last address has no end. All that are
alike in form have the same length, so whole columns are packed and taken apart at once:
one element at a time costs ten times as much.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from ipmasq_agent.errors import KernelReadError
from ipmasq_agent.netlink import nft_numbers as nft
from ipmasq_agent.netlink.attributes import attribute, attributes, fields, nested, number, u32
from ipmasq_agent.netlink.expressions import NftVerdict, data_of, packed_data
from ipmasq_agent.policy.addresses import Family

# The elements of one message stand in one attribute, whose length is kept in 16 bits.
_LONGEST = 0xFFFF - 4


class SetForm(NamedTuple):
    """What a set or a map is of.

    Attributes:
        flags: NFT_SET_....
        key: the type of its keys (TYPE_...), and their length in bytes.
        data: the type of what a map gives; 0 for a set.
    """

    flags: int
    key: tuple[int, int]
    data: int = 0


class Element(NamedTuple):
    """One element: its key, what a map gives for it, and whether it ends an interval."""

    key: bytes
    data: bytes | NftVerdict = b""
    is_end: bool = False


class Intervals(NamedTuple):
    """Intervals in ascending order, ends included, as columns; of a map, with what it gives."""

    firsts: Sequence[int]
    lasts: Sequence[int]
    values: Sequence[bytes | NftVerdict] = ()


def pack(element: Element) -> bytes:
    """Return one element as the kernel takes it."""
    data = packed_data(nft.NFTA_SET_ELEM_DATA, element.data) if element.data else b""
    key = packed_data(nft.NFTA_SET_ELEM_KEY, element.key)
    return nested(nft.NFTA_LIST_ELEM, key, data, _flags(element))


def _listed(element: Element) -> bytes:
    """Return one element as the kernel lists it: it marks no attribute as nested."""
    key = attribute(nft.NFTA_SET_ELEM_KEY, attribute(nft.NFTA_DATA_VALUE, element.key))
    return attribute(nft.NFTA_LIST_ELEM, key + _flags(element))


def _flags(element: Element) -> bytes:
    if not element.is_end:
        return b""
    return attribute(nft.NFTA_SET_ELEM_FLAGS, u32(nft.NFT_SET_ELEM_INTERVAL_END))


def packed_intervals(family: Family, intervals: Intervals) -> Iterator[bytes]:
    """Yield intervals as the kernel takes them, as many at a time as a message can hold."""
    firsts, lasts, values = intervals
    if values:
        yield from packed_elements(_mapped(family, intervals))
        return
    count, size = len(firsts), family.bits // 8
    tail = b""
    if count and lasts[-1] == family.last_address:
        count -= 1
        tail = pack(Element(firsts[-1].to_bytes(size, "big")))
    form = _form(size)
    packed = bytearray(form.bytes * count)
    after = [last + 1 for last in lasts[:count]]
    for place, column in ((form.first, firsts[:count]), (form.after, after)):
        keys = _keys(family, column)
        for offset in range(size):
            packed[place + offset :: len(form.bytes)] = keys[offset::size]
    step = _LONGEST // len(form.bytes) * len(form.bytes)
    for start in range(0, len(packed), step):
        yield bytes(packed[start : start + step])
    if tail:
        yield tail


def _mapped(family: Family, intervals: Intervals) -> Iterator[Element]:
    size = family.bits // 8
    for first, last, value in zip(*intervals, strict=True):
        yield Element(first.to_bytes(size, "big"), value)
        if last < family.last_address:
            yield Element((last + 1).to_bytes(size, "big"), is_end=True)


def packed_elements(elements: Iterable[Element]) -> Iterator[bytes]:
    """Yield any elements as the kernel takes them, as many at a time as a message can hold."""
    waiting: list[bytes] = []
    length = 0
    for one in map(pack, elements):
        if length + len(one) > _LONGEST:
            yield b"".join(waiting)
            waiting, length = [], 0
        waiting.append(one)
        length += len(one)
    if waiting:
        yield b"".join(waiting)


def elements_of(data: bytes) -> Iterator[Element]:
    """Yield the elements in what the kernel lists, in its order."""
    for _, one in attributes(data):
        parts = fields(one)
        key = fields(parts.get(nft.NFTA_SET_ELEM_KEY, b"")).get(nft.NFTA_DATA_VALUE, b"")
        value = parts.get(nft.NFTA_SET_ELEM_DATA)
        is_end = number(parts.get(nft.NFTA_SET_ELEM_FLAGS)) & nft.NFT_SET_ELEM_INTERVAL_END
        yield Element(key, b"" if value is None else data_of(value), bool(is_end))


def intervals_of(family: Family, data: bytes) -> Intervals:
    """Return the intervals in what the kernel lists.

    Raises:
        KernelReadError: the elements are not intervals of addresses.
    """
    return _columns(family, data) or _one_by_one(family, elements_of(data))


def _one_by_one(family: Family, elements: Iterable[Element]) -> Intervals:
    """Return the intervals that elements of any order and form are."""
    size = family.bits // 8
    firsts, lasts, values = [], [], []
    opened: Element | None = None
    # Where one interval ends and the next begins, the end comes first.
    for element in sorted(elements, key=lambda element: (element.key, not element.is_end)):
        if len(element.key) != size:
            raise KernelReadError(
                f"a set of {family.value} addresses holds a key of {len(element.key)} bytes"
            )
        address = int.from_bytes(element.key, "big")
        if opened is not None:
            if element.key == opened.key:
                raise KernelReadError(f"a set of {family.value} addresses holds one twice")
            lasts.append(address - 1)
        # The nft program writes an end before the first interval too, which ends nothing.
        opened = None if element.is_end else element
        if opened is not None:
            firsts.append(address)
            values.append(opened.data)
    if opened is not None:
        lasts.append(family.last_address)
    return Intervals(firsts, lasts, values if any(values) else ())


class _Form(NamedTuple):
    """The bytes of an interval with zero addresses, and where the two addresses stand."""

    bytes: bytes
    first: int
    after: int


_KEY_AT = 12  # past the headers of element, key and value


def _form(size: int) -> _Form:
    """Return the form of an interval that is written: first its beginning."""
    start, end = pack(Element(bytes(size))), pack(Element(bytes(size), is_end=True))
    return _Form(start + end, _KEY_AT, len(start) + _KEY_AT)


def _listed_form(size: int) -> _Form:
    """Return the form of an interval that is listed: first its end."""
    start, end = _listed(Element(bytes(size))), _listed(Element(bytes(size), is_end=True))
    return _Form(end + start, len(end) + _KEY_AT, _KEY_AT)


def _columns(family: Family, data: bytes) -> Intervals | None:
    """Take a whole list apart at once; None where it is not of the usual form.

    The kernel lists a tree of intervals from the highest address down (net/netfilter/
    nft_set_rbtree.c keeps it so), an end before its beginning.
    """
    size = family.bits // 8
    form = _listed_form(size)
    length = len(form.bytes)
    opening = _listed(Element(bytes(size)))
    highest = b""
    if len(data) % length == len(opening) and data[:_KEY_AT] == opening[:_KEY_AT]:
        highest, data = data[_KEY_AT : len(opening)], data[len(opening) :]
    count, odd = divmod(len(data), length)
    if odd:
        return None
    keys = set(range(form.first, form.first + size)) | set(range(form.after, form.after + size))
    for offset, byte in enumerate(form.bytes):
        if offset not in keys and data[offset::length] != bytes([byte]) * count:
            return None
    firsts = _addresses(family, _taken(data, form.first, length, size))
    lasts = [after - 1 for after in _addresses(family, _taken(data, form.after, length, size))]
    if highest:
        firsts.append(int.from_bytes(highest, "big"))
        lasts.append(family.last_address)
    if any(a > b for a, b in zip(firsts, lasts, strict=True)) or any(
        b >= a for a, b in zip(firsts[1:], lasts, strict=False)
    ):
        return None
    return Intervals(firsts, lasts)


def _taken(data: bytes, place: int, length: int, size: int) -> bytes:
    """Return the keys of a descending list, one after the other, ascending."""
    count = len(data) // length
    keys = bytearray(count * size)
    for offset in range(size):
        keys[offset::size] = data[place + offset :: length][::-1]
    return bytes(keys)


def _keys(family: Family, column: Sequence[int]) -> bytes:
    """Return addresses in network order, one after the other."""
    if family is Family.IPV6:
        return b"".join([address.to_bytes(16, "big") for address in column])
    numbers = array("I", column)
    if sys.byteorder == "little":
        numbers.byteswap()
    return numbers.tobytes()


def _addresses(family: Family, keys: bytes) -> list[int]:
    if family is Family.IPV6:
        from_bytes = int.from_bytes
        return [from_bytes(keys[at : at + 16], "big") for at in range(0, len(keys), 16)]
    numbers = array("I", keys)
    if sys.byteorder == "little":
        numbers.byteswap()
    return numbers.tolist()
