"""A nat table that lives in memory, for tests that need no kernel."""

from __future__ import annotations

from ipmasq_agent.planes.iptables.plan import ChainPlan
from ipmasq_agent.planes.iptables.plane import IptablesPlane
from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.planes.rules.rule import Rule
from ipmasq_agent.planes.rules.table import POSTROUTING, Chain, Table, empty_table
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.model import Capabilities


class MemoryPlane(IptablesPlane):
    """Holds one nat table per family and applies plans to it, rule by rule."""

    variant = "memory"

    def __init__(self, placement: Placement) -> None:
        super().__init__(placement)
        self.tables = {family: empty_table(family) for family in Family}
        self.transactions = 0

    def capabilities(self, family: Family) -> Capabilities:
        """Return that of a current host."""
        return Capabilities()

    def read(self, family: Family) -> Table:
        """Return the table as it is."""
        return self.read_rules(family)

    def recall(self, family: Family) -> Table:
        """Return the table as it is."""
        return self.read(family)

    def read_at(self, family: Family, destination: int) -> Table:
        """Return the table as it is."""
        return self.read(family)

    def apply(self, family: Family, change: ChainPlan) -> None:
        """Edit the table; there are no sets in memory."""
        self.write_rules(family, change)

    def read_rules(self, family: Family) -> Table:
        """Return the table as it is."""
        return self.tables[family]

    def write_rules(self, family: Family, change: ChainPlan) -> None:
        """Edit the table as iptables-restore would."""
        table = self.tables[family]
        chains = dict(table.chains)
        policy = table.chains[POSTROUTING].policy
        hook = list(table.rules(POSTROUTING))
        for jump in change.jumps_removed:
            hook.remove(jump.rule)
        place = 0 if change.jump_first else len(hook)
        hook[place:place] = change.jumps
        chains[POSTROUTING] = Chain(POSTROUTING, policy, tuple(hook))
        if change.delete:
            del chains[change.chain]
        else:
            rules = list(table.rules(change.chain))
            rules[change.keep : change.keep + len(change.remove)] = change.insert
            if change.rewrite is not None:
                rules = list(change.rewrite)
            chains[change.chain] = Chain(change.chain, None, tuple[Rule, ...](rules))
        self.tables[family] = Table(family, chains)
        self.transactions += 1
