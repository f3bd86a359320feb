"""The shape of a legacy table: one short question to the kernel, however many rules it has.

Numbers and layout: include/uapi/linux/netfilter_ipv4/ip_tables.h and ip6_tables.h.
"""

from __future__ import annotations

import ctypes
import os
import socket

from ipmasq_agent.errors import KernelReadError
from ipmasq_agent.planes.iptables.presence import legacy_table_exists
from ipmasq_agent.policy.addresses import Family

_GET_INFO = 64  # IPT_SO_GET_INFO, IP6T_SO_GET_INFO
_NAME_BYTES, _INFO_BYTES = 32, 84  # struct ipt_getinfo
_LEVELS = {
    Family.IPV4: (socket.AF_INET, socket.IPPROTO_IP),
    Family.IPV6: (socket.AF_INET6, socket.IPPROTO_IPV6),
}
_libc = ctypes.CDLL(None, use_errno=True)


def shape(family: Family, table: str) -> bytes | None:
    """Return what tells a table from one with more rules or fewer; None where there is none.

    It is where its chains begin and end, and how many rules it has, in how many bytes.

    Raises:
        KernelReadError: it cannot be asked for.
        HostError: it cannot be told whether there is one.
    """
    if not legacy_table_exists(family, table):
        return None  # to ask for it would make it
    info = ctypes.create_string_buffer(table.encode(), _INFO_BYTES)
    size = ctypes.c_uint32(_INFO_BYTES)
    domain, level = _LEVELS[family]
    with socket.socket(domain, socket.SOCK_DGRAM) as asking:
        done = _libc.getsockopt(asking.fileno(), level, _GET_INFO, info, ctypes.byref(size))
    if done:
        raise KernelReadError(
            f"the {table} table of ip_tables ({family.value}) cannot be asked about: "
            f"{os.strerror(ctypes.get_errno())}",
            remedy="run as root, or with the capability NET_ADMIN",
        )
    return info.raw[_NAME_BYTES:]
