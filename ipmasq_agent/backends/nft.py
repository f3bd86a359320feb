"""iptables over nf_tables, through ``iptables-nft-save`` and ``iptables-nft-restore``.

nf_tables commits a restore as one transaction and refuses it when the ruleset changed in
between (the program then tries again by itself), so no lock of ours is needed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ipmasq_agent.backends.iptables import IptablesBackend, program
from ipmasq_agent.backends.nft_native import is_shown_in_full, told_by_expressions
from ipmasq_agent.dialects.iptables import POSTROUTING, Placement, Plan, restore_text
from ipmasq_agent.dialects.tables import Chain, Table, empty_table, parse_saved
from ipmasq_agent.errors import KernelReadError
from ipmasq_agent.host.commands import run
from ipmasq_agent.host.nfnetlink import Expression, generation, list_chains, list_rules
from ipmasq_agent.policy.addresses import Family

_TRIES = 5
NFT_FAMILY = {Family.IPV4: "ip", Family.IPV6: "ip6"}
_INCOMPATIBLE = re.compile(r"^# Table .* (is|contains) incompatible", re.MULTILINE)


class NftBackend(IptablesBackend):
    """The nat table that iptables-nft keeps in nf_tables."""

    variant = "nft"

    def __init__(self, placement: Placement, *, with_set: bool = False) -> None:
        super().__init__(placement, with_set=with_set)
        self._held: dict[Family, tuple[int, Table]] = {}

    def read_rules(self, family: Family) -> Table:
        """Return the nat table, checked against the kernel's own list of its rules.

        As long as nobody has committed anything since the last read, that one still holds:
        on a quiet node a resync costs one question to the kernel and starts no program.
        """
        before = generation()
        if family in self._held and self._held[family][0] == before:
            return self._held[family][1]
        table = self._read_checked(family)
        if generation() == before:
            self._held[family] = before, table
        return table

    def _read_checked(self, family: Family) -> Table:
        for _ in range(_TRIES):
            kernel = list_rules(family, "nat")
            table = self._read_text(family, kernel)
            # The two lists are two questions. Where a neighbour wrote in between, ours are
            # still the same in both; where they are not, ask again.
            if all(
                len(table.rules(chain)) == len(kernel.get(chain, ()))
                for chain in (self.placement.chain, POSTROUTING)
            ):
                return table
        raise KernelReadError(
            f"iptables-nft and the kernel disagree on the rules of {self.placement.chain} "
            f"or {POSTROUTING} ({family.value})",
            remedy="compare `iptables-nft-save -t nat` with `nft list table ip nat`",
        )

    def _read_text(self, family: Family, kernel: dict[str, list[tuple[Expression, ...]]]) -> Table:
        hidden = {
            chain: [n for n, rule in enumerate(rules) if not is_shown_in_full(rule, family)]
            for chain, rules in kernel.items()
        }
        saver = program(family, self.variant, "save")
        done = run([saver, "-t", "nat"], check=False)
        if done.status or _INCOMPATIBLE.search(done.stdout + done.stderr):
            return self._read_by_chain(family, kernel, hidden)
        if "*nat" not in done.stdout and not list_chains(family, "nat"):
            return empty_table(family)  # newer versions print nothing for a table not made yet
        return parse_saved(done.stdout, family, writer=saver, unreadable=hidden)

    def _read_by_chain(
        self,
        family: Family,
        kernel: Mapping[str, Sequence[tuple[Expression, ...]]],
        hidden: Mapping[str, Sequence[int]],
    ) -> Table:
        """Read only the chains that matter to us, in a table that somebody wrote natively.

        iptables refuses the whole table for one rule that it cannot show, but lists a
        chain that has no such rule, and edits ours whatever the others hold. What matters
        are our chain, and those that a packet may meet in POSTROUTING.
        """
        existing = list_chains(family, "nat")
        chains: dict[str, Chain] = {}
        waiting = [self.placement.chain, POSTROUTING]
        while waiting:
            name = waiting.pop()
            if name not in existing or name in chains:
                continue
            chains[name] = self._read_chain(family, name, kernel, hidden)
            waiting += (rule.target for rule in chains[name].rules if rule.target)
        return Table(family, chains)

    def _read_chain(
        self,
        family: Family,
        name: str,
        kernel: Mapping[str, Sequence[tuple[Expression, ...]]],
        hidden: Mapping[str, Sequence[int]],
    ) -> Chain:
        lister = program(family, self.variant)
        done = run([lister, "-t", "nat", "-S", name], check=False)
        if not done.status and not _INCOMPATIBLE.search(done.stdout + done.stderr):
            lines = (_announced(line) for line in done.stdout.split("\n") if line)
            text = "\n".join(["*nat", *lines, "COMMIT"])
            table = parse_saved(text, family, writer=lister, unreadable=hidden)
            if name in table.chains:
                return table.chains[name]
        if name == self.placement.chain:
            raise KernelReadError(
                f"{name} ({family.value}) holds rules that iptables-nft cannot show: "
                f"{(done.stderr or done.stdout).strip()}",
                remedy=f"see them with `nft list chain {NFT_FAMILY[family]} nat {name}`, and move "
                "them to a chain of their own; nothing was written",
            )
        policy = "ACCEPT" if name == POSTROUTING else None
        return Chain(name, policy, tuple(told_by_expressions(kernel.get(name, ()), family)))

    def write_rules(self, family: Family, change: Plan) -> None:
        """Feed the change to iptables-nft-restore: one transaction, nothing flushed."""
        run([program(family, self.variant, "restore"), "--noflush"], stdin=restore_text(change))


def _announced(line: str) -> str:
    """Turn ``-N CHAIN`` and ``-P CHAIN POLICY`` of a listing into the ``:CHAIN`` of a save."""
    words = line.split()
    if words and words[0] == "-N":
        return f":{words[1]} - [0:0]"
    if words and words[0] == "-P":
        return f":{words[1]} {words[2]} [0:0]"
    return line
