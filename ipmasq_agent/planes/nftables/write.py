"""A change of our nftables table as the kernel's messages."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence

from ipmasq_agent.netlink.core import APPEND, CREATE, EXCLUSIVE, attribute, nested
from ipmasq_agent.netlink.nf import packed_comment
from ipmasq_agent.netlink.nft_batch import Batch
from ipmasq_agent.netlink.nft_elements import Element, Intervals, packed_elements, packed_intervals
from ipmasq_agent.planes.nftables.plan import Plan, SetChange
from ipmasq_agent.planes.nftables.state import BESIDE, COMMENT, Kind, NftSet
from ipmasq_agent.planes.nftables.wire import JUMP, name_bytes, packed_rule, verdict_bytes
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


class Writing:
    """A change on its way to the kernel.

    What refers to something goes before it and comes after it: rules to sets and chains,
    the elements of a verdict map to chains.

    Attributes:
        held_as: the names of sets in the kernel, once it is done, where not their own.
    """

    def __init__(self, change: Plan) -> None:
        self.plan = change
        self.actual, self.desired = change.actual, change.desired
        self.family = self.desired.family
        self._table = attribute(1, name_bytes(self.desired.name))
        self._batch = Batch(self.family)
        self._replaced = [edit.name for edit in change.sets_changed if not edit.in_place]
        before = {} if change.anew else self.actual.held_as
        self.held_as = {own: raw for own, raw in before.items() if own in self.desired.sets}
        for name in self._replaced:
            self.held_as[name] = _beside(self._raw(name))
        chains = self.desired.chains if change.anew else change.chains_added
        self._hooked = [name for name in chains if self.desired.chains[name].hook]
        self._hookless = [name for name in chains if name not in self._hooked]

    def preparation(self) -> Batch:
        """Return what packets do not meet yet: new sets, and the chains of new parts.

        Not where a table is to be undone: then it is all made at once.
        """
        if self.plan.anew and not self.actual.exists and self.desired.exists:
            self._make_table()
        elif not self.plan.anew:
            taken = {self._raw(name) for name in self.actual.sets}
            for name in self._replaced:
                if self.held_as[name] in taken:
                    self._delete_set(self.held_as[name])  # left from a change broken off
            self._make(self.plan.sets_added)
        return self._taken()

    def change(self) -> Batch:
        """Return what makes it count."""
        if self.plan.anew:
            if self.actual.exists:
                self._add(_DELETE_TABLE, b"", "delete table")
                if self.desired.exists:
                    self._make_table()
            self._hook()
            return self._taken()
        plan = self.plan
        for name in (*plan.chains_removed, *plan.rewritten):
            self._add(_DELETE_RULE, attribute(2, name_bytes(name)), f"empty chain {name}")
        for edit in plan.sets_changed:
            if edit.in_place:
                self._edit(edit)
        self._hook()
        for name in plan.rewritten:
            self._fill(name)
        spared = set(self.held_as.values()) | {self._raw(name) for name in self._replaced}
        for name in plan.sets_removed:
            if self._raw(name) not in spared:
                self._delete_set(self._raw(name))
        for name in self._replaced:
            self._delete_set(self._raw(name))
        for name in plan.chains_removed:
            self._add(_DELETE_CHAIN, attribute(3, name_bytes(name)), f"delete chain {name}")
        return self._taken()

    def _taken(self) -> Batch:
        batch, self._batch = self._batch, Batch(self.family)
        return batch

    def _raw(self, name: str) -> str:
        """Return the name that a set has in the kernel now."""
        return self.actual.held_as.get(name, name)

    def _add(self, message: int, body: bytes, name: str, flags: int = 0) -> None:
        self._batch.add(message, flags, self._table + body, name)

    def _delete_set(self, raw: str) -> None:
        self._add(_DELETE_SET, attribute(2, name_bytes(raw)), f"delete set {raw}")

    def _make_table(self) -> None:
        body = attribute(6, packed_comment(COMMENT))
        self._add(_NEW_TABLE, body, "add table", CREATE | EXCLUSIVE)
        self._make(self.desired.sets)

    def _make(self, sets: Iterable[str]) -> None:
        """Add sets, and the chains that packets come to through them alone."""
        for name in self._hookless:
            self._add(_NEW_CHAIN, self._chain(name), f"add chain {name}", CREATE | EXCLUSIVE)
        for number, name in enumerate((*sets, *self._replaced), start=1):
            held, raw = self.desired.sets[name], self.held_as.get(name, name)
            body = _set(raw, number, held, self.family)
            self._add(_NEW_SET, body, f"add set {raw}", CREATE | EXCLUSIVE)
            self._elements(_NEW_ELEMENT, raw, _packed(self.family, held, range(len(held))))
        for name in self._hookless:
            self._fill(name)

    def _hook(self) -> None:
        for name in self._hooked:
            self._add(_NEW_CHAIN, self._chain(name), f"add chain {name}", CREATE | EXCLUSIVE)
            self._fill(name)

    def _fill(self, chain: str) -> None:
        for rule in self.desired.chains[chain].rules:
            packed = packed_rule(rule.renamed(self.held_as), self.family)
            body = attribute(2, name_bytes(chain)) + nested(4, packed)
            self._add(_NEW_RULE, body, f"add rule to {chain}", CREATE | APPEND)

    def _edit(self, edit: SetChange) -> None:
        actual, desired = self.actual.sets[edit.name], self.desired.sets[edit.name]
        gone = _packed(self.family, actual, edit.removed)
        # Without elements the message means all of them.
        whole = len(edit.removed) == len(actual) > 0
        self._elements(_DELETE_ELEMENT, self._raw(edit.name), (b"",) if whole else gone)
        come = _packed(self.family, desired, edit.added)
        self._elements(_NEW_ELEMENT, self._raw(edit.name), come)

    def _chain(self, name: str) -> bytes:
        hook = self.desired.chains[name].hook
        body = attribute(3, name_bytes(name))
        if hook is None:
            return body
        priority = hook.priority.to_bytes(4, "big", signed=True)
        where = attribute(1, _POSTROUTING.to_bytes(4, "big")) + attribute(2, priority)
        policy = attribute(5, _ACCEPT.to_bytes(4, "big"))
        return body + nested(4, where) + policy + attribute(7, name_bytes(hook.type))

    def _elements(self, message: int, name: str, parts: Iterable[bytes]) -> None:
        flags = CREATE | EXCLUSIVE if message == _NEW_ELEMENT else 0
        verb = "add to" if message == _NEW_ELEMENT else "delete from"
        for part in parts:
            elements = nested(3, part) if part else b""
            self._add(message, attribute(2, name_bytes(name)) + elements, f"{verb} {name}", flags)


def _beside(raw: str) -> str:
    return raw.removesuffix(BESIDE) if raw.endswith(BESIDE) else raw + BESIDE


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
            yield Element(name_bytes(held.names[position]).ljust(DEVICE_LENGTH, b"\0"))
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
