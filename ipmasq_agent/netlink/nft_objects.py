"""Tables, chains, rules and sets of nf_tables, as the kernel lists them.

Whatever asks raises ``KernelReadError`` where the kernel refuses, or the ruleset never stands
still.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ipmasq_agent.netlink import nft_numbers as nft
from ipmasq_agent.netlink.attributes import attribute, fields, name_bytes, nested, number, text
from ipmasq_agent.netlink.expressions import Expression, expressions_of
from ipmasq_agent.netlink.nf import ask, dump
from ipmasq_agent.netlink.nft_elements import (
    Element,
    Intervals,
    SetForm,
    elements_of,
    intervals_of,
    pack,
)
from ipmasq_agent.policy.addresses import Family

_COMMENT = 0  # NFTNL_UDATA_TABLE_COMMENT, NFTNL_UDATA_RULE_COMMENT of libnftnl
_U64 = 12  # the length of an attribute with 64 bits
# An expression that counts: its kind, its bytes (NFTA_COUNTER_BYTES) and its packets.
_COUNTED = re.compile(
    rb"(counter\0.{4})"
    + b"".join(re.escape(struct.pack("=HH", _U64, n)) + rb".{8}" for n in (1, 2)),
    re.DOTALL,
)
# The name of an expression of nft, or of a target of iptables.
_TRANSLATES = re.compile(rb"(?:masq|nat|MASQUERADE|SNAT)\0")


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


class ListedRule(NamedTuple):
    """A rule as the kernel lists it; what it says is taken apart when somebody asks.

    The same handle is not the same rule: one that replaces another takes it over.
    """

    chain: str
    handle: int
    packed: bytes
    comment: str | None = None
    """What the nft program keeps beside a rule, and iptables shows as a comment match."""

    @property
    def expressions(self) -> tuple[Expression, ...]:
        """What the rule is made of."""
        return expressions_of(self.packed)

    @property
    def uncounted(self) -> bytes:
        """What tells what the rule says from anything else, without what it has counted."""
        return _COUNTED.sub(rb"\1", self.packed)

    @property
    def packets(self) -> int | None:
        """How many have met its end; None where it does not count."""
        found = _COUNTED.search(self.packed)
        return None if found is None else int.from_bytes(found[0][-8:], "big")

    @property
    def translates(self) -> bool:
        """Whether it gives packets another source, in nft's words or in iptables'."""
        return _TRANSLATES.search(self.packed) is not None


class SetInfo(NamedTuple):
    """A set or a map.

    Attributes:
        handle: what tells it from another one of the same name.
        form: what it is of.
        size: how many elements it has, as the kernel counts; None where it does not tell
            (before Linux 6.15).
    """

    name: str
    handle: int
    form: SetForm
    size: int | None


def table_info(family: Family, name: str) -> TableInfo | None:
    """Return a table, or None where there is none of that name."""
    found = ask(nft.NFT_MSG_GETTABLE, family, _name(nft.NFTA_TABLE_NAME, name))
    return None if found is None else _table(found)


def table_infos(family: Family | int) -> dict[str, TableInfo]:
    """Return the tables of a family by name; none where there is no nf_tables."""
    replies = dump(nft.NFT_MSG_GETTABLE, family, b"")
    return {text(found.get(nft.NFTA_TABLE_NAME)): _table(found) for found in replies}


def _table(found: Mapping[int, bytes]) -> TableInfo:
    return TableInfo(
        number(found.get(nft.NFTA_TABLE_HANDLE)),
        number(found.get(nft.NFTA_TABLE_USE)),
        _comment_in(found.get(nft.NFTA_TABLE_USERDATA, b"")) or "",
        bool(number(found.get(nft.NFTA_TABLE_FLAGS)) & nft.NFT_TABLE_F_DORMANT),
    )


def chain_info(family: Family, table: str, name: str) -> ChainInfo | None:
    """Return a chain, or None where there is none of that name."""
    request = _name(nft.NFTA_CHAIN_TABLE, table) + _name(nft.NFTA_CHAIN_NAME, name)
    found = ask(nft.NFT_MSG_GETCHAIN, family, request)
    return None if found is None else _chain(found)


def base_chains(family: Family | int) -> list[tuple[str, ChainInfo]]:
    """Return the chains that packets enter by themselves, of all tables, each with its table.

    Of those that only rules lead to there may be very many.
    """
    types = [attribute(nft.NFTA_CHAIN_TYPE, kind + b"\0") for kind in (b"nat", b"filter", b"route")]
    found = list_chains(family, types)
    return [(table, chain) for table, chain in found if chain.hook is not None]


def list_chains(
    family: Family | int, having: Sequence[bytes] = (b"",)
) -> list[tuple[str, ChainInfo]]:
    """Return every chain that has one of these attributes, of all tables, each with its table."""
    replies = dump(
        nft.NFT_MSG_GETCHAIN, family, b"", lambda packed: any(one in packed for one in having)
    )
    return [(text(found.get(nft.NFTA_CHAIN_TABLE)), _chain(found)) for found in replies]


def _chain(found: Mapping[int, bytes]) -> ChainInfo:
    hook = fields(found.get(nft.NFTA_CHAIN_HOOK, b""))
    return ChainInfo(
        text(found.get(nft.NFTA_CHAIN_NAME)),
        number(found.get(nft.NFTA_CHAIN_HANDLE)),
        text(found.get(nft.NFTA_CHAIN_TYPE)),
        number(hook[nft.NFTA_HOOK_HOOKNUM]) if nft.NFTA_HOOK_HOOKNUM in hook else None,
        int.from_bytes(hook.get(nft.NFTA_HOOK_PRIORITY, b""), "big", signed=True),
        number(found.get(nft.NFTA_CHAIN_POLICY)),
    )


def list_rules(family: Family | int, table: str, chain: str | None = None) -> list[ListedRule]:
    """Return the rules of a table or one chain of it, in order; none where there is no such.

    The kernel passes over the rules of others: asked for one chain, it walks that one only
    (nf_tables_dump_rules).
    """
    request = _name(nft.NFTA_RULE_TABLE, table)
    request += b"" if chain is None else _name(nft.NFTA_RULE_CHAIN, chain)
    return [
        ListedRule(
            text(found.get(nft.NFTA_RULE_CHAIN)),
            number(found.get(nft.NFTA_RULE_HANDLE)),
            found.get(nft.NFTA_RULE_EXPRESSIONS, b""),
            _comment_in(found.get(nft.NFTA_RULE_USERDATA, b"")),
        )
        for found in dump(nft.NFT_MSG_GETRULE, family, request)
    ]


def set_info(family: Family | int, table: str, name: str) -> SetInfo | None:
    """Return a set or a map, or None where there is none of that name."""
    request = _name(nft.NFTA_SET_TABLE, table) + _name(nft.NFTA_SET_NAME, name)
    found = ask(nft.NFT_MSG_GETSET, family, request)
    return None if found is None else _set(found)


def list_sets(family: Family, table: str) -> list[SetInfo]:
    """Return the sets and maps of a table."""
    replies = dump(nft.NFT_MSG_GETSET, family, _name(nft.NFTA_SET_TABLE, table))
    return [_set(found) for found in replies if text(found.get(nft.NFTA_SET_TABLE)) == table]


def _set(found: Mapping[int, bytes]) -> SetInfo:
    key = number(found.get(nft.NFTA_SET_KEY_TYPE)), number(found.get(nft.NFTA_SET_KEY_LEN))
    form = SetForm(
        number(found.get(nft.NFTA_SET_FLAGS)), key, number(found.get(nft.NFTA_SET_DATA_TYPE))
    )
    return SetInfo(
        text(found.get(nft.NFTA_SET_NAME)),
        number(found.get(nft.NFTA_SET_HANDLE)),
        form,
        number(found[nft.NFTA_SET_COUNT]) if nft.NFTA_SET_COUNT in found else None,
    )


def list_keys(family: Family | int, table: str, name: str) -> list[bytes]:
    """Return the keys of a set that has no intervals."""
    return [element.key for element in elements_of(_packed_elements(family, table, name))]


def list_intervals(
    family: Family, table: str, name: str, protocol: Family | int | None = None
) -> Intervals:
    """Return the intervals of a set or a map of addresses.

    Args:
        family: of the addresses.
        table: where the set is.
        name: of the set.
        protocol: whose table it is, where that is not the family's.
    """
    return intervals_of(family, _packed_elements(protocol or family, table, name))


def _packed_elements(family: Family | int, table: str, name: str) -> bytes:
    replies = dump(nft.NFT_MSG_GETSETELEM, family, _of_set(table, name))
    return b"".join([found.get(nft.NFTA_SET_ELEM_LIST_ELEMENTS, b"") for found in replies])


def interval_at(family: Family, table: str, name: str, address: int) -> Intervals:
    """Return the interval that holds an address, or none.

    The kernel finds the nearest element at or below an address, and the nearest end at or
    above one (net/netfilter/nft_set_rbtree.c, nft_rbtree_get); no end where the interval
    reaches the last address.
    """
    size = family.bits // 8
    asked = [Element(address.to_bytes(size, "big"))]
    if address < family.last_address:
        asked.append(Element((address + 1).to_bytes(size, "big"), is_end=True))
    packed = b""
    for element in asked:
        request = _of_set(table, name) + nested(nft.NFTA_SET_ELEM_LIST_ELEMENTS, pack(element))
        found = ask(nft.NFT_MSG_GETSETELEM, family, request)
        if found is None:
            break
        packed += found.get(nft.NFTA_SET_ELEM_LIST_ELEMENTS, b"")
    return intervals_of(family, packed)


def _of_set(table: str, name: str) -> bytes:
    return _name(nft.NFTA_SET_ELEM_LIST_TABLE, table) + _name(nft.NFTA_SET_ELEM_LIST_SET, name)


def _name(kind: int, name: str) -> bytes:
    return attribute(kind, name_bytes(name))


def packed_comment(words: str) -> bytes:
    """Return a comment as nft keeps it in the user data of a table or rule."""
    value = words.encode() + b"\0"
    return bytes([_COMMENT, len(value)]) + value


def _comment_in(data: bytes) -> str | None:
    """Return the comment in user data, which is type and length as bytes, then the value."""
    position = 0
    while position + 2 <= len(data):
        kind, length = data[position], data[position + 1]
        if kind == _COMMENT:
            return text(data[position + 2 : position + 2 + length])
        position += 2 + length
    return None
