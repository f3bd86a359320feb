"""Reads from the kernel what stands at the postrouting hook, of every table in it.

Asked for are the chains that packets enter and those that their rules lead to, never a
whole table, in which others may keep a hundred thousand rules. What is too large to be read
is carried as a rule, or a set, that cannot be read. What the kernel refuses is a KernelReadError.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from ipmasq_agent.errors import AgentError
from ipmasq_agent.netlink import nft_numbers as nft
from ipmasq_agent.netlink.attributes import text
from ipmasq_agent.netlink.expressions import Expression, Immediate, NftVerdict, SetLookup
from ipmasq_agent.netlink.nf import generation_if_any, of_one_state
from ipmasq_agent.netlink.nft_objects import (
    ChainInfo,
    base_chains,
    list_intervals,
    list_keys,
    list_rules,
    set_info,
    table_infos,
)
from ipmasq_agent.planes.iptables.legacy import read_chains
from ipmasq_agent.planes.iptables.presence import legacy_table_exists
from ipmasq_agent.planes.placement import LEGACY, OurBase
from ipmasq_agent.planes.prefixset import AddressSet, element
from ipmasq_agent.planes.rules.native import Held, as_iptables, told
from ipmasq_agent.planes.rules.neighbours import BaseChain, PostroutingHook
from ipmasq_agent.planes.rules.rule import Rule
from ipmasq_agent.planes.rules.table import POSTROUTING, Chain, Table
from ipmasq_agent.policy.addresses import Family, prefixes_of_range

# NF_IP_PRI_CONNTRACK: where packets are tracked that no chain before has exempted. Of what
# has the same priority, what was registered last comes first.
_TRACKED_AT = -200
_LEGACY_NAT, _LEGACY_RAW = 100, -300  # NF_IP_PRI_NAT_SRC, NF_IP_PRI_RAW
_ADDRESS_TYPE = {Family.IPV4: nft.TYPE_IPADDR, Family.IPV6: nft.TYPE_IP6ADDR}
_OF_IPTABLES = ("nat", "raw")
_TABLES = ("nat", "raw", "mangle", "filter")
_BUILT_IN = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", POSTROUTING)
_MOST_RULES, _MOST_ELEMENTS = 20_000, 65_536
_FIRST = 64


def read_hook(family: Family, ours: OurBase | None, egress: tuple[str, ...]) -> PostroutingHook:
    """Return what stands at the hook.

    Args:
        family: whose packets.
        ours: where packets come to what is ours (see ``Plane.our_base``).
        egress: the devices through which traffic leaves the node, for questions that name
            none; the same for both families, and so listed by the caller.

    Raises:
        KernelReadError: it cannot be read, or never stands still.
    """
    return of_one_state(
        family, lambda number: _Reader(family, ours, egress).hook(native=number is not None)
    )


def hook_generation() -> int | None:
    """Return the number of nf_tables' state; None where tables that it does not count exist."""
    legacy = any(legacy_table_exists(family, name) for family in Family for name in _OF_IPTABLES)
    return None if legacy else generation_if_any()


def first_of_nat_chain(family: Family, name: str) -> list[Rule]:
    """Return the first rules of a nat chain of iptables, of whichever variant has it."""
    listed = list_rules(family, "nat", name)[:_FIRST]
    rules = [as_iptables(told(rule.expressions, family, {}, _device)) for rule in listed]
    if not rules and legacy_table_exists(family, "nat"):
        rules += read_chains(family, "nat", (name,)).rules(name)[:_FIRST]
    return rules


def populated(family: Family) -> dict[str, list[str]]:
    """Return the tables of either iptables in whose built-in chains there are rules.

    No table is made by looking.
    """
    tables: dict[str, list[str]] = {"iptables-nft": [], LEGACY: []}
    for table, chain in base_chains(family):
        known = tables["iptables-nft"]
        if table in _TABLES and table not in known and list_rules(family, table, chain.name):
            known.append(table)
    for table in _TABLES:
        if legacy_table_exists(family, table):
            found = read_chains(family, table, _BUILT_IN).chains.values()
            tables[LEGACY] += [table] if any(chain.rules for chain in found) else []
    return tables


class _Reader:
    """One read of one family."""

    def __init__(self, family: Family, ours: OurBase | None, egress: tuple[str, ...]) -> None:
        self._family = family
        self._ours = ours
        self._egress = egress
        self._rules_left = _MOST_RULES

    def hook(self, *, native: bool) -> PostroutingHook:
        """Return the hook; without nf_tables where the kernel has none."""
        nat: list[BaseChain] = []
        tracking: list[BaseChain] = []
        asleep = None
        protocols = ((self._family, nft.NFT_FAMILY[self._family]), (nft.NFPROTO_INET, "inet"))
        found = [
            (known[table], chain, protocol, f"{name} {table}")
            for protocol, name in (protocols if native else ())
            for known in [table_infos(protocol)]
            for table, chain in base_chains(protocol)
            if table in known
        ]
        # Of the same priority, what was made last comes first (nf_hook_entries_grow).
        found.sort(key=lambda one: (one[0].handle, one[1].handle), reverse=True)
        for info, chain, protocol, path in found:
            own = self._own(path, chain.name)
            if info.dormant:
                if own is not None:
                    asleep = f"the table {path} is dormant: no packet meets its rules"
            elif (chain.type, chain.hook) == ("nat", nft.NF_INET_POST_ROUTING):
                nat.append(self._base(protocol, path, chain, own))
            elif chain.hook == nft.NF_INET_PRE_ROUTING and (
                chain.type != "nat" and chain.priority <= _TRACKED_AT
            ):  # it may keep packets from being tracked
                tracking.append(self._base(protocol, path, chain, None))
        nat += self._legacy("nat", POSTROUTING, _LEGACY_NAT)
        tracking += self._legacy("raw", "PREROUTING", _LEGACY_RAW)
        return PostroutingHook(
            self._family,
            tuple(sorted(nat, key=lambda base: base.priority)),
            tuple(sorted(tracking, key=lambda base: base.priority)),
            programs=self._ours is None,
            egress=self._egress,
            asleep=asleep,
        )

    def _own(self, path: str, base: str) -> str | None:
        """Return which chain is ours of those that a base chain leads to; None for none."""
        ours = self._ours
        return ours.own if ours is not None and (ours.table, ours.chain) == (path, base) else None

    # -- nf_tables --------------------------------------------------------------------------

    def _base(
        self, protocol: Family | int, path: str, chain: ChainInfo, own: str | None
    ) -> BaseChain:
        _, _, table = path.partition(" ")
        chains: dict[str, Chain] = {}
        sets: dict[str, Held] = {}
        waiting = {chain.name}
        while waiting := {name for name in waiting if name != own and name not in chains}:
            name = waiting.pop()
            chains[name], following = self._chain(protocol, table, name, sets)
            waiting |= following
        known = {name: held for name, held in sets.items() if isinstance(held, AddressSet)}
        suffix = "" if own is not None else f" of table {path}"
        unsure = chain.priority == _TRACKED_AT
        found = Table(self._family, chains, known)
        return BaseChain(found, chain.name, chain.priority, suffix, path, own, unsure)

    def _chain(
        self, protocol: Family | int, table: str, name: str, sets: dict[str, Held]
    ) -> tuple[Chain, set[str]]:
        """Return a chain and those that its rules lead to; add the sets that they ask."""
        listed = list_rules(protocol, table, name)
        self._rules_left -= len(listed)
        if self._rules_left < 0:
            words = f"({len(listed)} rules, too many to read)"
            return Chain(name, None, (Rule(words, (), readable=False),)), set()
        rules = [rule.expressions for rule in listed]
        following, asked = _references(rules)
        for wanted in asked - sets.keys():
            held = self._set(protocol, table, wanted)
            if held is not None:
                sets[wanted] = held
        found = [told(rule, self._family, sets, _device) for rule in rules]
        if isinstance(protocol, Family) and table in _OF_IPTABLES:
            found = list(map(as_iptables, found))
        pairs = zip(found, listed, strict=True)
        found = [replace(rule, comment=of.comment) if of.comment else rule for rule, of in pairs]
        return Chain(name, None, tuple(found)), following

    def _set(self, protocol: Family | int, table: str, name: str) -> Held | None:
        """Return what a set holds; None where it is not of addresses or devices, or too large."""
        family, info = self._family, set_info(protocol, table, name)
        if info is None or (info.size or 0) > _MOST_ELEMENTS:
            return None
        (key, length), flags = info.form.key, info.form.flags
        if key == nft.TYPE_IFNAME and not flags & nft.NFT_SET_INTERVAL:
            return tuple(sorted(text(device) for device in list_keys(protocol, table, name)))
        if flags & nft.NFT_SET_MAP or (key, length) != (_ADDRESS_TYPE[family], family.bits // 8):
            return None
        if flags & nft.NFT_SET_INTERVAL:
            firsts, lasts, _ = list_intervals(family, table, name, protocol)
        else:
            keys = list_keys(protocol, table, name)
            firsts = lasts = sorted(int.from_bytes(address, "big") for address in keys)
        prefixes = (
            prefix
            for first, last in zip(firsts, lasts, strict=True)
            for prefix in prefixes_of_range(family, first, last)
        )
        return AddressSet(name, family, [element(p.first, p.length) for p in prefixes])

    # -- ip_tables --------------------------------------------------------------------------

    def _legacy(self, table: str, chain: str, priority: int) -> Iterator[BaseChain]:
        family = self._family
        if not legacy_table_exists(family, table):
            return
        try:
            found = read_chains(family, table, (chain,), follow=True)
        except AgentError as error:
            rule = Rule(f"(it cannot be read: {error})", (), readable=False)
            found = Table(family, {chain: Chain(chain, None, (rule,))})
        path = f"{LEGACY} {table}"
        own = self._own(path, chain)
        suffix = "" if own is not None else f" of {LEGACY}'s {table}"
        yield BaseChain(found, chain, priority, suffix, path, own)


def _references(rules: Iterable[Sequence[Expression]]) -> tuple[set[str], set[str]]:
    """Return the chains that rules jump or go to, and the sets that they look things up in."""
    chains, sets = set(), set()
    for expression in (expression for rule in rules for expression in rule):
        match expression:
            case SetLookup(set=name):
                sets.add(name)
            case Immediate(data=NftVerdict(chain=str(name))):
                chains.add(name)
    return chains, sets


def _device(number: int) -> str:
    """Return the name of a device; one that is no more has a name that none has."""
    try:
        return socket.if_indextoname(number)
    except OSError:
        return f"#{number}"
