"""The pure half of the planes that speak iptables, as one object."""

from __future__ import annotations

from collections.abc import Callable

from ipmasq_agent.planes.interpretation import Interpretation
from ipmasq_agent.planes.iptables.compile import DesiredChain, absent, compile_policy
from ipmasq_agent.planes.iptables.interpret import interpret, only_ours
from ipmasq_agent.planes.iptables.plan import ChainPlan, describe, plan
from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.planes.plane import Dialect
from ipmasq_agent.planes.rules.table import Table
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.model import MANY_RULES, FamilyPolicy


def iptables_dialect(
    placement: Placement, set_name: Callable[[Family], str] | None = None
) -> Dialect[Table, DesiredChain, ChainPlan]:
    """Return the dialect for one chain.

    Args:
        placement: the chain, and where the jumps to it stand.
        set_name: names the set that a rule asks; None for a rule for each prefix.
    """

    def compiled(policy: FamilyPolicy) -> DesiredChain:
        name = set_name(policy.family) if set_name else None
        return compile_policy(policy, placement, set_name=name)

    def interpreted(state: Table, source: int | None = None) -> Interpretation:
        return interpret(only_ours(state, placement), placement, source)

    return Dialect(
        compile=compiled,
        absent=lambda family: absent(placement),
        plan=plan,
        describe=lambda state: describe(state, placement.chain),
        interpret=interpreted,
        advice=_advice,
    )


def _advice(desired: DesiredChain) -> str | None:
    """Warn where each packet has very many rules to pass."""
    if len(desired.rules) <= MANY_RULES:
        return None
    return (
        f"the chain has {len(desired.rules)} rules, which each new flow passes one by one; "
        "--backend ipset or nftables decides by one look-up"
    )
