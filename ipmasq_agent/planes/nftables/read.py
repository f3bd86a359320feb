"""Our nftables table as the kernel lists it, made into the dialect's value.

Its frame (chains, rules, which sets there are) is small and read each time. The elements
of a set may be very many; whoever knows them already says so, and spares their reading.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ipmasq_agent.errors import KernelReadError
from ipmasq_agent.netlink.core import attributes, text
from ipmasq_agent.netlink.nf import generation, list_rules
from ipmasq_agent.netlink.nft_elements import Element, elements_of, intervals_of, paired
from ipmasq_agent.netlink.nft_objects import (
    ChainInfo,
    SetInfo,
    chain_info,
    chain_infos,
    interval_at,
    list_elements,
    set_infos,
    table_info,
)
from ipmasq_agent.planes.nftables.compile import POSTROUTING
from ipmasq_agent.planes.nftables.rules import NftRule
from ipmasq_agent.planes.nftables.state import (
    BESIDE,
    COMMENT,
    Hook,
    Kind,
    NftChain,
    NftSet,
    NftTable,
    addresses,
)
from ipmasq_agent.planes.nftables.wire import rule_of, verdict_of
from ipmasq_agent.planes.nftables.write import (
    ADDRESS_TYPE,
    DEVICE_LENGTH,
    DEVICE_TYPE,
    INTERVAL,
    MAP,
    VERDICT_TYPE,
)
from ipmasq_agent.policy.addresses import Family

_TRIES = 10
_HOOKS = ("prerouting", "input", "forward", "output", POSTROUTING)  # enum nf_inet_hooks
_POLICIES = {0: "drop", 1: "accept"}

Reader = Callable[[str, SetInfo, Kind], NftSet]


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
    sets: Mapping[str, SetInfo]

    def same(self, other: Frame) -> bool:
        """Whether two are alike in all that they show."""
        return replace(self, generation=0) == replace(other, generation=0)


def read_frame(family: Family, name: str) -> Frame:
    """Return the frame of our table.

    Raises:
        KernelReadError: the kernel refuses, or the ruleset never stands still.
    """
    for _ in range(_TRIES):
        before = generation()
        frame = _read_frame(family, name, before)
        if generation() == before:
            return frame
    raise unquiet(family)


def unquiet(family: Family) -> KernelReadError:
    """Return the error of a ruleset that changes all the time."""
    return KernelReadError(
        f"the nf_tables rules of {family.value} changed {_TRIES} times while they were read",
        remedy="find out which program rewrites them without pause",
    )


def _read_frame(family: Family, name: str, now: int) -> Frame:
    table = table_info(family, name)
    if table is None:
        return Frame(now, NftTable(family, name, exists=False), 0, {})
    rules = list_rules(family, name)
    hooked = chain_info(family, name, POSTROUTING)
    chains = {POSTROUTING: _hook(hooked)} if hooked else {}
    chains |= dict.fromkeys(chain for chain in rules if chain != POSTROUTING)
    sets = {info.name: info for info in set_infos(family, name)}
    foreign: tuple[str, ...] = ()
    if table.use != len(chains) + len(sets):
        # A chain without rules, or things that we never make.
        chains = {chain.name: _hook(chain) for chain in chain_infos(family, name)}
        others = table.use - len(chains) - len(sets)
        foreign = (f"{others} objects or flow tables",) if others > 0 else ()
    if table.dormant:
        foreign += ("the flag dormant",)
    told = {
        chain: tuple(rule_of(rule, family) for rule in rules.get(chain, ())) for chain in chains
    }
    names = _own_names(sets, told.values())
    sets = {names.get(raw, raw): info for raw, info in sets.items()}
    return Frame(
        now,
        NftTable(
            family,
            name,
            {
                chain: NftChain(hook, tuple(rule.renamed(names) for rule in told[chain]))
                for chain, hook in chains.items()
            },
            {own: NftSet(_kind(info, family)) for own, info in sets.items()},
            marked=table.comment == COMMENT,
            foreign=foreign,
            held_as={own: raw for raw, own in names.items()},
        ),
        table.handle,
        sets,
    )


def _own_names(sets: Iterable[str], chains: Iterable[Sequence[NftRule]]) -> dict[str, str]:
    """Return the own names of sets that took another one's place.

    Of a set and the one beside it, that counts which the rules ask. The other is left from
    a change that was broken off, and has the name that is free.
    """
    asked = set[str]().union(*(rule.sets for rules in chains for rule in rules))
    names: dict[str, str] = {}
    for raw in sets:
        own = raw.removesuffix(BESIDE)
        if own != raw and raw in asked and own not in asked:
            names |= {raw: own, own: raw}
    return names


def _hook(chain: ChainInfo) -> Hook | None:
    if chain.hook is None:
        return None
    policy = _POLICIES.get(chain.policy, str(chain.policy))
    return Hook(_HOOKS[chain.hook], chain.priority, chain.type, policy)


def _kind(info: SetInfo, family: Family) -> Kind:
    address = (ADDRESS_TYPE[family], family.bits // 8)
    known = {
        (INTERVAL, address, 0): Kind.ADDRESSES,
        (INTERVAL | MAP, address, ADDRESS_TYPE[family]): Kind.TRANSLATIONS,
        (INTERVAL | MAP, address, VERDICT_TYPE): Kind.PARTS,
        (0, (DEVICE_TYPE, DEVICE_LENGTH), 0): Kind.DEVICES,
    }
    return known.get((info.flags, info.key, info.data), Kind.UNKNOWN)


def filled(frame: Frame, read: Reader) -> NftTable:
    """Return the table of a frame with its sets filled by ``read``."""
    table = frame.table
    sets = {name: read(name, frame.sets[name], held.kind) for name, held in table.sets.items()}
    return replace(table, sets=sets)


def read_set(family: Family, table: str, info: SetInfo, kind: Kind) -> NftSet:
    """Return a set with all of its elements.

    Raises:
        KernelReadError: the kernel refuses, or the ruleset never stands still.
    """
    if kind is Kind.UNKNOWN:
        return NftSet(kind)
    data = list_elements(family, table, info.name)
    if kind is Kind.ADDRESSES:
        return addresses(family, *intervals_of(family, data))
    if kind is Kind.DEVICES:
        keys = sorted(element.key.rstrip(b"\0") for element in elements_of(data))
        return NftSet(kind, names=tuple(text(key) for key in keys))
    return _map(family, kind, elements_of(data))


def read_set_at(family: Family, table: str, info: SetInfo, kind: Kind, address: int) -> NftSet:
    """Return a set of addresses with no more than what it says about one.

    Raises:
        KernelReadError: as ``read_set``.
    """
    if kind not in (Kind.ADDRESSES, Kind.TRANSLATIONS):
        return read_set(family, table, info, kind)
    found = interval_at(family, table, info.name, address)
    if kind is Kind.TRANSLATIONS:
        return _map(family, kind, found)
    intervals = paired(family, found)
    return addresses(family, [i[0] for i in intervals], [i[1] for i in intervals])


def _map(family: Family, kind: Kind, elements: Iterable[Element]) -> NftSet:
    intervals = paired(family, elements)
    values = tuple(_value(kind, data) for _, _, data in intervals)
    firsts, lasts = [i[0] for i in intervals], [i[1] for i in intervals]
    return replace(addresses(family, firsts, lasts), kind=kind, values=values)


def _value(kind: Kind, data: bytes) -> int | str:
    if kind is Kind.PARTS:
        code, chain = verdict_of(data)
        return chain or f"verdict {code}"
    return int.from_bytes(dict(attributes(data)).get(1, b""), "big")
