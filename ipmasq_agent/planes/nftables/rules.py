"""Rules of our nftables chains as typed values, with the text that ``nft`` has for them.

Only the forms that a policy is written in are known. Any other rule is carried as one that
cannot be read, and decides nothing that we could tell.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.model import PortRange

NFT_FAMILY = {Family.IPV4: "ip", Family.IPV6: "ip6"}


@dataclass(frozen=True, slots=True)
class ToThisNode:
    """The destination is an address of the node itself."""

    def text(self, family: Family) -> str:
        """Return it as nft prints it."""
        return "fib daddr type local"


@dataclass(frozen=True, slots=True)
class SourceOutside:
    """The source address is not in a set."""

    name: str

    def text(self, family: Family) -> str:
        """Return it as nft prints it."""
        return f"{NFT_FAMILY[family]} saddr != @{self.name}"


@dataclass(frozen=True, slots=True)
class DeviceOutside:
    """The packet leaves through a device that is not in a set."""

    name: str

    def text(self, family: Family) -> str:
        """Return it as nft prints it."""
        return f"oifname != @{self.name}"


@dataclass(frozen=True, slots=True)
class DestinationIn:
    """The destination address is in a set."""

    name: str

    def text(self, family: Family) -> str:
        """Return it as nft prints it."""
        return f"{NFT_FAMILY[family]} daddr @{self.name}"


@dataclass(frozen=True, slots=True)
class OfProtocol:
    """The packet is of this protocol: tcp, udp or sctp."""

    protocol: str

    def text(self, family: Family) -> str:
        """Return it as nft prints it."""
        return f"meta l4proto {self.protocol}"


@dataclass(frozen=True, slots=True)
class Share:
    """Drawn by lot: ``size`` of ``of`` packets."""

    size: int
    of: int

    def text(self, family: Family) -> str:
        """Return it as nft prints it."""
        return f"numgen random mod {self.of} < {self.size}"


_ASKING = (SourceOutside, DeviceOutside, DestinationIn)
Match = ToThisNode | SourceOutside | DeviceOutside | DestinationIn | OfProtocol | Share


class Ending(enum.Enum):
    """A verdict: the packet leaves the chain, or our table altogether."""

    RETURN = "return"
    ACCEPT = "accept"

    def text(self, family: Family) -> str:
        """Return it as nft prints it."""
        return self.value


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Go where a map of destinations says: to the chain of its part of the addresses."""

    name: str

    def text(self, family: Family) -> str:
        """Return it as nft prints it."""
        return f"{NFT_FAMILY[family]} daddr vmap @{self.name}"


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

    def text(self, family: Family) -> str:
        """Return it as nft prints it."""
        ports = "" if self.ports is None else f":{_shown(self.ports)}"
        if self.fixed is not None:
            words = f"snat to {NFT_FAMILY[family]} daddr map @{self.fixed}{ports}"
        else:
            words = f"masquerade to {ports}" if ports else "masquerade"
        return f"{words} fully-random" if self.random_fully else words


def _shown(ports: PortRange) -> str:
    return str(ports) if ports.size > 1 else str(ports.first)


@dataclass(frozen=True, slots=True)
class Unreadable:
    """What a rule of an unknown form does, by the kinds of its expressions."""

    kinds: tuple[str, ...]
    data: bytes = b""

    def text(self, family: Family) -> str:
        """Return what can be said about it."""
        return f"(not understood: {', '.join(self.kinds)})"


@dataclass(frozen=True, slots=True)
class NftRule:
    """One rule: what a packet must be like, and what becomes of it."""

    matches: tuple[Match, ...]
    action: Ending | Dispatch | Translate | Unreadable

    @property
    def sets(self) -> set[str]:
        """The names of the sets and maps that it asks."""
        asked = {match.name for match in self.matches if isinstance(match, _ASKING)}
        if isinstance(self.action, Dispatch):
            asked.add(self.action.name)
        elif isinstance(self.action, Translate) and self.action.fixed is not None:
            asked.add(self.action.fixed)
        return asked

    def renamed(self, names: Mapping[str, str]) -> NftRule:
        """Return the rule with other names for the sets that it asks."""
        matches = tuple(
            replace(match, name=names.get(match.name, match.name))
            if isinstance(match, _ASKING)
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
        return " ".join(part.text(family) for part in (*self.matches, self.action))
