"""The policy of one family: guards, decisions, action; and what a host can do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from ipmasq_agent.policy.addresses import Family, Prefix
from ipmasq_agent.policy.decisions import DecisionMap, Verdict

MANY_RULES = 256
"""How many rules a packet may have to pass before a set is much the better form: at 1,000
new flows are down to two thirds of what a set gives."""


class PortRange(NamedTuple):
    """Source ports that masquerading may use, ends included."""

    first: int
    last: int

    @property
    def size(self) -> int:
        """How many ports there are."""
        return self.last - self.first + 1

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


def parse_port_ranges(text: str) -> tuple[PortRange, ...]:
    """Read ``1024-29999,32768-65535``; the order is kept, and ``""`` means no restriction.

    Raises:
        ValueError: says which part cannot be read, and why.
    """
    ranges = []
    for part in text.split(",") if text else ():
        first, dash, last = part.partition("-")
        if not _is_number(first) or (dash and not _is_number(last)):
            raise ValueError(f"{part[:20]!r} is not a port or a range like 1024-29999")
        ports = PortRange(int(first), int(last) if dash else int(first))
        if not 1 <= ports.first <= ports.last <= 65535:
            raise ValueError(f"{part!r} does not go upwards within 1-65535")
        ranges.append(ports)
    return tuple(ranges)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5


# The protocols whose ports can be chosen.
PORT_PROTOCOLS = ("tcp", "udp", "sctp")


@dataclass(frozen=True, slots=True)
class Guards:
    """Which packets a policy speaks of; anything else is none of its business.

    A reply never is: connection tracking translates it, or does not, as it did the first
    packet of its connection, whichever side that came from.

    Attributes:
        local_destinations: also packets to addresses of the node itself. A packet that
            the node delivers to itself passes POSTROUTING too, and must keep its source.
        sources: only packets from these, sorted and disjoint; None for any source.
        devices: only packets that leave through these, sorted by name; None for any device.
    """

    local_destinations: bool = False
    sources: tuple[Prefix, ...] | None = None
    devices: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.sources == () or self.devices == ():
            # Data planes have no form for "no packet at all": the decisions say that.
            raise ValueError("guards that admit no packet are a policy that masquerades nothing")


class FixedSource(NamedTuple):
    """A range of destinations, ends included, whose packets get this source address."""

    first: int
    last: int
    address: int


def joined(ranges: Iterable[FixedSource]) -> tuple[FixedSource, ...]:
    """Return sorted disjoint ranges with neighbours of one address made into one."""
    result: list[FixedSource] = []
    for item in ranges:
        if result and (result[-1].last + 1, result[-1].address) == (item.first, item.address):
            result[-1] = result[-1]._replace(last=item.last)
        else:
            result.append(item)
    return tuple(result)


@dataclass(frozen=True, slots=True)
class Action:
    """What masquerading means: which address, and which port.

    Attributes:
        ports: source ports for TCP, UDP and SCTP; empty leaves the choice to the kernel.
        random_fully: choose ports at random rather than the pod's own where it is free,
            which spares concurrent flows the insertion race in conntrack.
        fixed: where the source address is not that of the egress interface; sorted and
            disjoint, neighbours of one address joined.
    """

    ports: tuple[PortRange, ...] = ()
    random_fully: bool = True
    fixed: tuple[FixedSource, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class FamilyPolicy:
    """Everything that is decided about packets of one family.

    Two are equal when they treat each packet alike: guards and action do not count in
    policies that masquerade nothing.
    """

    decisions: DecisionMap
    guards: Guards = field(default_factory=Guards)
    action: Action = field(default_factory=Action)

    @property
    def family(self) -> Family:
        """The family whose packets are meant."""
        return self.decisions.family

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, FamilyPolicy):
            return NotImplemented
        if self.decisions != other.decisions:
            return False
        return not self.masquerades or (
            self.guards == other.guards
            and self.action.ports == other.action.ports
            and self.action.random_fully == other.action.random_fully
            and self._fixed() == other._fixed()
        )

    def __hash__(self) -> int:
        return hash(self.decisions)

    def _fixed(self) -> tuple[FixedSource, ...]:
        """Return the fixed sources where they count: of what is masqueraded."""
        return joined(
            FixedSource(max(first, entry.first), min(last, entry.last), address)
            for first, last, address in self.action.fixed
            for entry in self.decisions.between(first, last)
            if entry.verdict is Verdict.MASQUERADE
        )

    @property
    def masquerades(self) -> bool:
        """Whether any packet at all is masqueraded."""
        return Verdict.MASQUERADE in self.decisions.verdicts


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the host can do, handed to those who build rules so that none of them probes."""

    random_fully: bool = True
