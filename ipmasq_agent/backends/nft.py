"""iptables over nf_tables, through ``iptables-nft`` and ``iptables-nft-restore``.

nf_tables commits a restore as one transaction and refuses it when the ruleset changed in
between (the program then tries again by itself), so no lock of ours is needed.

The table is read by chain, as on a large node others have a hundred thousand rules in it:
a pass needs our chain and POSTROUTING, a question also the chains that POSTROUTING leads
to. iptables-nft asks the kernel for the chains that it is told of and no others (seen of
1.8.9, for ``-S`` as for a restore); ``iptables-nft-save`` takes seconds and hundreds of
megabytes there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from ipmasq_agent.backends.iptables import IptablesBackend, program
from ipmasq_agent.backends.nft_native import is_shown_in_full, told_by_expressions
from ipmasq_agent.dialects.iptables import POSTROUTING, Placement, Plan, restore_text
from ipmasq_agent.dialects.rules import Rule
from ipmasq_agent.dialects.tables import Chain, Table, parse_listed
from ipmasq_agent.errors import KernelReadError
from ipmasq_agent.host.commands import run
from ipmasq_agent.host.nfnetlink import ListedRule, generation, list_chain
from ipmasq_agent.host.nft_objects import ChainInfo, chain_info, table_info
from ipmasq_agent.policy.addresses import Family

_TRIES = 5
_TABLE = "nat"
_POLICIES = {0: "DROP", 1: "ACCEPT"}  # NF_DROP, NF_ACCEPT
NFT_FAMILY = {Family.IPV4: "ip", Family.IPV6: "ip6"}


class _Read(NamedTuple):
    """A chain, and the handles of the rules that it was read from."""

    handles: tuple[int, ...]
    chain: Chain


class NftBackend(IptablesBackend):
    """The nat table that iptables-nft keeps in nf_tables."""

    variant = "nft"

    def __init__(self, placement: Placement, *, with_set: bool = False) -> None:
        super().__init__(placement, with_set=with_set)
        self._held: dict[Family, tuple[int, Table]] = {}
        # With the handle of the table, as one that is made anew numbers its rules anew.
        self._read: dict[Family, tuple[int, Mapping[str, _Read]]] = {}

    def read_rules(self, family: Family) -> Table:
        """Return our chain and POSTROUTING.

        As long as nobody has committed anything since the last read, that one still holds,
        and a chain whose rules have the handles that they had was not changed: on a node
        where others write all the time a resync is a few questions to the kernel, and
        starts no program.
        """
        before = generation()
        held = self._held.get(family)
        if held and held[0] == before:
            return held[1]
        table = self._table(family, follow=False)
        if generation() == before:
            self._held[family] = before, table
        return table

    def reachable(self, table: Table) -> Table:
        """Return the table with the chains that a packet may meet on from POSTROUTING."""
        whole = self._table(table.family, follow=True)
        return replace(table, chains=whole.chains)

    def _table(self, family: Family, *, follow: bool) -> Table:
        table = table_info(family, _TABLE)
        number = table.handle if table else 0
        numbered, known = self._read.get(family, (0, {}))
        if numbered != number:
            known = {}
        read: dict[str, _Read] = {}
        waiting = [self.placement.chain, POSTROUTING]
        while waiting:
            name = waiting.pop()
            info = None if name in read else chain_info(family, _TABLE, name)
            if info is None:
                continue
            read[name] = self._read_chain(family, info, known.get(name))
            if follow:
                waiting += {rule.target for rule in read[name].chain.rules if rule.target}
        self._read[family] = number, read
        return Table(family, {name: found.chain for name, found in read.items()})

    def _read_chain(self, family: Family, info: ChainInfo, known: _Read | None) -> _Read:
        name = info.name
        policy = None if info.hook is None else _POLICIES.get(info.policy)
        listed = list_chain(family, _TABLE, name)
        for _ in range(_TRIES):
            handles = _handles(listed)
            if known and known.handles == handles:
                return known
            rules = self._shown(family, name, listed)
            # The kernel's list and the program's are two questions. Where somebody wrote in
            # between, and where the program leaves rules out, they differ.
            listed = list_chain(family, _TABLE, name)
            if _handles(listed) == handles and len(rules) == len(handles):
                return _Read(handles, Chain(name, policy, tuple(rules)))
        raise KernelReadError(
            f"iptables-nft and the kernel disagree on the rules of {name} ({family.value})",
            remedy=f"compare `{program(family, self.variant)} -t nat -S {name}` with "
            f"`nft list chain {NFT_FAMILY[family]} nat {name}`",
        )

    def _shown(self, family: Family, name: str, listed: Sequence[ListedRule]) -> Sequence[Rule]:
        """Return the rules of a chain as iptables-nft lists them, or by their expressions.

        It refuses a chain for one rule that it cannot show, and edits it nevertheless. Of
        one that it does list the expressions tell what it left out.
        """
        if not listed:
            return ()
        lister = program(family, self.variant)
        done = run([lister, "-t", _TABLE, "-S", name], check=False)
        if not done.status:
            shown = [is_shown_in_full(rule.expressions, family) for rule in listed]
            hidden = [n for n, whole in enumerate(shown) if not whole]
            return parse_listed(done.stdout, family, name, writer=lister, unreadable=hidden)
        if name == self.placement.chain:
            raise KernelReadError(
                f"{name} ({family.value}) holds rules that iptables-nft cannot show: "
                f"{(done.stderr or done.stdout).strip()}",
                remedy=f"see them with `nft list chain {NFT_FAMILY[family]} nat {name}`, and move "
                "them to a chain of their own; nothing was written",
            )
        return told_by_expressions(listed, family)

    def write_rules(self, family: Family, change: Plan) -> None:
        """Feed the change to iptables-nft-restore: one transaction, nothing flushed."""
        run([program(family, self.variant, "restore"), "--noflush"], stdin=restore_text(change))


def _handles(listed: Sequence[ListedRule]) -> tuple[int, ...]:
    return tuple(rule.handle for rule in listed)
