"""The pure half of the plane, as one object."""

from __future__ import annotations

from functools import partial

from ipmasq_agent.planes.nftables.compile import absent, compile_policy
from ipmasq_agent.planes.nftables.interpret import interpret
from ipmasq_agent.planes.nftables.plan import TableChange, plan
from ipmasq_agent.planes.nftables.state import NftTable
from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.planes.plane import Dialect


def nftables_dialect(placement: Placement) -> Dialect[NftTable, NftTable, TableChange]:
    """Return the dialect for the table whose name a placement gives."""
    return Dialect(
        compile=partial(compile_policy, placement=placement),
        absent=partial(absent, placement=placement),
        plan=plan,
        describe=NftTable.lines,
        interpret=interpret,
    )
