"""Elements of nf_tables sets as the kernel's bytes, by the hundred thousand.

A set of intervals holds two elements for each: the first address, and the one after the
last marked as an end; an interval that reaches the last address has no end. All that are
alike in form have the same length, so whole columns are packed and taken apart at once:
one element at a time costs ten times as much.

Attribute numbers: include/uapi/linux/netfilter/nf_tables.h, enum nft_set_elem_attributes.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from ipmasq_agent.errors import KernelReadError
from ipmasq_agent.netlink.core import attribute, attributes, nested
from ipmasq_agent.netlink.nf import number
from ipmasq_agent.policy.addresses import Family

_ELEMENT, _VALUE = 1, 1  # NFTA_LIST_ELEM, NFTA_DATA_VALUE
_KEY, _DATA, _FLAGS = 1, 2, 3
_IS_END = 1  # NFT_SET_ELEM_INTERVAL_END
# The elements of one message stand in one attribute, whose length is kept in 16 bits.
_LONGEST = 0xFFFF - 4


class Element(NamedTuple):
    """One element: its key, what a map gives for it, and whether it ends an interval.

    ``data`` is an attribute: NFTA_DATA_VALUE, or NFTA_DATA_VERDICT.
    """

    key: bytes
    data: bytes = b""
    is_end: bool = False


class Intervals(NamedTuple):
    """Intervals in ascending order, ends included, as two columns."""

    firsts: Sequence[int]
    lasts: Sequence[int]


def pack(element: Element) -> bytes:
    """Return one element as the kernel takes it."""
    data = nested(_DATA, element.data) if element.data else b""
    flags = attribute(_FLAGS, _IS_END.to_bytes(4, "big")) if element.is_end else b""
    return nested(_ELEMENT, nested(_KEY, attribute(_VALUE, element.key)), data, flags)


def _listed(element: Element) -> bytes:
    """Return one element as the kernel lists it: it marks no attribute as nested."""
    flags = attribute(_FLAGS, _IS_END.to_bytes(4, "big")) if element.is_end else b""
    return attribute(_ELEMENT, attribute(_KEY, attribute(_VALUE, element.key)) + flags)


def packed_intervals(family: Family, intervals: Intervals) -> Iterator[bytes]:
    """Yield intervals as the kernel takes them, as many at a time as a message can hold."""
    firsts, lasts = intervals
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
        parts = dict(attributes(one))
        key = dict(attributes(parts.get(_KEY, b""))).get(_VALUE, b"")
        yield Element(key, parts.get(_DATA, b""), bool(number(parts.get(_FLAGS)) & _IS_END))


def intervals_of(family: Family, data: bytes) -> Intervals:
    """Return the intervals in what the kernel lists.

    Raises:
        KernelReadError: the elements are not intervals of addresses.
    """
    return _columns(family, data) or _one_by_one(family, data)


def paired(family: Family, elements: Iterable[Element]) -> list[tuple[int, int, bytes]]:
    """Return first address, last address and data of each interval, ascending.

    Raises:
        KernelReadError: the elements are not intervals of addresses.
    """
    size = family.bits // 8
    # Where one interval ends and the next begins, the end comes first.
    keyed = sorted(elements, key=lambda element: (element.key, not element.is_end))
    found: list[tuple[int, int, bytes]] = []
    opened: Element | None = None
    for element in keyed:
        if len(element.key) != size:
            raise KernelReadError(
                f"a set of {family.value} addresses holds a key of {len(element.key)} bytes"
            )
        address = int.from_bytes(element.key, "big")
        if opened is not None:
            found.append((int.from_bytes(opened.key, "big"), address - 1, opened.data))
        # The nft program writes an end before the first interval too, which ends nothing.
        opened = None if element.is_end else element
    if opened is not None:
        found.append((int.from_bytes(opened.key, "big"), family.last_address, opened.data))
    return found


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


def _one_by_one(family: Family, data: bytes) -> Intervals:
    found = paired(family, elements_of(data))
    return Intervals([first for first, _, _ in found], [last for _, last, _ in found])


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
