"""Our nftables table as the kernel lists it, made into the value that it is to us.

Its frame (chains, rules, which sets there are) is small and read each time. The elements
of a set may be very many; whoever knows them already says so, and spares their reading. Where
the kernel refuses, or the ruleset never stands still, it is a KernelReadError.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

from ipmasq_agent.errors import KernelReadError
from ipmasq_agent.netlink import nft_objects as objects
from ipmasq_agent.netlink.expressions import Counter
from ipmasq_agent.netlink.nf import of_one_state
from ipmasq_agent.planes.flowcount import ENTERED, TRANSLATED, Counts
from ipmasq_agent.planes.nftables.compile import PARTS, POSTROUTING, SOURCES
from ipmasq_agent.planes.nftables.state import (
    BESIDE,
    COMMENT,
    ChainHook,
    NftChain,
    NftRule,
    NftSet,
    NftTable,
    SetKind,
    asked,
    renamed,
)
from ipmasq_agent.planes.nftables.wire import devices_of, kind_of_set, set_of
from ipmasq_agent.policy.addresses import Family

_HOOKS = ("prerouting", "input", "forward", "output", POSTROUTING)  # enum nf_inet_hooks
_POLICIES = {0: "drop", 1: "accept"}


@dataclass(frozen=True, slots=True)
class Frame:
    """Our table without the elements of its sets, in one state of the ruleset.

    Attributes:
        generation: the number of that state.
        table: with sets that hold nothing.
        handle: of the table; 0 where there is none.
        sets: what the kernel says of each set, by its own name.
    """

    generation: int
    table: NftTable
    handle: int
    sets: Mapping[str, objects.SetInfo]

    def same(self, other: Frame) -> bool:
        """Whether two are alike in all that they show."""
        return replace(self, generation=0) == replace(other, generation=0)


def read_frame(family: Family, name: str) -> Frame:
    """Return the frame of our table."""
    return of_one_state(family, partial(_frame, family, name))


def _frame(family: Family, name: str, generation: int | None) -> Frame:
    if generation is None:
        raise KernelReadError("nf_tables does not tell its generation")
    held = objects.table_info(family, name)
    if held is None:
        return Frame(generation, NftTable(family, name, exists=False), 0, {})
    rules: dict[str, list[NftRule]] = {}
    for rule in objects.list_rules(family, name):
        rules.setdefault(rule.chain, []).append(_without_counters(rule.expressions))
    # The kernel lists the chains of all tables: that is asked for only where there are more
    # than those with rules and the one that may have none.
    hooked = objects.chain_info(family, name, POSTROUTING)
    chains: dict[str, objects.ChainInfo | None] = {POSTROUTING: hooked} if hooked else {}
    chains |= dict.fromkeys(chain for chain in rules if chain != POSTROUTING)
    found = objects.list_sets(family, name)
    if held.use != len(chains) + len(found):
        chains = {chain.name: chain for of, chain in objects.list_chains(family) if of == name}
    others = max(held.use - len(chains) - len(found), 0)
    foreign: tuple[str, ...] = (f"{others} objects or flow tables",) if others else ()
    if held.dormant:
        foreign += ("the flag dormant",)
    names = _own_names((info.name for info in found), rules.values())
    sets = {names.get(info.name, info.name): info for info in found}
    table = NftTable(
        family,
        name,
        {
            chain: NftChain(
                _hook(info), tuple(renamed(rule, names) for rule in rules.get(chain, ()))
            )
            for chain, info in chains.items()
        },
        {own: NftSet(kind_of_set(info.form, family)) for own, info in sets.items()},
        marked=held.comment == COMMENT,
        foreign=foreign,
        held_as={own: raw for raw, own in names.items()},
    )
    return Frame(generation, table, held.handle, sets)


def counted(family: Family, name: str) -> Counts:
    """Yield how many flows the rules of our table have let pass or translated."""
    for rule in objects.list_rules(family, name):
        packets = rule.packets
        if packets is not None:
            yield rule.handle, ENTERED, packets
            if rule.translates:
                yield rule.handle, TRANSLATED, packets


def _without_counters(rule: NftRule) -> NftRule:
    return tuple(each for each in rule if not isinstance(each, Counter))


def _own_names(sets: Iterable[str], chains: Iterable[Sequence[NftRule]]) -> dict[str, str]:
    """Return the own names of sets that took another one's place.

    Of a set and the one beside it, that counts which the rules ask. The other is left from
    a change that was broken off, and has the name that is free.
    """
    used = set[str]().union(*(asked(rule) for rules in chains for rule in rules))
    names: dict[str, str] = {}
    for raw in sets:
        own = raw.removesuffix(BESIDE)
        if own != raw and raw in used and own not in used:
            names |= {raw: own, own: raw}
    return names


def _hook(chain: objects.ChainInfo | None) -> ChainHook | None:
    if chain is None or chain.hook is None:
        return None
    policy = _POLICIES.get(chain.policy, str(chain.policy))
    hook = _HOOKS[chain.hook] if chain.hook < len(_HOOKS) else str(chain.hook)
    return ChainHook(hook, chain.priority, chain.type, policy)


def read_table(frame: Frame, known: Mapping[str, NftSet] = MappingProxyType({})) -> NftTable:
    """Return the table of a frame with all elements; of sets that are known without a question."""
    table = frame.table
    sets = {
        name: known[name]
        if name in known
        else read_set(table.family, table.name, frame.sets[name], held.kind)
        for name, held in table.sets.items()
    }
    return replace(table, sets=sets)


def read_table_at(frame: Frame, destination: int) -> NftTable:
    """Return the table of a frame with no more elements than decide about one destination."""
    table = frame.table
    parts = frame.sets.get(PARTS)
    elsewhere = frozenset[int | str]()
    if parts is not None:
        whole = read_set(table.family, table.name, parts, table.sets[PARTS].kind)
        position = bisect_right(whole.firsts, destination) - 1
        elsewhere = frozenset(whole.values) - {*whole.values[position : position + 1]}
    sets = {
        name: NftSet(held.kind)
        if name in elsewhere
        else read_set(
            table.family,
            table.name,
            frame.sets[name],
            held.kind,
            None if name == SOURCES else destination,
        )
        for name, held in table.sets.items()
    }
    return replace(table, sets=sets)


def read_set(
    family: Family, table: str, info: objects.SetInfo, kind: SetKind, address: int | None = None
) -> NftSet:
    """Return a set with all of its elements, or with no more than what it says of an address."""
    if kind is SetKind.UNKNOWN:
        return NftSet(kind)
    if kind is SetKind.DEVICES:
        return devices_of(objects.list_keys(family, table, info.name))
    if address is None or kind is SetKind.PARTS:
        return set_of(kind, family, objects.list_intervals(family, table, info.name))
    return set_of(kind, family, objects.interval_at(family, table, info.name, address))
