"""Rules of our nftables chains as typed values, with the text that ``nft`` has for them.

Only the forms that a policy is written in are known. Any other rule is carried as one that
cannot be read, and decides nothing that we could tell.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ipmasq_agent.netlink.nft_numbers import NFT_FAMILY
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.model import PortRange


class Field(enum.Enum):
    """What of a packet is looked up in a set, as nft writes it; {} is ip or ip6.

    A rule of ours asks for a destination in the set, and for sources and devices outside.
    """

    SOURCE = "{} saddr !="
    DESTINATION = "{} daddr"
    DEVICE = "oifname !="


@dataclass(frozen=True, slots=True)
class ToThisNode:
    """The destination is an address of the node itself."""


@dataclass(frozen=True, slots=True)
class InSet:
    """A field of the packet is in a set, or outside of it where so asked."""

    field: Field
    name: str


@dataclass(frozen=True, slots=True)
class OfProtocol:
    """The packet is of this protocol: tcp, udp or sctp."""

    protocol: str


@dataclass(frozen=True, slots=True)
class Share:
    """Drawn by lot: ``size`` of ``of`` packets."""

    size: int
    of: int


NftMatch = ToThisNode | InSet | OfProtocol | Share


class Ending(enum.Enum):
    """A verdict: the packet leaves the chain, or our table altogether."""

    RETURN = "return"
    ACCEPT = "accept"


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Go where a map of destinations says: to the chain of its part of the addresses."""

    name: str


@dataclass(frozen=True, slots=True)
class Translate:
    """Give the packet another source.

    Attributes:
        fixed: the map of destinations that has the address, past which the rule does
            nothing; None for the address of the device that the packet leaves through.
        ports: source ports to choose from; None leaves the choice to the kernel.
        random_fully: choose at random.
    """

    fixed: str | None
    ports: PortRange | None
    random_fully: bool


@dataclass(frozen=True, slots=True)
class Unreadable:
    """What a rule of an unknown form does, by the kinds of its expressions.

    These tell it from another one, and nobody looks into them.
    """

    kinds: tuple[str, ...]
    expressions: tuple[object, ...] = ()


NftAction = Ending | Dispatch | Translate | Unreadable


@dataclass(frozen=True, slots=True)
class NftRule:
    """One rule: what a packet must be like, and what becomes of it."""

    matches: tuple[NftMatch, ...]
    action: NftAction

    @property
    def sets(self) -> set[str]:
        """The names of the sets and maps that it asks."""
        asked = {match.name for match in self.matches if isinstance(match, InSet)}
        if isinstance(self.action, Dispatch):
            asked.add(self.action.name)
        elif isinstance(self.action, Translate) and self.action.fixed is not None:
            asked.add(self.action.fixed)
        return asked

    def renamed(self, names: Mapping[str, str]) -> NftRule:
        """Return the rule with other names for the sets that it asks."""
        matches = tuple(
            replace(match, name=names.get(match.name, match.name))
            if isinstance(match, InSet)
            else match
            for match in self.matches
        )
        action = self.action
        if isinstance(action, Dispatch):
            action = Dispatch(names.get(action.name, action.name))
        elif isinstance(action, Translate) and action.fixed is not None:
            action = replace(action, fixed=names.get(action.fixed, action.fixed))
        return NftRule(matches, action)

    def text(self, family: Family) -> str:
        """Return what follows ``add rule ip ip-masq CHAIN``."""
        return " ".join(_text(part, NFT_FAMILY[family]) for part in (*self.matches, self.action))


def _text(part: NftMatch | NftAction, ip: str) -> str:
    """Return a part of a rule as nft prints it."""
    match part:
        case ToThisNode():
            return "fib daddr type local"
        case InSet(field, name):
            return f"{field.value.format(ip)} @{name}"
        case OfProtocol(protocol):
            return f"meta l4proto {protocol}"
        case Share(size, of):
            return f"numgen random mod {of} < {size}"
        case Ending():
            return part.value
        case Dispatch(name):
            return f"{ip} daddr vmap @{name}"
        case Unreadable(kinds):
            return f"(not understood: {', '.join(kinds)})"
    ports = "" if part.ports is None else f":{_ports(part.ports)}"
    words = f"masquerade to {ports}" if ports else "masquerade"
    if part.fixed is not None:
        words = f"snat to {ip} daddr map @{part.fixed}{ports}"
    return f"{words} fully-random" if part.random_fully else words


def _ports(ports: PortRange) -> str:
    return str(ports) if ports.size > 1 else str(ports.first)
