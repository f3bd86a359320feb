"""A chain of the nat table and its sets, joined to a kernel: what both variants share."""

from __future__ import annotations

import abc
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import cache

from ipmasq_agent.errors import KernelReadError
from ipmasq_agent.host.commands import run
from ipmasq_agent.host.sparing import Sparing
from ipmasq_agent.netlink.nft_numbers import NFT_FAMILY
from ipmasq_agent.planes.flowcount import Counts, FlowCount
from ipmasq_agent.planes.interpretation import Interpretation
from ipmasq_agent.planes.iptables.compile import DesiredChain, absent, compile_policy
from ipmasq_agent.planes.iptables.interpret import interpret, only_ours
from ipmasq_agent.planes.iptables.plan import ChainPlan, describe, plan
from ipmasq_agent.planes.iptables.set_kernel import Sets
from ipmasq_agent.planes.placement import LEGACY, OurBase, Placement
from ipmasq_agent.planes.plane import Dialect, Plane
from ipmasq_agent.planes.prefixset import AddressSet
from ipmasq_agent.planes.rules.table import POSTROUTING, Table
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.model import MANY_RULES, Capabilities, FamilyPolicy


def program(family: Family, variant: str, verb: str = "") -> str:
    """Return the program's name: ``ip6tables-nft-save`` for IPv6, ``nft``, ``save``."""
    stem = "iptables" if family is Family.IPV4 else "ip6tables"
    return "-".join(part for part in (stem, variant, verb) if part)


@cache
def knows_random_fully(iptables: str) -> bool:
    """Whether MASQUERADE takes --random-fully here (since iptables 1.6.2), by its help."""
    return "--random-fully" in run([iptables, "-j", "MASQUERADE", "--help"]).stdout


def iptables_dialect(
    placement: Placement, set_name: Callable[[Family], str] | None = None
) -> Dialect[Table, DesiredChain, ChainPlan]:
    """Return the dialect for one chain."""

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


class IptablesPlane(Plane[Table, DesiredChain, ChainPlan]):
    """A nat table of the kernel, spoken to in iptables; ``variant`` is legacy or nft.

    It comes in two forms: a rule for each prefix, or one rule that asks a set. Both are
    the same chain in the same place, so that one becomes the other in one plan.
    """

    variant: str

    def __init__(self, placement: Placement, *, with_set: bool = False) -> None:
        self.placement = placement
        self.name = "ipset" if with_set else f"iptables-{self.variant}"
        self._with_set = with_set
        # Both variants share the kernel's sets, and have sets of their own there.
        legacy = "-legacy" if self.variant == "legacy" else ""
        self._sets = Sets(f"{placement.chain}{legacy}", needed=with_set)
        self.dialect = iptables_dialect(placement, self._sets.name if with_set else None)
        # What a pass left, without the sets.
        self._left: dict[Family, Table] = {}
        # Families in which no set of ours is left, as far as we have looked.
        self._without_sets: set[Family] = set()
        self._sparing = Sparing()
        self._flows = FlowCount(self.counted)

    def our_base(self, family: Family) -> OurBase:
        """Return POSTROUTING, whose jumps lead to our chain."""
        of = LEGACY if self.variant == "legacy" else NFT_FAMILY[family]
        return OurBase(f"{of} nat", POSTROUTING, self.placement.chain)

    def capabilities(self, family: Family) -> Capabilities:
        """Return what the installed iptables knows."""
        return Capabilities(random_fully=knows_random_fully(program(family, self.variant)))

    @abc.abstractmethod
    def read_rules(self, family: Family) -> Table:
        """Return our chain and POSTROUTING, without any sets; other chains may be there.

        Raises:
            KernelReadError: it cannot be read in full.
        """

    def glance(self, family: Family, *, closely: bool) -> Table:
        """Return the same from cheap signs, where they tell that it has not changed.

        Args:
            family: whose.
            closely: also from signs that cost more the more is there.
        """
        return self.read_rules(family)

    def counted(self, family: Family) -> Counts:
        """Yield how many flows came to our chain, and how many its rules translated."""
        return ()

    def counters(self) -> Mapping[tuple[Family, str], int]:
        """Return how many flows were translated and kept, by what our rules count."""
        return self._flows.told()

    @abc.abstractmethod
    def write_rules(self, family: Family, change: ChainPlan) -> None:
        """Carry out the part of ``change`` that is about the table, in one transaction."""

    def read(self, family: Family) -> Table:
        """Return our chain, POSTROUTING, and our sets, whole."""
        return self._joined(self.read_rules(family), self._sets.read)

    def recall(self, family: Family) -> Table:
        """Return the same with elements from memory where their count agrees."""
        return self._joined(self.read_rules(family), self._sets.recall)

    def read_at(self, family: Family, destination: int) -> Table:
        """Return our chain and POSTROUTING, of our set what it says about one address."""
        table = self.read_rules(family)
        return replace(table, sets=self._sets.read_at(family, destination))

    def _joined(
        self, table: Table, read_sets: Callable[[Family], Mapping[str, AddressSet]]
    ) -> Table:
        family = table.family
        self._left[family] = table
        if not self._with_set and family in self._without_sets:
            # One rule each: a resync need not ask for sets that nobody makes.
            return table
        sets = read_sets(family)
        if not sets:
            self._without_sets.add(family)
        return replace(table, sets=sets)

    def disturbed(self, failing: Collection[Family] = ()) -> bool:
        """Return whether our chain, a rule of POSTROUTING or our set is another than a pass left.

        Each look sees that there is more or less; what says something else in the same place
        is seen as often as that is cheap.
        """
        try:
            with self._sparing.turn() as closely:
                return any(
                    self.glance(family, closely=closely) != left
                    or (self._with_set and self._sets.disturbed(family, closely=closely))
                    for family, left in self._left.items()
                    if family not in failing
                )
        except KernelReadError:
            return True  # the pass that follows says what is wrong, until it is not

    def apply(self, family: Family, change: ChainPlan) -> None:
        """Fill sets, write the rules in one transaction, drop the sets they no longer ask."""
        self._sets.prepare(family, change.sets)
        if change.changes_rules:
            with self._flows.rewriting(family):
                self.write_rules(family, change)
        self._sets.finish(family, change.sets)
