"""Questions to nf_tables over netlink: its objects as attributes, its rules as expressions.

``iptables-nft-save`` prints the part of a rule that it understands and exits with 0, so
what it prints can be less than what the kernel does. The kernel's own list of each rule's
expressions tells.

Attribute numbers: include/uapi/linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ipmasq_agent.errors import KernelReadError
from ipmasq_agent.netlink import core as netlink
from ipmasq_agent.netlink.core import attribute, attributes, text
from ipmasq_agent.policy.addresses import Family

NETLINK_NETFILTER = 12
SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_GET_RULE, _GET_GENERATION = 7, 16
_GENERATION_ID = 1
_LENGTH = struct.Struct("=H")  # how struct nlattr begins
_PREFIX = struct.Struct("!BBH")  # struct nfgenmsg
PROTOCOL = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
INET = 1
"""NFPROTO_INET: tables for packets of both families, in place of one of them."""
_RULE_TABLE, _RULE_CHAIN, _RULE_HANDLE, _RULE_EXPRESSIONS, _RULE_USERDATA = 1, 2, 3, 4, 7
_COMMENT = 0  # NFTNL_UDATA_TABLE_COMMENT, NFTNL_UDATA_RULE_COMMENT of libnftnl
# What a kernel without nfnetlink, or without its nf_tables part, answers (net/netfilter/
# nfnetlink.c, nfnetlink_rcv_msg).
_NO_NF_TABLES = frozenset({errno.EPROTONOSUPPORT, errno.EINVAL})


class Expression(NamedTuple):
    """One expression of a rule: its kind, and its attributes as the kernel packs them.

    Counters are left out of ``data``, so that a rule equals itself after it has counted.
    """

    kind: str
    data: bytes = b""


Expressions = tuple[Expression, ...]


class ListedRule(NamedTuple):
    """A rule as the kernel lists it; what it says is taken apart when somebody asks.

    A handle is never used again in its table, and a rule never changes but for what it has
    counted: the same handle is the same rule.
    """

    handle: int
    packed: bytes
    comment: str | None = None
    """What the nft program keeps beside a rule, and iptables shows as a comment match."""

    @property
    def expressions(self) -> Expressions:
        """What the rule is made of."""
        return tuple(expressions_of(self.packed))


def protocol_of(family: Family | int) -> int:
    """Return the number of a family, or of what stands in its place (``INET``)."""
    return PROTOCOL[family] if isinstance(family, Family) else family


def list_chain(family: Family | int, table: str, chain: str) -> list[ListedRule]:
    """Return the rules of one chain, in order; none where there is no such chain.

    The kernel passes over the rules of others: asked for one chain, it walks that one only
    (nf_tables_dump_rules).

    Raises:
        KernelReadError: the kernel refuses, or the rules never stand still.
    """
    request = attribute(_RULE_TABLE, table.encode() + b"\0")
    request += attribute(_RULE_CHAIN, chain.encode(errors="surrogateescape") + b"\0")
    return [
        ListedRule(
            number(rule.get(_RULE_HANDLE)),
            rule.get(_RULE_EXPRESSIONS, b""),
            comment_in(rule.get(_RULE_USERDATA, b"")),
        )
        for rule in dump(_GET_RULE, family, request)
    ]


def list_rules(family: Family, table: str) -> dict[str, list[Expressions]]:
    """Return chain → the expressions of each of its rules, in order, of a whole table.

    For a table of our own: that of others may hold a hundred thousand rules.

    Raises:
        KernelReadError: the kernel refuses, or the rules never stand still.
    """
    rules: dict[str, list[Expressions]] = {}
    for reply in dump(_GET_RULE, family, attribute(_RULE_TABLE, table.encode() + b"\0")):
        expressions = tuple(expressions_of(reply.get(_RULE_EXPRESSIONS, b"")))
        rules.setdefault(text(reply.get(_RULE_CHAIN)), []).append(expressions)
    return rules


def expressions_of(data: bytes) -> Iterator[Expression]:
    """Yield the expressions of a rule.

    A dump names the expression before its data (nft_expr_fill, net/netfilter/
    nf_tables_api.c). This runs for every expression of the table at every pass, hence
    the plain slices.
    """
    position, length_at = 0, _LENGTH.unpack_from
    while position + 8 <= len(data):
        (length,) = length_at(data, position)
        element = data[position + 4 : position + length]
        position += length + 3 & ~3
        (name_end,) = length_at(element)
        kind = element[4 : name_end - 1].decode()
        details = (name_end + 3 & ~3) + 4
        yield Expression(kind, b"" if kind == "counter" else element[details:])


def generation() -> int:
    """Return the number of the ruleset's generation: each commit by anyone changes it.

    Raises:
        KernelReadError: the kernel refuses.
    """
    number = generation_if_any()
    if number is None:
        raise KernelReadError("nf_tables does not tell its generation")
    return number


def generation_if_any() -> int | None:
    """Return the number of the ruleset's generation; None where there is no nf_tables.

    Raises:
        KernelReadError: the kernel refuses.
    """
    found = ask(_GET_GENERATION, socket.AF_UNSPEC, b"")
    if found is None or _GENERATION_ID not in found:
        return None
    return int.from_bytes(found[_GENERATION_ID], "big")


def ask(message: int, protocol: int, request: bytes) -> dict[int, bytes] | None:
    """Return the attributes of the one object that is asked for; None where it is not there.

    Args:
        message: which kind (NFT_MSG_GET...).
        protocol: AF_INET or AF_INET6.
        request: the attributes that name the object.

    Raises:
        KernelReadError: the kernel refuses.
    """
    try:
        body = netlink.ask(NETLINK_NETFILTER, SUBSYSTEM << 8 | message, prefix(protocol) + request)
    except OSError as cause:
        if cause.errno == errno.ENOENT or cause.errno in _NO_NF_TABLES:
            return None
        raise _refused("for one of its objects", cause) from cause
    return None if body is None else dict(attributes(body, _PREFIX.size))


def prefix(protocol: int, resource: int = 0) -> bytes:
    """Return what comes before the attributes of each message to netfilter."""
    return _PREFIX.pack(protocol, 0, resource)


def _refused(what: str, cause: OSError) -> KernelReadError:
    return KernelReadError(
        f"nf_tables cannot be asked {what}: {cause}",
        remedy="run as root, or with the capability NET_ADMIN",
    )


def dump(
    message: int,
    family: Family | int,
    request: bytes,
    keep: Callable[[bytes], bool] | None = None,
) -> list[dict[int, bytes]]:
    """Return the attributes of each object of a dump, from one state of the ruleset.

    Args:
        message: which kind (NFT_MSG_GET...).
        family: whose.
        request: the attributes that say which objects.
        keep: whether an object is asked for, by its packed attributes; None for all.
    """

    def take(body: bytes) -> dict[int, bytes] | None:
        return dict(attributes(body, _PREFIX.size)) if keep is None or keep(body) else None

    named = family.value if isinstance(family, Family) else "inet"
    request = prefix(protocol_of(family)) + request
    try:
        replies = netlink.dump(NETLINK_NETFILTER, SUBSYSTEM << 8 | message, request, take)
    except OSError as cause:
        if cause.errno == errno.ENOENT:
            return []
        raise _refused(f"for its {named} rules", cause) from cause
    if replies is None:
        raise KernelReadError(
            f"the nf_tables rules of {named} changed {netlink.TRIES} times while they were listed",
            remedy="find out which program rewrites them without pause",
        )
    return replies


def number(value: bytes | None) -> int:
    """Return a number as nf_tables gives them: in network order; 0 where there is none."""
    return int.from_bytes(value or b"", "big")


def packed_comment(words: str) -> bytes:
    """Return a comment as nft keeps it in the user data of a table or rule."""
    value = words.encode() + b"\0"
    return bytes([_COMMENT, len(value)]) + value


def comment_in(data: bytes) -> str | None:
    """Return the comment in user data, which is type and length as bytes, then the value."""
    position = 0
    while position + 2 <= len(data):
        kind, length = data[position], data[position + 1]
        if kind == _COMMENT:
            return text(data[position + 2 : position + 2 + length])
        position += 2 + length
    return None
