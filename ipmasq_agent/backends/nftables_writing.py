"""A change of our nftables table as one transaction of the kernel's messages."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence

from ipmasq_agent.backends.nftables_codec import JUMP, name_bytes, packed_rule, verdict_bytes
from ipmasq_agent.dialects.nftables_plan import Plan
from ipmasq_agent.dialects.nftables_rules import NftRule
from ipmasq_agent.dialects.nftables_state import COMMENT, Kind, NftSet
from ipmasq_agent.host.nfnetlink import attribute, nested
from ipmasq_agent.host.nft_batch import APPEND, CREATE, EXCLUSIVE, Batch
from ipmasq_agent.host.nft_elements import Element, Intervals, packed_elements, packed_intervals
from ipmasq_agent.host.nft_objects import packed_comment
from ipmasq_agent.policy.addresses import Family

_NEW_TABLE, _DELETE_TABLE, _NEW_CHAIN, _DELETE_CHAIN = 0, 2, 3, 5
_NEW_RULE, _DELETE_RULE, _NEW_SET, _DELETE_SET = 6, 8, 9, 11
_NEW_ELEMENT, _DELETE_ELEMENT = 12, 14
_POSTROUTING, _ACCEPT = 4, 1  # NF_INET_POST_ROUTING, NF_ACCEPT
INTERVAL, MAP = 4, 8  # NFT_SET_INTERVAL, NFT_SET_MAP
# Types as nft numbers them (its include/datatype.h); to the kernel all but verdicts are
# mere numbers.
ADDRESS_TYPE = {Family.IPV4: 7, Family.IPV6: 8}
DEVICE_TYPE, DEVICE_LENGTH = 41, 16
VERDICT_TYPE = 0xFFFFFF00
# What nft notes for itself, so that it prints elements as they are meant: the order of the
# bytes in keys and in data (libnftnl, NFTNL_UDATA_SET_KEYBYTEORDER and ..DATABYTEORDER).
_OF_KEY, _OF_DATA = 0, 1
_HOST_ORDER, _NETWORK_ORDER = 1, 2


def transaction(change: Plan) -> Batch:
    """Return ``change`` as a transaction.

    What refers to something goes before it and comes after it: rules to sets and chains,
    the elements of a verdict map to chains.
    """
    return _Writing(change).batch


class _Writing:
    def __init__(self, change: Plan) -> None:
        self.change = change
        self.actual, self.desired = change.actual, change.desired
        self.family = self.desired.family
        self.table = attribute(1, name_bytes(self.desired.name))
        self.batch = Batch(self.family)
        if change.anew:
            if self.actual.exists:
                self._add(_DELETE_TABLE, b"", "delete table")
            if self.desired.exists:
                self._make(tuple(self.desired.chains), tuple(self.desired.sets), new_table=True)
        else:
            self._remove()
            self._make(change.chains_added, change.sets_added)

    def _add(self, message: int, body: bytes, name: str, flags: int = 0) -> None:
        self.batch.add(message, flags, self.table + body, name)

    def _remove(self) -> None:
        change = self.change
        for name in (*change.chains_removed, *change.rewritten):
            self._add(_DELETE_RULE, attribute(2, name_bytes(name)), f"empty chain {name}")
        for edit in change.sets_changed:
            held = self.actual.sets[edit.name]
            parts = _packed(self.family, held, edit.removed)
            # Without elements the message means all of them.
            whole = len(edit.removed) == len(held) > 0
            self._elements(_DELETE_ELEMENT, edit.name, (b"",) if whole else parts)
        for name in change.sets_removed:
            self._add(_DELETE_SET, attribute(2, name_bytes(name)), f"delete set {name}")
        for name in change.chains_removed:
            self._add(_DELETE_CHAIN, attribute(3, name_bytes(name)), f"delete chain {name}")

    def _make(self, chains: Sequence[str], sets: Sequence[str], *, new_table: bool = False) -> None:
        if new_table:
            body = attribute(6, packed_comment(COMMENT))
            self._add(_NEW_TABLE, body, "add table", CREATE | EXCLUSIVE)
        for name in chains:
            self._add(_NEW_CHAIN, self._chain(name), f"add chain {name}", CREATE | EXCLUSIVE)
        for number, name in enumerate(sets, start=1):
            body = _set(name, number, self.desired.sets[name], self.family)
            self._add(_NEW_SET, body, f"add set {name}", CREATE | EXCLUSIVE)
            held = self.desired.sets[name]
            everything = range(len(held))
            self._elements(_NEW_ELEMENT, name, _packed(self.family, held, everything))
        for edit in self.change.sets_changed:
            held = self.desired.sets[edit.name]
            self._elements(_NEW_ELEMENT, edit.name, _packed(self.family, held, edit.added))
        for name in (*chains, *self.change.rewritten):
            for rule in self.desired.chains[name].rules:
                self._add(_NEW_RULE, self._rule(name, rule), f"add rule to {name}", CREATE | APPEND)

    def _chain(self, name: str) -> bytes:
        hook = self.desired.chains[name].hook
        body = attribute(3, name_bytes(name))
        if hook is None:
            return body
        priority = hook.priority.to_bytes(4, "big", signed=True)
        where = attribute(1, _POSTROUTING.to_bytes(4, "big")) + attribute(2, priority)
        policy = attribute(5, _ACCEPT.to_bytes(4, "big"))
        return body + nested(4, where) + policy + attribute(7, name_bytes(hook.type))

    def _rule(self, chain: str, rule: NftRule) -> bytes:
        return attribute(2, name_bytes(chain)) + nested(4, packed_rule(rule, self.family))

    def _elements(self, message: int, name: str, parts: Iterable[bytes]) -> None:
        flags = CREATE | EXCLUSIVE if message == _NEW_ELEMENT else 0
        verb = "add to" if message == _NEW_ELEMENT else "delete from"
        for part in parts:
            elements = nested(3, part) if part else b""
            self._add(message, attribute(2, name_bytes(name)) + elements, f"{verb} {name}", flags)


def _set(name: str, number: int, held: NftSet, family: Family) -> bytes:
    flags = 0 if held.kind is Kind.DEVICES else INTERVAL
    key = (ADDRESS_TYPE[family], family.bits // 8)
    if held.kind is Kind.DEVICES:
        key = (DEVICE_TYPE, DEVICE_LENGTH)
    values = {4: key[0], 5: key[1], 10: number}
    if held.kind is Kind.TRANSLATIONS:
        flags |= MAP
        values |= {6: key[0], 7: key[1]}
    elif held.kind is Kind.PARTS:
        flags |= MAP
        values |= {6: VERDICT_TYPE, 7: 0}
    numbers = (attribute(n, value.to_bytes(4, "big")) for n, value in {3: flags, **values}.items())
    order = _HOST_ORDER if held.kind is Kind.DEVICES else _NETWORK_ORDER
    hints = b"".join(
        bytes([kind, 4]) + order.to_bytes(4, sys.byteorder) for kind in (_OF_KEY, _OF_DATA)
    )
    return attribute(2, name_bytes(name)) + b"".join(numbers) + attribute(13, hints)


def _packed(family: Family, held: NftSet, positions: Sequence[int]) -> Iterator[bytes]:
    """Yield the elements at ``positions`` as the kernel takes them, ascending."""
    if held.kind is Kind.ADDRESSES:
        if len(positions) == len(held):
            return packed_intervals(family, Intervals(held.firsts, held.lasts))
        firsts = [held.firsts[position] for position in positions]
        return packed_intervals(family, Intervals(firsts, [held.lasts[n] for n in positions]))
    return packed_elements(_elements(family, held, positions))


def _elements(family: Family, held: NftSet, positions: Sequence[int]) -> Iterator[Element]:
    size = family.bits // 8
    for position in positions:
        if held.kind is Kind.DEVICES:
            yield Element(held.names[position].encode().ljust(DEVICE_LENGTH, b"\0"))
            continue
        value = held.values[position]
        data = (
            verdict_bytes(JUMP, value)
            if isinstance(value, str)
            else attribute(1, value.to_bytes(size, "big"))
        )
        yield Element(held.firsts[position].to_bytes(size, "big"), data)
        if held.lasts[position] < family.last_address:
            yield Element((held.lasts[position] + 1).to_bytes(size, "big"), is_end=True)
