"""What the backends that speak iptables share: the dialect, and how ``-save`` is read."""

from __future__ import annotations

from functools import cache

from ipmasq_agent.backends import Backend
from ipmasq_agent.dialects import iptables as dialect
from ipmasq_agent.dialects.interpretation import Interpretation, interpret
from ipmasq_agent.dialects.iptables import Desired, Placement, Plan
from ipmasq_agent.dialects.tables import Table
from ipmasq_agent.host.commands import run
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.assemble import MANY_RULES
from ipmasq_agent.policy.model import Capabilities, FamilyPolicy


def program(family: Family, variant: str, verb: str = "") -> str:
    """Return the program's name: ``ip6tables-nft-save`` for IPv6, ``nft``, ``save``."""
    stem = "iptables" if family is Family.IPV4 else "ip6tables"
    return "-".join(part for part in (stem, variant, verb) if part)


@cache
def knows_random_fully(iptables: str) -> bool:
    """Whether MASQUERADE takes --random-fully here (since iptables 1.6.2), by its help."""
    return "--random-fully" in run([iptables, "-j", "MASQUERADE", "--help"]).stdout


class IptablesBackend(Backend[Table, Desired, Plan]):
    """A nat table of the kernel, spoken to in iptables; ``variant`` is legacy or nft."""

    variant: str

    def __init__(self, placement: Placement) -> None:
        self.placement = placement
        self.name = self.place = f"iptables-{self.variant}"

    def capabilities(self, family: Family) -> Capabilities:
        """Return what the installed iptables knows."""
        return Capabilities(random_fully=knows_random_fully(program(family, self.variant)))

    def compile(self, policy: FamilyPolicy) -> Desired:
        """Return the chain and the jump for ``policy``."""
        return dialect.compile_policy(policy, self.placement)

    def absent(self, family: Family) -> Desired:
        """Return a table without our chain."""
        return dialect.absent(self.placement)

    def plan(self, actual: Table, desired: Desired) -> Plan:
        """Return the edits from one to the other."""
        return dialect.plan(actual, desired)

    def after(self, actual: Table, desired: Desired) -> Table:
        """Return the table once the edits were made."""
        return dialect.after(actual, desired)

    def describe(self, state: Table) -> list[str]:
        """Return the jumps to our chain and the rules in it, as ``-A`` lines."""
        return dialect.describe(state, self.placement.chain)

    def advice(self, desired: Desired) -> str | None:
        """Warn where each packet has very many rules to pass."""
        if len(desired.rules) <= MANY_RULES:
            return None
        return (
            f"the chain has {len(desired.rules)} rules, which each new flow passes one by one; "
            "--backend ipset or nftables decides by one look-up"
        )

    def interpret(self, state: Table, source: int | None = None) -> Interpretation:
        """Return what the table decides."""
        return interpret(state, self.placement, source)
