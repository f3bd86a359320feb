"""Tables, chains and sets of nf_tables, as the kernel lists them.

Attribute numbers: include/uapi/linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ipmasq_agent.netlink.core import attribute, attributes, nested, text
from ipmasq_agent.netlink.nf import PROTOCOL, ask, comment_in, dump, number, protocol_of
from ipmasq_agent.netlink.nft_elements import Element, elements_of, pack
from ipmasq_agent.policy.addresses import Family

_GET_TABLE, _GET_CHAIN, _GET_SET, _GET_ELEMENT = 1, 4, 10, 13
_TABLE_NAME, _TABLE_FLAGS, _TABLE_USE, _TABLE_HANDLE, _TABLE_USERDATA = 1, 2, 3, 4, 6
_DORMANT = 1  # NFT_TABLE_F_DORMANT
_CHAIN_HANDLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_TYPE = 2, 3, 4, 5, 7
_HOOK_NUMBER, _HOOK_PRIORITY = 1, 2
_SET_NAME, _SET_FLAGS, _SET_KEY_TYPE, _SET_KEY_LENGTH, _SET_DATA_TYPE = 2, 3, 4, 5, 6
_SET_HANDLE, _SET_COUNT = 16, 20
_OF_TABLE = 1  # NFTA_..._TABLE, of chains, sets and lists of elements alike
_ELEMENTS_SET, _ELEMENTS = 2, 3


class TableInfo(NamedTuple):
    """A table: its handle, how many objects it holds, its comment.

    Packets meet no chain of one that is dormant.
    """

    handle: int
    use: int
    comment: str
    dormant: bool


class ChainInfo(NamedTuple):
    """A chain; ``hook`` is None where packets come from other chains only."""

    name: str
    handle: int
    type: str
    hook: int | None
    priority: int
    policy: int


class SetInfo(NamedTuple):
    """A set or a map.

    Attributes:
        handle: what tells it from another one of the same name.
        flags: NFT_SET_...
        key: the type of its keys, and their length in bytes.
        data: the type of what a map gives.
        size: how many elements it has, as the kernel counts; None where it does not tell
            (before Linux 6.15).
    """

    name: str
    handle: int
    flags: int
    key: tuple[int, int]
    data: int
    size: int | None


def table_info(family: Family, name: str) -> TableInfo | None:
    """Return a table, or None where there is none of that name.

    Raises:
        KernelReadError: the kernel refuses.
    """
    found = ask(_GET_TABLE, PROTOCOL[family], _name(_TABLE_NAME, name))
    return None if found is None else _table(found)


def _table(found: Mapping[int, bytes]) -> TableInfo:
    return TableInfo(
        number(found.get(_TABLE_HANDLE)),
        number(found.get(_TABLE_USE)),
        comment_in(found.get(_TABLE_USERDATA, b"")) or "",
        bool(number(found.get(_TABLE_FLAGS)) & _DORMANT),
    )


def table_infos(family: Family | int) -> dict[str, TableInfo]:
    """Return the tables of a family by name; none where there is no nf_tables.

    Raises:
        KernelReadError: the kernel refuses.
    """
    return {text(found.get(_TABLE_NAME)): _table(found) for found in dump(_GET_TABLE, family, b"")}


def chain_info(family: Family, table: str, name: str) -> ChainInfo | None:
    """Return a chain, or None where there is none of that name.

    Raises:
        KernelReadError: the kernel refuses.
    """
    found = ask(_GET_CHAIN, PROTOCOL[family], _name(_OF_TABLE, table) + _name(_CHAIN_NAME, name))
    return None if found is None else _chain(found)


def chain_infos(family: Family, table: str) -> list[ChainInfo]:
    """Return every chain of a table. The kernel lists those of all tables.

    Raises:
        KernelReadError: the kernel refuses.
    """
    replies = dump(_GET_CHAIN, family, _name(_OF_TABLE, table))
    return [_chain(found) for found in replies if text(found.get(_OF_TABLE)) == table]


def _chain(found: Mapping[int, bytes]) -> ChainInfo:
    hook = dict(attributes(found.get(_CHAIN_HOOK, b"")))
    return ChainInfo(
        text(found.get(_CHAIN_NAME)),
        number(found.get(_CHAIN_HANDLE)),
        text(found.get(_CHAIN_TYPE)),
        number(hook[_HOOK_NUMBER]) if _HOOK_NUMBER in hook else None,
        int.from_bytes(hook.get(_HOOK_PRIORITY, b""), "big", signed=True),
        number(found.get(_CHAIN_POLICY)),
    )


def base_chains(family: Family | int) -> list[tuple[str, ChainInfo]]:
    """Return the chains that packets enter by themselves, of all tables, each with its table.

    The kernel lists every chain; of those that only rules lead to there may be very many.

    Raises:
        KernelReadError: the kernel refuses.
    """
    hooked = [attribute(_CHAIN_TYPE, kind + b"\0") for kind in (b"nat", b"filter", b"route")]

    def keep(payload: bytes) -> bool:
        return any(kind in payload for kind in hooked)

    found = (
        (text(chain.get(_OF_TABLE)), _chain(chain)) for chain in dump(_GET_CHAIN, family, b"", keep)
    )
    return [(table, chain) for table, chain in found if chain.hook is not None]


def set_infos(family: Family, table: str) -> list[SetInfo]:
    """Return every set and map of a table, without elements.

    Raises:
        KernelReadError: the kernel refuses.
    """
    replies = dump(_GET_SET, family, _name(_OF_TABLE, table))
    return [_set(found) for found in replies if text(found.get(_OF_TABLE)) == table]


def set_info(family: Family | int, table: str, name: str) -> SetInfo | None:
    """Return a set or a map, or None where there is none of that name.

    Raises:
        KernelReadError: the kernel refuses.
    """
    found = ask(_GET_SET, protocol_of(family), _name(_OF_TABLE, table) + _name(_SET_NAME, name))
    return None if found is None else _set(found)


def _set(found: Mapping[int, bytes]) -> SetInfo:
    return SetInfo(
        text(found.get(_SET_NAME)),
        number(found.get(_SET_HANDLE)),
        number(found.get(_SET_FLAGS)),
        (number(found.get(_SET_KEY_TYPE)), number(found.get(_SET_KEY_LENGTH))),
        number(found.get(_SET_DATA_TYPE)),
        number(found[_SET_COUNT]) if _SET_COUNT in found else None,
    )


def list_elements(family: Family | int, table: str, name: str) -> bytes:
    """Return the elements of a set as the kernel packs them, in its order.

    Raises:
        KernelReadError: the kernel refuses, or the ruleset never stands still.
    """
    replies = dump(_GET_ELEMENT, family, _name(_OF_TABLE, table) + _name(_ELEMENTS_SET, name))
    return b"".join([found.get(_ELEMENTS, b"") for found in replies])


def interval_at(family: Family, table: str, name: str, address: int) -> Iterator[Element]:
    """Yield the elements of the interval that holds an address: its beginning and its end.

    None where no interval does, and no end where the interval reaches the last address.
    The kernel finds the nearest element at or below an address, and the nearest end at or
    above one (net/netfilter/nft_set_rbtree.c, nft_rbtree_get).

    Raises:
        KernelReadError: the kernel refuses.
    """
    size = family.bits // 8
    asked = [Element(address.to_bytes(size, "big"))]
    if address < family.last_address:
        asked.append(Element((address + 1).to_bytes(size, "big"), is_end=True))
    for element in asked:
        request = (
            _name(_OF_TABLE, table) + _name(_ELEMENTS_SET, name) + nested(_ELEMENTS, pack(element))
        )
        found = ask(_GET_ELEMENT, PROTOCOL[family], request)
        if found is None:
            return
        yield from elements_of(found.get(_ELEMENTS, b""))


def _name(kind: int, name: str) -> bytes:
    return attribute(kind, name.encode(errors="surrogateescape") + b"\0")
