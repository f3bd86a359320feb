"""What the kernel tells of a set of ipset, without reading its elements.

Numbers: include/uapi/linux/netfilter/ipset/ip_set.h.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from ipmasq_agent.errors import KernelReadError
from ipmasq_agent.netlink import core as netlink
from ipmasq_agent.netlink import nft_numbers as nft
from ipmasq_agent.netlink.attributes import attribute, fields, name_bytes, number, text
from ipmasq_agent.netlink.nf import NETLINK_NETFILTER, prefix
from ipmasq_agent.policy.addresses import Family

_LIST = 6 << 8 | 7  # NFNL_SUBSYS_IPSET, IPSET_CMD_LIST
_PROTOCOL, _NAME, _TYPE, _FAMILY, _FLAGS, _DATA = 1, 2, 3, 5, 6, 7  # IPSET_ATTR_...
_MOST, _ELEMENTS = 19, 24  # within the data
_LISTED = 8  # IPSET_ATTR_ADT
_VERSION = b"\x06"  # IPSET_PROTOCOL_MIN, which every kernel speaks
_HEADER_ONLY = struct.pack("!I", 1 << 2)  # IPSET_FLAG_LIST_HEADER
_IN_NETWORK_ORDER = 0x4000  # NLA_F_NET_BYTEORDER
T = TypeVar("T")
_FAMILIES = {nft.PROTOCOL[family]: family for family in Family}


class SetHeader(NamedTuple):
    """A set without its elements.

    Attributes:
        kind: as ``ipset`` names it, ``hash:net``.
        family: None where the set has none.
        capacity: how many elements it takes at most; 0 for a kind that does not say.
        size: how many it has.
    """

    kind: str
    family: Family | None
    capacity: int
    size: int


def set_header(name: str) -> SetHeader | None:
    """Return what the kernel tells of a set; None where there is none of that name.

    Raises:
        KernelReadError: it cannot be asked.
    """
    found = _list(name, _header, attribute(_FLAGS | _IN_NETWORK_ORDER, _HEADER_ONLY))
    return found[0] if found else None


def set_digest(name: str) -> int | None:
    """Return what tells the elements of a set from others; None where there is no such set.

    The kernel lists them in an order of its own, so that another number does not prove that
    there are others.

    Raises:
        KernelReadError: it cannot be asked.
    """
    found = _list(name, lambda body: _fields(body).get(_LISTED))
    return None if found is None else hash(b"".join(found))


def _list(name: str, take: Callable[[bytes], T | None], *more: bytes) -> list[T] | None:
    """Return what was taken of the answers about a set; None where there is none."""
    asked = attribute(_PROTOCOL, _VERSION), attribute(_NAME, name_bytes(name))
    request = b"".join((prefix(socket.AF_INET), *asked, *more))
    try:
        found = netlink.dump(NETLINK_NETFILTER, _LIST, request, take)
    except OSError as cause:
        if cause.errno in (errno.ENOENT, errno.EINVAL, errno.EPROTONOSUPPORT):
            return None  # the last two without ip_set in the kernel
        raise KernelReadError(
            f"the kernel cannot be asked for the set {name}: {cause.strerror}",
            remedy="run as root, or with the capability NET_ADMIN",
        ) from cause
    if found is None:
        raise KernelReadError(f"the set {name} never stood still")
    return found


def _fields(body: bytes) -> dict[int, bytes]:
    return fields(body, len(prefix(socket.AF_INET)))


def _header(body: bytes) -> SetHeader:
    about = _fields(body)
    data = fields(about.get(_DATA, b""))
    family = _FAMILIES.get(number(about.get(_FAMILY)))
    return SetHeader(
        text(about.get(_TYPE)), family, number(data.get(_MOST)), number(data.get(_ELEMENTS))
    )
