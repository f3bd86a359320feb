"""iptables over nf_tables, through ``iptables-nft`` and ``iptables-nft-restore``.

nf_tables commits a restore as one transaction and refuses it when the ruleset changed in
between (the program then tries again by itself), so no lock of ours is needed.

The table is read by chain, as on a large node others have a hundred thousand rules in it:
what a pass needs are our chain and POSTROUTING. iptables-nft asks the kernel for the chains
that it is told of and no others (seen of 1.8.9, for ``-S`` as for a restore);
``iptables-nft-save`` takes seconds and hundreds of megabytes there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from ipmasq_agent.errors import CommandFailed, KernelReadError
from ipmasq_agent.host.commands import run
from ipmasq_agent.netlink import nft_numbers as nft
from ipmasq_agent.netlink.expressions import Immediate, NftVerdict
from ipmasq_agent.netlink.nf import generation
from ipmasq_agent.netlink.nft_batch import delete_rules
from ipmasq_agent.netlink.nft_numbers import NFT_FAMILY
from ipmasq_agent.netlink.nft_objects import (
    ChainInfo,
    ListedRule,
    chain_info,
    list_rules,
    table_info,
)
from ipmasq_agent.planes.flowcount import ENTERED, TRANSLATED, Counts
from ipmasq_agent.planes.iptables.nft_native import is_shown_in_full, told_by_expressions
from ipmasq_agent.planes.iptables.plan import ChainPlan, NumberedJump, restore_text
from ipmasq_agent.planes.iptables.plane import IptablesPlane, program
from ipmasq_agent.planes.iptables.save import parse_listed
from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.planes.rules.rule import Rule
from ipmasq_agent.planes.rules.table import POSTROUTING, Chain, Table
from ipmasq_agent.policy.addresses import Family

_TRIES = 20  # others may rewrite a chain as often as iptables lists it
_TABLE = "nat"
_POLICIES = {0: "DROP", 1: "ACCEPT"}  # NF_DROP, NF_ACCEPT


class _Read(NamedTuple):
    """A chain, and of the rules that it was read from their handles and what they say."""

    handles: tuple[int, ...]
    said: int
    chain: Chain


class _Held(NamedTuple):
    """What the table was when it was read.

    Attributes:
        generation: of the ruleset; None where somebody committed at the same time.
        numbers: the handles of the table, as one that is made anew numbers its rules anew, and
            of our chain, as a jump follows a chain that is renamed and keeps its handle.
        chains: those that a pass needs.
        table: made of them.
    """

    generation: int | None
    numbers: tuple[int, int]
    chains: Mapping[str, _Read]
    table: Table


class IptablesNftPlane(IptablesPlane):
    """The nat table that iptables-nft keeps in nf_tables."""

    variant = "nft"
    in_nf_tables = True

    def __init__(self, placement: Placement, *, with_set: bool = False) -> None:
        super().__init__(placement, with_set=with_set)
        self._held: dict[Family, _Held] = {}

    def read_rules(self, family: Family) -> Table:
        """Return our chain and POSTROUTING.

        As long as nobody has committed anything since the last read, that one still holds,
        and a chain whose rules are packed as they were was not changed: on a node where
        others write all the time a resync is a few questions to the kernel, and starts no
        program.
        """
        before = generation()
        held = self._held.get(family)
        if held and held.generation == before:
            return held.table
        found = table_info(family, _TABLE)
        infos = [chain_info(family, _TABLE, n) for n in (self.placement.chain, POSTROUTING)]
        numbers = found.handle if found else 0, infos[0].handle if infos[0] else 0
        known = held.chains if held and held.numbers == numbers else {}
        chains = {
            info.name: self._read_own(family, info, known.get(info.name))
            for info in infos
            if info is not None
        }
        table = Table(family, {name: read.chain for name, read in chains.items()})
        now = before if generation() == before else None
        self._held[family] = _Held(now, numbers, chains, table)
        return table

    def _read_own(self, family: Family, info: ChainInfo, known: _Read | None) -> _Read:
        listed = list_rules(family, _TABLE, info.name)
        said = _said(listed)
        if known and known.said == said:
            return known
        if info.name == POSTROUTING:
            # One list is of one moment, whoever writes meanwhile. Of others' rules a pass
            # needs to know no more than that they are there.
            rules = told_by_expressions(listed, family)
            if all(rule.readable or rule.target != self.placement.chain for rule in rules):
                return _Read(_handles(listed), said, Chain(info.name, _policy(info), tuple(rules)))
        return self._read_listed(family, info)

    def _read_listed(self, family: Family, info: ChainInfo) -> _Read:
        """Read a chain as iptables-nft lists it, checked against the kernel's own list.

        The two are two questions. Where somebody wrote in between, and where the program
        leaves rules out, they differ.
        """
        name = info.name
        listed = list_rules(family, _TABLE, name)
        for _ in range(_TRIES):
            said = _said(listed)
            rules = self._shown(family, name, listed)
            listed = list_rules(family, _TABLE, name)
            if _said(listed) == said and len(rules) == len(listed):
                return _Read(_handles(listed), said, Chain(name, _policy(info), tuple(rules)))
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

    def counted(self, family: Family) -> Counts:
        """Yield what the jumps to our chain have counted, then its rules that translate."""
        chain = self.placement.chain
        to = [NftVerdict(code, chain) for code in (nft.NFT_JUMP, nft.NFT_GOTO)]
        for rule in list_rules(family, _TABLE, POSTROUTING):
            if any(isinstance(each, Immediate) and each.data in to for each in rule.expressions):
                yield rule.handle, ENTERED, rule.packets or 0
        for rule in list_rules(family, _TABLE, chain):
            if rule.translates:
                yield rule.handle, TRANSLATED, rule.packets or 0

    def write_rules(self, family: Family, change: ChainPlan) -> None:
        """Feed the change to iptables-nft-restore: one transaction, nothing flushed.

        It finds a jump by its text, and no text makes it find one that has an older revision
        of a match, as it writes itself where it cannot ask the kernel for the newer one. Such
        a jump goes by its handle, in a transaction of its own: after what comes in its place.
        """
        restore = [program(family, self.variant, "restore"), "--noflush"]
        # A line feed, as a comment of others may hold one, ends a line in quotes too.
        if not any("\n" in jump.rule.text for jump in change.jumps_removed):
            try:
                run(restore, stdin=restore_text(change))
                return
            except CommandFailed:
                if not change.jumps_removed:
                    raise
        gone = self._handles_of(family, change.jumps_removed)
        rest = replace(change, jumps_removed=())
        if change.delete:
            delete_rules(family, _TABLE, POSTROUTING, gone)
        run(restore, stdin=restore_text(rest))
        if not change.delete:
            delete_rules(family, _TABLE, POSTROUTING, gone)

    def _handles_of(self, family: Family, jumps: Sequence[NumberedJump]) -> list[int]:
        """Return the handles of jumps to our chain, of the read that a change was planned on."""
        read = self._held[family].chains[POSTROUTING]
        ours = [
            handle
            for handle, rule in zip(read.handles, read.chain.rules, strict=True)
            if rule.target == self.placement.chain
        ]
        return [ours[jump.number] for jump in jumps]


def _policy(info: ChainInfo) -> str | None:
    return None if info.hook is None else _POLICIES.get(info.policy)


def _handles(listed: Sequence[ListedRule]) -> tuple[int, ...]:
    return tuple(rule.handle for rule in listed)


def _said(listed: Sequence[ListedRule]) -> int:
    return hash(tuple((rule.handle, rule.comment, rule.uncounted) for rule in listed))
