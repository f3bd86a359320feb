"""Cheap signs that a nat table of iptables is here, or something of ours in it."""

from __future__ import annotations

from pathlib import Path

from ipmasq_agent.errors import HostError
from ipmasq_agent.netlink.nft_objects import chain_info, table_info
from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.policy.addresses import Family

_NAT = "nat"
_LEGACY_TABLES = {
    Family.IPV4: "/proc/net/ip_tables_names",
    Family.IPV6: "/proc/net/ip6_tables_names",
}


def legacy_table_exists(family: Family, table: str) -> bool:
    """Whether the kernel has a legacy table. Opening one would make it; this does not.

    Raises:
        HostError: it cannot be told.
    """
    try:
        return table in Path(_LEGACY_TABLES[family]).read_text().split()
    except FileNotFoundError:
        return False  # a kernel without ip_tables
    except OSError as cause:
        raise HostError(
            f"{_LEGACY_TABLES[family]} cannot be read: {cause.strerror}",
            remedy="run as root, or with NET_ADMIN",
        ) from cause


def has_nft_table(placement: Placement) -> bool:
    """Whether nf_tables has a nat table of iptables, wherever in it our rules would be."""
    return any(table_info(family, _NAT) for family in Family)


def has_nft_chain(placement: Placement) -> bool:
    """Whether a chain of our name is in it."""
    return any(chain_info(family, _NAT, placement.chain) for family in Family)


def has_legacy_table(placement: Placement) -> bool:
    """Whether ip_tables has a nat table. What is in it tells only who takes the whole of it."""
    return any(legacy_table_exists(family, _NAT) for family in Family)
