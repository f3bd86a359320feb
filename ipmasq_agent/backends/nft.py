"""iptables over nf_tables, through ``iptables-nft-save`` and ``iptables-nft-restore``.

nf_tables commits a restore as one transaction and refuses it when the ruleset changed in
between (the program then tries again by itself), so no lock of ours is needed.
"""

from __future__ import annotations

import re

from ipmasq_agent.backends.iptables import IptablesBackend, program
from ipmasq_agent.dialects.iptables import POSTROUTING, Plan, restore_text
from ipmasq_agent.dialects.tables import Table, empty_table, parse_saved
from ipmasq_agent.errors import KernelReadError
from ipmasq_agent.host.commands import run
from ipmasq_agent.host.nfnetlink import Expression, list_chains, list_rules
from ipmasq_agent.policy.addresses import Family

# The expressions that iptables-nft itself writes for rules of the IPv4 and IPv6 families,
# and so reads back in full (iptables/nft-shared.c and nft.c of iptables 1.8).
_WRITTEN_BY_IPTABLES = frozenset(
    {"bitwise", "cmp", "counter", "immediate", "limit", "log", "match", "meta", "payload", "target"}
)
_EQUAL, _NOT_EQUAL = 0, 1
_TRIES = 5
_INCOMPATIBLE = re.compile(r"^# Table .* is incompatible", re.MULTILINE)


def is_shown_in_full(expressions: tuple[Expression, ...]) -> bool:
    """Whether iptables-nft prints all of a rule that is made of these expressions.

    It reads any ``cmp`` as "equal" or "not equal", so a native range (``>=`` and ``<=``)
    would be shown as an address.
    """
    return all(
        expression.kind in _WRITTEN_BY_IPTABLES
        and expression.comparison in (None, _EQUAL, _NOT_EQUAL)
        for expression in expressions
    )


class NftBackend(IptablesBackend):
    """The nat table that iptables-nft keeps in nf_tables."""

    variant = "nft"

    def read(self, family: Family) -> Table:
        """Return the nat table, checked against the kernel's own list of its rules."""
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
            chain: [n for n, rule in enumerate(rules) if not is_shown_in_full(rule)]
            for chain, rules in kernel.items()
        }
        saver = program(family, self.variant, "save")
        done = run([saver, "-t", "nat"])
        if _INCOMPATIBLE.search(done.stdout + done.stderr):
            return self._read_by_chain(family, hidden)
        if "*nat" not in done.stdout and not list_chains(family, "nat"):
            return empty_table(family)  # newer versions print nothing for a table not made yet
        return parse_saved(done.stdout, family, writer=saver, unreadable=hidden)

    def _read_by_chain(self, family: Family, hidden: dict[str, list[int]]) -> Table:
        """Read only the chains that matter to us, in a table that somebody wrote natively.

        iptables refuses the whole table for one rule that it cannot show, but lists a
        chain that has no such rule.
        """
        lines: list[str] = []
        for chain in (POSTROUTING, self.placement.chain):
            if chain not in list_chains(family, "nat"):
                continue
            done = run([program(family, self.variant), "-t", "nat", "-S", chain], check=False)
            if done.status or _INCOMPATIBLE.search(done.stdout + done.stderr):
                raise KernelReadError(
                    f"{chain} ({family.value}) holds rules that iptables-nft cannot show: "
                    f"{(done.stderr or done.stdout).strip()}",
                    remedy="see them with `nft list table "
                    f"{'ip' if family is Family.IPV4 else 'ip6'} nat`, and move them to a "
                    "table of their own; nothing was written",
                )
            lines += (_announced(line) for line in done.stdout.splitlines())
        text = "\n".join(["*nat", *lines, "COMMIT"])
        return parse_saved(text, family, writer=program(family, self.variant), unreadable=hidden)

    def apply(self, family: Family, change: Plan) -> None:
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
