"""A table of nftables as a value: chains, rules, sets; with the commands that make it.

The lines are in nft's own syntax: what a plan prints can be fed to ``nft -f``.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ipmasq_agent.netlink.expressions import Expression, SetLookup
from ipmasq_agent.netlink.nft_numbers import NFT_FAMILY
from ipmasq_agent.planes.rules.native import told
from ipmasq_agent.policy.addresses import Family, range_text
from ipmasq_agent.policy.columns import column

COMMENT = "kept by ipmasq-agent, which undoes what others change here"

BESIDE = "-2"
"""What ends the name of a set that took the place of another one, every other time."""

NftRule = tuple[Expression, ...]
"""A rule as the kernel lists it, but for what it counts."""


def asked(rule: NftRule) -> set[str]:
    """Return the names of the sets and maps that a rule asks."""
    return {each.set for each in rule if isinstance(each, SetLookup)}


def renamed(rule: NftRule, names: Mapping[str, str]) -> NftRule:
    """Return a rule with other names for the sets that it asks."""
    return tuple(
        each._replace(set=names.get(each.set, each.set)) if isinstance(each, SetLookup) else each
        for each in rule
    )


class SetKind(enum.Enum):
    """What a set holds; a map gives something for each of it."""

    ADDRESSES = enum.auto()
    DEVICES = enum.auto()
    TRANSLATIONS = enum.auto()
    """Destinations, and the source address that packets to them get."""
    PARTS = enum.auto()
    """Destinations, and the chain that decides about them."""
    UNKNOWN = enum.auto()
    """A set of some other type, which is not ours."""


@dataclass(frozen=True, slots=True)
class NftSet:
    """A set or a map.

    Attributes:
        kind: what is in it.
        firsts: where each range of addresses begins, ascending.
        lasts: where each ends, itself included.
        values: of a map, what it gives for each range: an address, or a chain's name.
        names: of a set of devices, their names, sorted.
    """

    kind: SetKind
    firsts: Sequence[int] = ()
    lasts: Sequence[int] = ()
    values: tuple[int | str, ...] = ()
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.firsts) + len(self.names)

    def matched(self) -> Iterable[tuple[int, int]]:
        """Return its ranges of addresses, ascending, ends included."""
        return zip(self.firsts, self.lasts, strict=True)

    def lines(self, family: Family, positions: Sequence[int] | None = None) -> Iterator[str]:
        """Yield the text of its elements, or of those at ``positions``."""
        if self.kind is SetKind.DEVICES:
            for position in range(len(self.names)) if positions is None else positions:
                yield f'"{self.names[position]}"'
            return
        for position in range(len(self.firsts)) if positions is None else positions:
            words = range_text(family, self.firsts[position], self.lasts[position])
            if self.values:
                value = self.values[position]
                words += f" : {family.show(value) if isinstance(value, int) else f'jump {value}'}"
            yield words


def addresses(
    family: Family, firsts: Sequence[int], lasts: Sequence[int], values: Sequence[int | str] = ()
) -> NftSet:
    """Return a set of ranges, or a map of them, in the smallest form."""
    kind = SetKind.ADDRESSES
    if values:
        kind = SetKind.PARTS if isinstance(values[0], str) else SetKind.TRANSLATIONS
    return NftSet(kind, column(family, firsts), column(family, lasts), tuple(values))


@dataclass(frozen=True, slots=True)
class ChainHook:
    """Where packets enter a chain; ``priority`` orders those of one hook, lowest first."""

    name: str
    priority: int
    type: str = "nat"
    policy: str = "accept"

    def __str__(self) -> str:
        return f"type {self.type} hook {self.name} priority {self.priority}; policy {self.policy};"


@dataclass(frozen=True, slots=True)
class NftChain:
    """A chain: its hook (None where only rules lead to it) and its rules in order."""

    hook: ChainHook | None
    rules: tuple[NftRule, ...]


@dataclass(frozen=True, slots=True)
class NftTable:
    """Our table of one family, as it is or as it should be.

    Attributes:
        family: whose packets.
        name: of the table.
        chains: by name; none where there is no table.
        sets: by name, maps included.
        exists: whether there is a table of that name.
        marked: it has our comment, so whatever is in it is ours to undo.
        foreign: what it holds that is neither chain nor set, in words.
        held_as: the names that sets have in the kernel, where these are not their own: a set
            that takes the place of another one is filled beside it.
    """

    family: Family
    name: str
    chains: Mapping[str, NftChain] = field(default_factory=dict)
    sets: Mapping[str, NftSet] = field(default_factory=dict)
    exists: bool = True
    marked: bool = field(default=True, compare=False)
    foreign: tuple[str, ...] = ()
    held_as: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def path(self) -> str:
        """The table as commands name it: ``ip ip-masq``."""
        return f"{NFT_FAMILY[self.family]} {self.name}"

    def table_line(self) -> str:
        """Return the command that makes the table."""
        return f'add table {self.path} {{ comment "{COMMENT}"; }}'

    def chain_line(self, name: str) -> str:
        """Return the command that makes a chain."""
        hook = self.chains[name].hook
        return f"add chain {self.path} {name}" + (f" {{ {hook} }}" if hook else "")

    def rule_line(self, chain: str, rule: NftRule) -> str:
        """Return the command that appends a rule."""
        return f"add rule {self.path} {chain} {told(rule, self.family, {}, str).text}"

    def set_line(self, name: str) -> str:
        """Return the command that makes a set or a map."""
        kind, key = self.sets[name].kind, f"{_ADDRESS[self.family]}_addr"
        if kind is SetKind.DEVICES:
            return f"add set {self.path} {name} {{ type ifname; }}"
        if kind is SetKind.UNKNOWN:
            return f"add set {self.path} {name} (of another type than ours)"
        if kind is SetKind.ADDRESSES:
            return f"add set {self.path} {name} {{ type {key}; flags interval; }}"
        value = "verdict" if kind is SetKind.PARTS else key
        return f"add map {self.path} {name} {{ type {key} : {value}; flags interval; }}"

    def element_lines(self, name: str, positions: Sequence[int] | None = None) -> Iterator[str]:
        """Yield the commands that fill a set, one for each element."""
        for words in self.sets[name].lines(self.family, positions):
            yield f"add element {self.path} {name} {{ {words} }}"

    def count(self, chains: Iterable[str] | None = None, sets: Iterable[str] | None = None) -> int:
        """Return how many lines make these chains and sets; or the whole table, by default."""
        whole = chains is None and sets is None
        some = self.chains if chains is None else chains
        rules = sum(1 + len(self.chains[name].rules) for name in some)
        held = self.sets if sets is None else sets
        elements = sum(1 + len(self.sets[name]) for name in held)
        return rules + elements + (len(self.foreign) + self.exists if whole else 0)

    def lines(self) -> list[str]:
        """Return the commands that make the whole table, in an order in which they work."""
        if not self.exists:
            return []
        made = [self.table_line()]
        made += (self.chain_line(name) for name in self.chains)
        for name in self.sets:
            made.append(self.set_line(name))
            made += self.element_lines(name)
        for name, chain in self.chains.items():
            made += (self.rule_line(name, rule) for rule in chain.rules)
        return made + [f"({words}, not ours)" for words in self.foreign]


_ADDRESS = {Family.IPV4: "ipv4", Family.IPV6: "ipv6"}
