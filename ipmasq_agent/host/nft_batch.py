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
from collections.abc import Callable
from typing import NamedTuple

from ipmasq_agent.errors import HostError, KernelWriteError
from ipmasq_agent.host.nfnetlink import (
    ERROR,
    HEADER,
    PROTOCOL,
    REQUEST,
    SUBSYSTEM,
    attributes,
    open_netlink,
    packed,
)
from ipmasq_agent.policy.addresses import Family

_BEGIN, _END = 0x10, 0x11  # NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END
_ACKNOWLEDGE, EXCLUSIVE, CREATE, APPEND = 0x4, 0x200, 0x400, 0x800  # NLM_F_...
_SEND_BUFFER_FORCED = 32  # SO_SNDBUFFORCE
_NETLINK, _CAP_ACK, _EXTENDED_ACK = 270, 10, 11  # SOL_NETLINK, NETLINK_CAP_ACK, _EXT_ACK
_SMALLEST_BUFFER = 1 << 20
_MESSAGE = 1  # NLMSGERR_ATTR_MSG
_CAPPED, _HAS_ATTRIBUTES = 0x100, 0x200  # NLM_F_CAPPED, NLM_F_ACK_TLVS
# What the kernel answers where the rules are not what the change was made for.
_STALE = frozenset({errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.EBUSY, errno.ERESTART})


class Stale(KernelWriteError):
    """The kernel holds something else than the change was planned on; nothing was written."""


class _Refusal(NamedTuple):
    sequence: int
    code: int
    words: str


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
        sequence, protocol = len(self._names), PROTOCOL[self.family]
        self._last = lambda more: packed(message, REQUEST | flags | more, sequence, protocol, body)
        self._names.append(name)

    def _flush(self, *, acknowledged: bool) -> None:
        if self._last is not None:
            self._parts.append(self._last(_ACKNOWLEDGE if acknowledged else 0))
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
            with open_netlink() as netlink:
                netlink.setsockopt(_NETLINK, _CAP_ACK, 1)
                netlink.setsockopt(_NETLINK, _EXTENDED_ACK, 1)
                room = max(len(data) + 4096, _SMALLEST_BUFFER)
                netlink.setsockopt(socket.SOL_SOCKET, _SEND_BUFFER_FORCED, room)
                netlink.send(data)
                refusals = _refusals(netlink)
        except OSError as cause:
            raise _unsent(self.family, len(data), cause) from cause
        if refusals:
            raise self._error(refusals)

    def _error(self, refusals: list[_Refusal]) -> HostError | Stale:
        first = refusals[0]
        name = self._names[first.sequence] if first.sequence < len(self._names) else "commit"
        words = os.strerror(first.code) + (f": {first.words}" if first.words else "")
        what = f"nf_tables refuses to change its {self.family.value} rules ({name}: {words})"
        if first.code in _STALE:
            return Stale(what, remedy="nothing was written; the agent reads and tries again")
        return HostError(what, remedy=_remedy(first.code))


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
    body = struct.pack("=BB", socket.AF_UNSPEC, 0) + SUBSYSTEM.to_bytes(2, "big")
    return HEADER.pack(HEADER.size + len(body), kind, REQUEST, sequence, 0) + body


def _refusals(netlink: socket.socket) -> list[_Refusal]:
    """Return what the kernel refused; it has answered by now."""
    refusals: list[_Refusal] = []
    while True:
        data = netlink.recv(1 << 17)
        position = 0
        while position < len(data):
            length, kind, flags, sequence, _ = HEADER.unpack_from(data, position)
            payload = data[position + HEADER.size : position + length]
            position += (length + 3) & ~3
            if kind != ERROR:
                continue
            (code,) = struct.unpack_from("=i", payload)
            if code == 0:
                return refusals  # the last message's, which comes after those of all others
            refusals.append(_Refusal(sequence, -code, _words(payload, flags)))
        if refusals:
            return refusals


def _words(payload: bytes, flags: int) -> str:
    """Return what the kernel says about an error (extended acknowledgement), if anything."""
    if not flags & _HAS_ATTRIBUTES:
        return ""
    start = 4 + HEADER.size
    if not flags & _CAPPED:
        (length,) = struct.unpack_from("=I", payload, 4)
        start = 4 + ((length + 3) & ~3)
    found = dict(attributes(payload[start:])).get(_MESSAGE, b"")
    return found.rstrip(b"\0").decode(errors="replace")
