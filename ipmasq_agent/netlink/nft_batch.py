"""Changes to nf_tables, many in one transaction: all of them, or none and an error.

One message buffer, one sendmsg(2): the kernel works through it before the call returns
(net/netfilter/nfnetlink.c, nfnetlink_rcv_batch), so a transaction of hundreds of
thousands of elements needs no answers in between.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterable

from ipmasq_agent.errors import HostError, KernelWriteError
from ipmasq_agent.netlink import core as netlink
from ipmasq_agent.netlink.core import (
    ACKNOWLEDGE,
    REQUEST,
    Acknowledgement,
    attribute,
    attributes,
    text,
)
from ipmasq_agent.netlink.nf import NETLINK_NETFILTER, PROTOCOL, SUBSYSTEM, prefix
from ipmasq_agent.policy.addresses import Family

_DELETE_RULE = 8  # NFT_MSG_DELRULE
_BEGIN, _END = 0x10, 0x11  # NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END
_SEND_BUFFER_FORCED = 32  # SO_SNDBUFFORCE
_NETLINK, _CAP_ACK, _EXTENDED_ACK = 270, 10, 11  # SOL_NETLINK, NETLINK_CAP_ACK, _EXT_ACK
_SMALLEST_BUFFER = 1 << 20
_MESSAGE = 1  # NLMSGERR_ATTR_MSG
_CAPPED, _HAS_ATTRIBUTES = 0x100, 0x200  # NLM_F_CAPPED, NLM_F_ACK_TLVS
# What the kernel answers where the rules are not what the change was made for.
_STALE = frozenset({errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.EBUSY, errno.ERESTART})


class Stale(KernelWriteError):
    """The kernel holds something else than the change was planned on; nothing was written."""


class Batch:
    """A transaction being put together, for one family."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self._parts = [_mark(_BEGIN, 0)]
        self._names = ["begin"]
        self._last: Callable[[int], bytes] | None = None

    def __bool__(self) -> bool:
        return len(self._names) > 1

    def add(self, message: int, flags: int, body: bytes, name: str) -> None:
        """Append a message.

        Args:
            message: its kind (NFT_MSG_...).
            flags: CREATE, EXCLUSIVE, APPEND, or 0.
            body: its attributes.
            name: what it does, for an error that people read.
        """
        self._flush(acknowledged=False)
        kind, sequence = SUBSYSTEM << 8 | message, len(self._names)
        body = prefix(PROTOCOL[self.family]) + body
        self._last = lambda more: netlink.pack(kind, REQUEST | flags | more, sequence, body)
        self._names.append(name)

    def _flush(self, *, acknowledged: bool) -> None:
        if self._last is not None:
            self._parts.append(self._last(ACKNOWLEDGE if acknowledged else 0))
            self._last = None

    def commit(self) -> None:
        """Send the transaction; one of nothing changes nothing.

        Raises:
            Stale: the ruleset is not the one that the change was made for.
            HostError: the kernel refuses.
        """
        if self._last is None:
            return
        self._flush(acknowledged=True)
        data = b"".join([*self._parts, _mark(_END, len(self._names))])
        self._parts.clear()
        try:
            with netlink.connect(NETLINK_NETFILTER) as kernel:
                kernel.setsockopt(_NETLINK, _CAP_ACK, 1)
                kernel.setsockopt(_NETLINK, _EXTENDED_ACK, 1)
                room = max(len(data) + 4096, _SMALLEST_BUFFER)
                kernel.setsockopt(socket.SOL_SOCKET, _SEND_BUFFER_FORCED, room)
                kernel.send(data)
                # That of the last message comes after the refusals of all others.
                first = next(netlink.acknowledgements(kernel))
        except OSError as cause:
            raise _unsent(self.family, len(data), cause) from cause
        if first.code:
            raise self._error(first)

    def _error(self, first: Acknowledgement) -> HostError | Stale:
        name = self._names[first.sequence] if first.sequence < len(self._names) else "commit"
        more = _words(first)
        words = os.strerror(first.code) + (f": {more}" if more else "")
        what = f"nf_tables refuses to change its {self.family.value} rules ({name}: {words})"
        if first.code in _STALE:
            return Stale(what, remedy="nothing was written; the agent reads and tries again")
        return HostError(what, remedy=_remedy(first.code))


def delete_rules(family: Family, table: str, chain: str, handles: Iterable[int]) -> None:
    """Delete rules of a chain by their handles, all of them or none.

    Raises:
        Stale: one of them is not there.
        HostError: the kernel refuses.
    """
    batch = Batch(family)
    place = attribute(1, table.encode() + b"\0") + attribute(2, chain.encode() + b"\0")
    for handle in handles:
        body = place + attribute(3, handle.to_bytes(8, "big"))
        batch.add(_DELETE_RULE, 0, body, f"delete rule {handle} of {chain}")
    batch.commit()


def _unsent(family: Family, length: int, cause: OSError) -> HostError:
    return HostError(
        f"a change of {length} bytes to the {family.value} rules cannot be sent to nf_tables: "
        f"{cause}",
        remedy=_remedy(cause.errno or 0),
    )


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
    return netlink.pack(kind, REQUEST, sequence, prefix(socket.AF_UNSPEC, SUBSYSTEM))


def _words(refusal: Acknowledgement) -> str:
    """Return what the kernel says about an error (extended acknowledgement), if anything."""
    if not refusal.flags & _HAS_ATTRIBUTES:
        return ""
    start = 4 + netlink.HEADER.size
    if not refusal.flags & _CAPPED:
        (length,) = struct.unpack_from("=I", refusal.body, 4)
        start = 4 + ((length + 3) & ~3)
    return text(dict(attributes(refusal.body, start)).get(_MESSAGE))
