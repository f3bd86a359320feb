"""Changes to nf_tables, many in one transaction: all of them, or none and an error.

One message buffer, one sendmsg(2): the kernel works through it before the call returns
(net/netfilter/nfnetlink.c, nfnetlink_rcv_batch), so a transaction of hundreds of
thousands of elements needs no answers in between.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Iterable, Iterator, Sequence

from ipmasq_agent.errors import HostError, KernelWriteError
from ipmasq_agent.netlink import core as netlink
from ipmasq_agent.netlink import nft_numbers as nft
from ipmasq_agent.netlink.attributes import attribute, name_bytes, nested, pack, u32
from ipmasq_agent.netlink.core import (
    ACKNOWLEDGE,
    APPEND,
    CREATE,
    EXCLUSIVE,
    REQUEST,
    Acknowledgement,
)
from ipmasq_agent.netlink.expressions import Expression, packed_expressions
from ipmasq_agent.netlink.nf import NETLINK_NETFILTER, SUBSYSTEM, prefix
from ipmasq_agent.netlink.nft_elements import (
    Element,
    Intervals,
    SetForm,
    packed_elements,
    packed_intervals,
)
from ipmasq_agent.netlink.nft_objects import packed_comment
from ipmasq_agent.policy.addresses import Family

_BEGIN, _END = 0x10, 0x11  # NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END
_SMALLEST_BUFFER = 1 << 20
# What the kernel answers where the rules are not what the change was made for.
_STALE = frozenset({errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.EBUSY, errno.ERESTART})
# What nft notes for itself, so that it prints elements as they are meant: the order of the
# bytes in keys and in data (libnftnl, NFTNL_UDATA_SET_KEYBYTEORDER and ..DATABYTEORDER).
_OF_KEY, _OF_DATA = 0, 1
_HOST_ORDER, _NETWORK_ORDER = 1, 2
_NEW = CREATE | EXCLUSIVE


class Stale(KernelWriteError):
    """The kernel holds something else than the change was planned on; nothing was written."""


class Batch:
    """A transaction on one table, being put together.

    What is added must be new, and what is deleted must be there; otherwise the kernel
    refuses all of it.
    """

    def __init__(self, family: Family, table: str) -> None:
        self.family = family
        self._table = name_bytes(table)
        self._parts: list[bytes] = []
        self._names: list[str] = []  # what each message does, for an error that people read
        self._last = (0, 0, b"")
        self._sets = 0

    def __bool__(self) -> bool:
        return bool(self._names)

    def add_table(self, comment: str) -> None:
        """Make the table."""
        body = attribute(nft.NFTA_TABLE_USERDATA, packed_comment(comment))
        self._add(nft.NFT_MSG_NEWTABLE, _NEW, body, "add table")

    def delete_table(self) -> None:
        """Delete the table with all that is in it."""
        self._add(nft.NFT_MSG_DELTABLE, 0, b"", "delete table")

    def add_chain(self, name: str, kind: str | None = None, priority: int = 0) -> None:
        """Make a chain; with a kind (``nat``), one that packets enter at postrouting."""
        body = attribute(nft.NFTA_CHAIN_NAME, name_bytes(name))
        if kind is not None:
            body += nested(
                nft.NFTA_CHAIN_HOOK,
                attribute(nft.NFTA_HOOK_HOOKNUM, u32(nft.NF_INET_POST_ROUTING)),
                attribute(nft.NFTA_HOOK_PRIORITY, priority.to_bytes(4, "big", signed=True)),
            )
            body += attribute(nft.NFTA_CHAIN_POLICY, u32(nft.NF_ACCEPT))
            body += attribute(nft.NFTA_CHAIN_TYPE, name_bytes(kind))
        self._add(nft.NFT_MSG_NEWCHAIN, _NEW, body, f"add chain {name}")

    def delete_chain(self, name: str) -> None:
        """Delete a chain that is empty and that nothing leads to."""
        body = attribute(nft.NFTA_CHAIN_NAME, name_bytes(name))
        self._add(nft.NFT_MSG_DELCHAIN, 0, body, f"delete chain {name}")

    def add_rules(self, chain: str, rules: Iterable[Sequence[Expression]]) -> None:
        """Append rules to a chain."""
        for rule in rules:
            packed = nested(nft.NFTA_RULE_EXPRESSIONS, packed_expressions(rule))
            body = attribute(nft.NFTA_RULE_CHAIN, name_bytes(chain)) + packed
            self._add(nft.NFT_MSG_NEWRULE, CREATE | APPEND, body, f"add rule to {chain}")

    def empty_chain(self, name: str) -> None:
        """Delete every rule of a chain."""
        body = attribute(nft.NFTA_RULE_CHAIN, name_bytes(name))
        self._add(nft.NFT_MSG_DELRULE, 0, body, f"empty chain {name}")

    def delete_rule(self, chain: str, handle: int) -> None:
        """Delete one rule."""
        body = attribute(nft.NFTA_RULE_CHAIN, name_bytes(chain))
        body += attribute(nft.NFTA_RULE_HANDLE, handle.to_bytes(8, "big"))
        self._add(nft.NFT_MSG_DELRULE, 0, body, f"delete rule {handle} of {chain}")

    def add_set(self, name: str, form: SetForm) -> None:
        """Make a set or a map."""
        self._sets += 1
        flags, (key, length), data = form
        numbers = {
            nft.NFTA_SET_FLAGS: flags,
            nft.NFTA_SET_KEY_TYPE: key,
            nft.NFTA_SET_KEY_LEN: length,
            nft.NFTA_SET_ID: self._sets,
        }
        if flags & nft.NFT_SET_MAP:
            numbers[nft.NFTA_SET_DATA_TYPE] = data
            numbers[nft.NFTA_SET_DATA_LEN] = 0 if data == nft.NFT_DATA_VERDICT else length
        body = attribute(nft.NFTA_SET_NAME, name_bytes(name))
        body += b"".join([attribute(kind, u32(value)) for kind, value in numbers.items()])
        order = _HOST_ORDER if key == nft.TYPE_IFNAME else _NETWORK_ORDER
        hints = [bytes([of, 4]) + order.to_bytes(4, sys.byteorder) for of in (_OF_KEY, _OF_DATA)]
        body += attribute(nft.NFTA_SET_USERDATA, b"".join(hints))
        self._add(nft.NFT_MSG_NEWSET, _NEW, body, f"add set {name}")

    def delete_set(self, name: str) -> None:
        """Delete a set or a map that nothing asks."""
        body = attribute(nft.NFTA_SET_NAME, name_bytes(name))
        self._add(nft.NFT_MSG_DELSET, 0, body, f"delete set {name}")

    def add_elements(self, name: str, elements: Intervals | Iterable[bytes]) -> None:
        """Add to a set or a map: intervals of addresses, or plain keys."""
        for packed in self._packed(elements):
            self._elements(nft.NFT_MSG_NEWSETELEM, _NEW, name, packed, f"add to {name}")

    def delete_elements(self, name: str, elements: Intervals | Iterable[bytes] | None) -> None:
        """Delete from a set or a map; None for all that is in it."""
        # Without elements the message means all of them.
        for packed in (b"",) if elements is None else self._packed(elements):
            self._elements(nft.NFT_MSG_DELSETELEM, 0, name, packed, f"delete from {name}")

    def _packed(self, elements: Intervals | Iterable[bytes]) -> Iterator[bytes]:
        if isinstance(elements, Intervals):
            return packed_intervals(self.family, elements)
        return packed_elements(map(Element, elements))

    def _elements(self, message: int, flags: int, name: str, packed: bytes, what: str) -> None:
        body = attribute(nft.NFTA_SET_ELEM_LIST_SET, name_bytes(name))
        body += nested(nft.NFTA_SET_ELEM_LIST_ELEMENTS, packed) if packed else b""
        self._add(message, flags, body, what)

    def _add(self, message: int, flags: int, body: bytes, name: str) -> None:
        # NFTA_..._TABLE is the same number in messages of each kind.
        body = prefix(self.family) + attribute(nft.NFTA_TABLE_NAME, self._table) + body
        self._names.append(name)
        self._last = SUBSYSTEM << 8 | message, REQUEST | flags, body
        self._parts.append(self._packed_last())

    def _packed_last(self, more: int = 0) -> bytes:
        kind, flags, body = self._last
        return pack(kind, flags | more, len(self._names), body)

    def commit(self) -> None:
        """Send the transaction; one of nothing changes nothing.

        Raises:
            Stale: the ruleset is not the one that the change was made for.
            HostError: the kernel refuses.
        """
        if not self:
            return
        self._parts[-1] = self._packed_last(ACKNOWLEDGE)
        data = b"".join([_mark(_BEGIN, 0), *self._parts, _mark(_END, len(self._names) + 1)])
        self._parts.clear()
        try:
            room = max(len(data) + 4096, _SMALLEST_BUFFER)
            with netlink.connect(NETLINK_NETFILTER, send_buffer=room) as kernel:
                kernel.send(data)
                # That of the last message comes after the refusals of all others.
                first = next(netlink.acknowledgements(kernel))
        except OSError as cause:
            raise HostError(
                f"a change of {len(data)} bytes to the {self.family.value} rules cannot be sent "
                f"to nf_tables: {cause}",
                remedy=_remedy(cause.errno or 0),
            ) from cause
        if first.code:
            raise self._error(first)

    def _error(self, first: Acknowledgement) -> HostError | Stale:
        number, code, more = first
        name = self._names[number - 1] if 0 < number <= len(self._names) else "commit"
        words = os.strerror(code) + (f": {more}" if more else "")
        what = f"nf_tables refuses to change its {self.family.value} rules ({name}: {words})"
        if code in _STALE:
            remedy = "nothing was written; the agent reads and tries again"
            if code == errno.ENOENT and name.startswith("add chain"):
                # The table is of the same transaction, or was read just before.
                remedy = (
                    f"this kernel may have no nat for {self.family.value}: load nft_chain_nat, or "
                    "for IPv6 leave --enable-ipv6 away"
                )
            return Stale(what, remedy=remedy)
        return HostError(what, remedy=_remedy(code))


def delete_rules(family: Family, table: str, chain: str, handles: Iterable[int]) -> None:
    """Delete rules of a chain by their handles, all of them or none.

    Raises:
        Stale: one of them is not there.
        HostError: the kernel refuses.
    """
    batch = Batch(family, table)
    for handle in handles:
        batch.delete_rule(chain, handle)
    batch.commit()


def _remedy(code: int) -> str:
    if code in (errno.EPERM, errno.EACCES):
        return "run as root, or with the capability NET_ADMIN"
    if code in (errno.ENOMEM, errno.ENOBUFS):
        return "give the node or the container more memory; nothing was written"
    if code in (errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EINVAL, errno.EAFNOSUPPORT):
        return (
            "the kernel lacks a part of nf_tables: load nft_chain_nat, nft_masq, nft_nat, "
            "nft_fib_ipv4, nft_fib_ipv6 and nft_numgen, or use another --backend"
        )
    return "nothing was written"


def _mark(kind: int, sequence: int) -> bytes:
    return pack(kind, REQUEST, sequence, prefix(socket.AF_UNSPEC, SUBSYSTEM))
