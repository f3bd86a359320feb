"""What nf_tables itself says about its rules, asked over netlink.

``iptables-nft-save`` prints the part of a rule that it understands and exits with 0, so
what it prints can be less than what the kernel does. The kernel's own list of each rule's
expressions tells. Written by hand rather than with pyroute2 because the daemon asks at
every resync, and that library alone is 24 MB of memory on every node.

Attribute numbers: include/uapi/linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from ipmasq_agent.errors import KernelReadError
from ipmasq_agent.policy.addresses import Family

NETLINK_NETFILTER = 12
_SUBSYSTEM = 10 << 8  # NFNL_SUBSYS_NFTABLES
_GET_CHAIN, _GET_RULE, _GET_GENERATION = _SUBSYSTEM | 4, _SUBSYSTEM | 7, _SUBSYSTEM | 16
_GENERATION_ID = 1
_FLAGS = 0x1 | 0x300  # NLM_F_REQUEST | NLM_F_DUMP
_ERROR, _DONE = 2, 3
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_TYPE_MASK = 0x3FFF
_INTERRUPTED = 0x10  # NLM_F_DUMP_INTR: the ruleset changed while it was listed
_PROTOCOL = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
_CHAIN_TABLE, _CHAIN_NAME = 1, 3
_RULE_TABLE, _RULE_CHAIN, _RULE_EXPRESSIONS = 1, 2, 4
_TRIES = 10
# What a kernel without nfnetlink, or without its nf_tables part, answers (net/netfilter/
# nfnetlink.c, nfnetlink_rcv_msg).
_NO_NF_TABLES = frozenset({errno.EPROTONOSUPPORT, errno.EINVAL})


class Expression(NamedTuple):
    """One expression of a rule: its kind, and its attributes as the kernel packs them.

    Counters are left out of ``data``, so that a rule equals itself after it has counted.
    """

    kind: str
    data: bytes = b""


def list_chains(family: Family, table: str) -> set[str]:
    """Return the names of a table's chains; none where there is no such table, or no nf_tables.

    Raises:
        KernelReadError: the kernel refuses, or the chains never stand still.
    """
    try:
        replies = _dump(_GET_CHAIN, family, b"")
    except KernelReadError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in _NO_NF_TABLES:
            return set()
        raise
    return {
        _text(found.get(_CHAIN_NAME))
        for found in replies
        if _text(found.get(_CHAIN_TABLE)) == table
    }


def list_rules(family: Family, table: str) -> dict[str, list[tuple[Expression, ...]]]:
    """Return chain → the expressions of each of its rules, in order.

    Raises:
        KernelReadError: the kernel refuses, or the rules never stand still.
    """
    request = _attribute(_RULE_TABLE, table.encode() + b"\0")
    rules: dict[str, list[tuple[Expression, ...]]] = {}
    for reply in _dump(_GET_RULE, family, request):
        if _text(reply.get(_RULE_TABLE)) == table:
            chain = _text(reply.get(_RULE_CHAIN))
            expressions = tuple(_expressions(reply.get(_RULE_EXPRESSIONS, b"")))
            rules.setdefault(chain, []).append(expressions)
    return rules


def _expressions(data: bytes) -> Iterator[Expression]:
    """Yield the expressions of a rule.

    A dump names the expression before its data (nft_expr_fill, net/netfilter/
    nf_tables_api.c). This runs for every expression of the table at every pass, hence
    the plain slices.
    """
    position = 0
    while position + 8 <= len(data):
        length, _ = _ATTRIBUTE.unpack_from(data, position)
        element = data[position + 4 : position + length]
        position += (length + 3) & ~3
        name_end, _ = _ATTRIBUTE.unpack_from(element)
        kind = element[4 : name_end - 1].decode()
        details = (name_end + 3 & ~3) + _ATTRIBUTE.size
        yield Expression(kind, b"" if kind == "counter" else element[details:])


def generation() -> int:
    """Return the number of the ruleset's generation: each commit by anyone changes it.

    Raises:
        KernelReadError: the kernel refuses.
    """
    body = struct.pack("=BBH", socket.AF_UNSPEC, 0, 0)
    try:
        with _netlink() as netlink:
            netlink.send(_HEADER.pack(_HEADER.size + len(body), _GET_GENERATION, 1, 1, 0) + body)
            data = netlink.recv(1 << 16)
    except OSError as cause:
        raise _refused("for its generation", cause) from cause
    length, kind, _, _, _ = _HEADER.unpack_from(data)
    found = dict(attributes(data[_HEADER.size + 4 : length]))
    if kind == _ERROR or _GENERATION_ID not in found:
        raise KernelReadError("nf_tables does not tell its generation")
    return int.from_bytes(found[_GENERATION_ID], "big")


def _netlink() -> socket.socket:
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
    netlink.settimeout(10)
    netlink.bind((0, 0))
    return netlink


def _refused(what: str, cause: OSError) -> KernelReadError:
    return KernelReadError(
        f"nf_tables cannot be asked {what}: {cause}",
        remedy="run as root, or with the capability NET_ADMIN",
    )


def _dump(message: int, family: Family, request: bytes) -> list[dict[int, bytes]]:
    """Return the attributes of each object of a dump, from one state of the ruleset."""
    for _ in range(_TRIES):
        replies = _dump_once(message, family, request)
        if replies is not None:
            return replies
    raise KernelReadError(
        f"the nf_tables rules of {family.value} changed {_TRIES} times while they were listed",
        remedy="find out which program rewrites them without pause",
    )


def _dump_once(message: int, family: Family, request: bytes) -> list[dict[int, bytes]] | None:
    body = struct.pack("=BBH", _PROTOCOL[family], 0, 0) + request
    try:
        with _netlink() as netlink:
            netlink.send(_HEADER.pack(_HEADER.size + len(body), message, _FLAGS, 1, 0) + body)
            return _collect(netlink)
    except OSError as cause:
        if cause.errno == errno.ENOENT:
            return []
        raise _refused(f"for its {family.value} rules", cause) from cause


def _collect(netlink: socket.socket) -> list[dict[int, bytes]] | None:
    """Return the replies to a dump, or None where it was interrupted by a change."""
    replies: list[dict[int, bytes]] = []
    interrupted = False
    while True:
        data = netlink.recv(1 << 17)
        position = 0
        while position < len(data):
            length, kind, flags, _, _ = _HEADER.unpack_from(data, position)
            payload = data[position + _HEADER.size : position + length]
            position += (length + 3) & ~3
            if kind == _DONE:
                return None if interrupted else replies
            if kind == _ERROR:
                (code,) = struct.unpack_from("=i", payload)
                if code in (-errno.EINTR, -errno.EAGAIN):
                    return None
                raise OSError(-code, os.strerror(-code))
            interrupted |= bool(flags & _INTERRUPTED)
            replies.append(dict(attributes(payload[4:])))  # past struct nfgenmsg


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the netlink attributes in ``data``: number and payload (include/net/netlink.h)."""
    position = 0
    while position + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, position)
        if length < _ATTRIBUTE.size:
            return
        yield kind & _TYPE_MASK, data[position + _ATTRIBUTE.size : position + length]
        position += (length + 3) & ~3


def _attribute(kind: int, value: bytes) -> bytes:
    padding = b"\0" * (-len(value) % 4)
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + padding


def _text(value: bytes | None) -> str:
    return (value or b"").rstrip(b"\0").decode(errors="surrogateescape")
