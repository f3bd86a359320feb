"""Reads from the kernel what stands at the postrouting hook, of every table in it.

Asked for are the chains that packets enter and those that their rules lead to, never a
whole table, in which others may keep a hundred thousand rules. What is too large to be read
is carried as a rule, or a set, that cannot be read.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

from ipmasq_agent.errors import AgentError
from ipmasq_agent.netlink.nf import INET, generation_if_any, list_chain
from ipmasq_agent.netlink.nft_elements import elements_of, intervals_of
from ipmasq_agent.netlink.nft_objects import (
    ChainInfo,
    base_chains,
    list_elements,
    set_info,
    table_infos,
)
from ipmasq_agent.planes.hook.expressions import Held, References, as_iptables, references, told
from ipmasq_agent.planes.iptables.legacy import read_chains
from ipmasq_agent.planes.iptables.presence import legacy_table_exists
from ipmasq_agent.planes.nftables import compile as nftables
from ipmasq_agent.planes.nftables.read import unquiet
from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.planes.prefixset import AddressSet, element
from ipmasq_agent.planes.rules.neighbours import BaseChain, PostroutingHook
from ipmasq_agent.planes.rules.rule import Rule
from ipmasq_agent.planes.rules.table import POSTROUTING, Chain, Table
from ipmasq_agent.policy.addresses import Family, prefixes_of_range

_TRIES = 10
_PREROUTING, _POSTROUTING = 0, 4  # enum nf_inet_hooks
# NF_IP_PRI_CONNTRACK: where packets are tracked that no chain before has exempted. Of what
# has the same priority, what was registered last comes first.
_TRACKED_AT = -200
_LEGACY_NAT, _LEGACY_RAW = 100, -300  # NF_IP_PRI_NAT_SRC, NF_IP_PRI_RAW
_IP = {Family.IPV4: "ip", Family.IPV6: "ip6"}
_ADDRESS_TYPE = {Family.IPV4: 7, Family.IPV6: 8}  # as nft numbers its data types
_DEVICE_TYPE = 41
_OF_IPTABLES = ("nat", "raw")
_INTERVAL, _MAP = 4, 8  # NFT_SET_...
_MOST_RULES, _MOST_ELEMENTS = 20_000, 65_536


def read_hook(family: Family, place: str, placement: Placement) -> PostroutingHook:
    """Return what stands at the hook.

    Args:
        family: whose packets.
        place: which backend's rules are ours (see ``Plane.place``).
        placement: where these stand.

    Raises:
        KernelReadError: it cannot be read, or never stands still.
    """
    for _ in range(_TRIES):
        before = generation_if_any()
        hook = _Reader(family, place, placement).hook(native=before is not None)
        if generation_if_any() == before:
            return hook
    raise unquiet(family)


def hook_generation() -> int | None:
    """Return the number of nf_tables' state; None where tables that it does not count exist.

    Raises:
        KernelReadError: the kernel refuses.
        HostError: it cannot be told which tables exist.
    """
    legacy = any(
        legacy_table_exists(family, table) for family in Family for table in ("nat", "raw")
    )
    return None if legacy else generation_if_any()


class _Reader:
    """One read of one family."""

    def __init__(self, family: Family, place: str, placement: Placement) -> None:
        self._family = family
        self._place = place
        self._own_chain = placement.chain
        self._own_table = nftables.table_name(placement)
        self._rules_left = _MOST_RULES

    def hook(self, *, native: bool) -> PostroutingHook:
        """Return the hook; without nf_tables where the kernel has none."""
        nat: list[BaseChain] = []
        tracking: list[BaseChain] = []
        asleep = None
        tables = ((self._family, _IP[self._family]), (INET, "inet")) if native else ()
        found = [
            (known[table], chain, protocol, f"{name} {table}")
            for protocol, name in tables
            for known in [table_infos(protocol)]
            for table, chain in base_chains(protocol)
            if table in known
        ]
        # Of the same priority, what was made last comes first (nf_hook_entries_grow).
        found.sort(key=lambda one: (one[0].handle, one[1].handle), reverse=True)
        for info, chain, protocol, path in found:
            own = self._own(path, chain)
            if info.dormant:
                if own is not None:
                    asleep = f"the table {path} is dormant: no packet meets its rules"
            elif chain.type == "nat" and chain.hook == _POSTROUTING:
                nat.append(self._base(protocol, path, chain, own))
            elif (
                chain.type != "nat" and chain.hook == _PREROUTING and chain.priority <= _TRACKED_AT
            ):
                tracking.append(self._base(protocol, path, chain, None))
        nat += self._legacy("nat", POSTROUTING, _LEGACY_NAT)
        tracking += self._legacy("raw", "PREROUTING", _LEGACY_RAW)
        return PostroutingHook(
            self._family,
            tuple(sorted(nat, key=lambda base: base.priority)),
            tuple(sorted(tracking, key=lambda base: base.priority)),
            programs=self._place == "bpf",
            asleep=asleep,
        )

    def _own(self, path: str, chain: ChainInfo) -> str | None:
        """Return which chain is ours of those that this one leads to; None for none."""
        ip = _IP[self._family]
        if self._place == "iptables-nft" and (path, chain.name) == (f"{ip} nat", POSTROUTING):
            return self._own_chain
        if self._place == "nftables" and path == f"{ip} {self._own_table}":
            return chain.name if chain.name == nftables.POSTROUTING else None
        return None

    # -- nf_tables --------------------------------------------------------------------------

    def _base(
        self, protocol: Family | int, path: str, chain: ChainInfo, own: str | None
    ) -> BaseChain:
        name = chain.name
        _, _, table = path.partition(" ")
        place = "" if own is not None else f" of table {path}"
        unsure = chain.priority == _TRACKED_AT
        chains: dict[str, Chain] = {}
        sets: dict[str, Held] = {}
        waiting = [] if own == name else [name]
        while waiting:
            at = waiting.pop()
            if at in chains or at == own:
                continue
            chains[at], asked = self._chain(protocol, table, at, sets)
            waiting += asked.chains
        known = {key: held for key, held in sets.items() if isinstance(held, AddressSet)}
        found = Table(self._family, chains, known)
        return BaseChain(found, name, chain.priority, place, own, unsure)

    def _chain(
        self, protocol: Family | int, table: str, name: str, sets: dict[str, Held]
    ) -> tuple[Chain, References]:
        listed = list_chain(protocol, table, name)
        self._rules_left -= len(listed)
        if self._rules_left < 0:
            words = f"({len(listed)} rules, too many to read)"
            return Chain(name, None, (Rule(words, (), readable=False),)), References()
        rules = [rule.expressions for rule in listed]
        asked = references(rules)
        for wanted in asked.sets - sets.keys():
            held = self._set(protocol, table, wanted)
            if held is not None:
                sets[wanted] = held
        found = [told(rule, self._family, sets, _device) for rule in rules]
        if isinstance(protocol, Family) and table in _OF_IPTABLES:
            found = list(map(as_iptables, found))
        return Chain(name, None, tuple(found)), asked

    def _set(self, protocol: Family | int, table: str, name: str) -> Held | None:
        """Return what a set holds; None where it is not of addresses or devices, or too large."""
        family, info = self._family, set_info(protocol, table, name)
        if info is None or (info.size or 0) > _MOST_ELEMENTS:
            return None
        if info.flags & _MAP and info.key[0] != _DEVICE_TYPE:
            return None
        data = b""
        if info.key[0] in (_ADDRESS_TYPE[family], _DEVICE_TYPE):
            data = list_elements(protocol, table, name)
        if info.key == (_DEVICE_TYPE, 16) and not info.flags & _INTERVAL:
            keys = (found.key.rstrip(b"\0") for found in elements_of(data))
            return tuple(sorted(key.decode(errors="surrogateescape") for key in keys))
        if info.key != (_ADDRESS_TYPE[family], family.bits // 8):
            return None
        if info.flags & _INTERVAL:
            spans: Iterator[tuple[int, int]] = zip(*intervals_of(family, data), strict=True)
        else:
            keys = (found.key for found in elements_of(data))
            spans = ((n, n) for n in sorted(int.from_bytes(key, "big") for key in keys))
        prefixes = (p for first, last in spans for p in prefixes_of_range(family, first, last))
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
        ours = self._place == "iptables-legacy" and table == "nat"
        place = "" if ours else f" of iptables-legacy's {table}"
        yield BaseChain(found, chain, priority, place, self._own_chain if ours else None)


def _device(number: int) -> str:
    """Return the name of a device; one that is no more has a name that none has."""
    try:
        return socket.if_indextoname(number)
    except OSError:
        return f"#{number}"
