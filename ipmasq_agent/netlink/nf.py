"""Questions to nf_tables over netlink, and the state of the ruleset that an answer is of.

Whatever asks raises ``KernelReadError`` where the kernel refuses, or the ruleset never stands
still.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable
from typing import TypeVar

from ipmasq_agent.errors import KernelReadError
from ipmasq_agent.netlink import core as netlink
from ipmasq_agent.netlink import nft_numbers as nft
from ipmasq_agent.netlink.attributes import fields, number
from ipmasq_agent.policy.addresses import Family

NETLINK_NETFILTER = 12
SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_PREFIX = struct.Struct("!BBH")  # struct nfgenmsg
# What a kernel without nfnetlink, or without its nf_tables part, answers (net/netfilter/
# nfnetlink.c, nfnetlink_rcv_msg).
_NO_NF_TABLES = frozenset({errno.EPROTONOSUPPORT, errno.EINVAL})

T = TypeVar("T")


def prefix(protocol: Family | int, resource: int = 0) -> bytes:
    """Return what comes before the attributes of each message to netfilter.

    Args:
        protocol: a family, or what stands in its place (NFPROTO_INET, AF_UNSPEC).
        resource: the subsystem that a transaction is for.
    """
    value = nft.PROTOCOL[protocol] if isinstance(protocol, Family) else protocol
    return _PREFIX.pack(value, 0, resource)


def ask(message: int, protocol: Family | int, request: bytes) -> dict[int, bytes] | None:
    """Return the attributes of the one object that is asked for; None where it is not there."""
    try:
        body = netlink.ask(NETLINK_NETFILTER, SUBSYSTEM << 8 | message, prefix(protocol) + request)
    except OSError as cause:
        if cause.errno == errno.ENOENT or cause.errno in _NO_NF_TABLES:
            return None
        raise _refused("for one of its objects", cause) from cause
    return None if body is None else fields(body, _PREFIX.size)


def dump(
    message: int,
    protocol: Family | int,
    request: bytes,
    keep: Callable[[bytes], bool] = lambda _: True,
) -> list[dict[int, bytes]]:
    """Return the attributes of each object of a dump, from one state of the ruleset."""

    def take(body: bytes) -> dict[int, bytes] | None:
        return fields(body, _PREFIX.size) if keep(body) else None

    request = prefix(protocol) + request
    try:
        replies = netlink.dump(NETLINK_NETFILTER, SUBSYSTEM << 8 | message, request, take)
    except OSError as cause:
        if cause.errno == errno.ENOENT:
            return []
        raise _refused(f"for its {_shown(protocol)} rules", cause) from cause
    if replies is None:
        raise unquiet(protocol, netlink.TRIES)
    return replies


def generation() -> int:
    """Return the number of the ruleset's generation: each commit by anyone changes it."""
    found = generation_if_any()
    if found is None:
        raise KernelReadError("nf_tables does not tell its generation")
    return found


def generation_if_any() -> int | None:
    """Return the number of the ruleset's generation; None where there is no nf_tables."""
    found = ask(nft.NFT_MSG_GETGEN, socket.AF_UNSPEC, b"")
    if found is None or nft.NFTA_GEN_ID not in found:
        return None
    return number(found[nft.NFTA_GEN_ID])


def of_one_state(protocol: Family | int, read: Callable[[int | None], T]) -> T:
    """Return what ``read`` returns of a generation (None: no nf_tables) that stays meanwhile."""
    for _ in range(netlink.TRIES):
        before = generation_if_any()
        found = read(before)
        if generation_if_any() == before:
            return found
    raise unquiet(protocol, netlink.TRIES)


def _shown(protocol: Family | int) -> str:
    return protocol.value if isinstance(protocol, Family) else "inet"


def _refused(what: str, cause: OSError) -> KernelReadError:
    return KernelReadError(
        f"nf_tables cannot be asked {what}: {cause}",
        remedy="run as root, or with the capability NET_ADMIN",
    )


def unquiet(protocol: Family | int, tries: int) -> KernelReadError:
    """Return the error of a ruleset that changes all the time."""
    return KernelReadError(
        f"the nf_tables rules of {_shown(protocol)} changed {tries} times while they were read",
        remedy="find out which program rewrites them without pause",
    )
