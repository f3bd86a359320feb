"""A cheap sign that a table of ours is here."""

from __future__ import annotations

from ipmasq_agent.netlink.nft_objects import table_infos
from ipmasq_agent.planes.nftables.state import COMMENT
from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.policy.addresses import Family


def has_table(placement: Placement) -> bool:
    """Whether a table of this agent exists here, under whatever name."""
    return any(
        info.comment == COMMENT for family in Family for info in table_infos(family).values()
    )
