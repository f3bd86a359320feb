"""A table of chains, as far as it was read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ipmasq_agent.planes.prefixset import AddressSet
from ipmasq_agent.planes.rules.rule import Rule
from ipmasq_agent.policy.addresses import Family

POSTROUTING = "POSTROUTING"
"""The built-in chain of the nat table that packets meet as they leave."""


class Spans(Protocol):
    """A set of addresses, as far as rules ask it."""

    def matched(self) -> Iterable[tuple[int, int]]:
        """Return the ranges of addresses that are in it, ascending, ends included."""


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain: its rules in order; ``policy`` is None for a chain of a user's own."""

    name: str
    policy: str | None
    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """The nat table of one family. A chain that does not exist is not in ``chains``.

    ``sets`` are the sets of ours that its rules may refer to, by name.
    """

    family: Family
    chains: Mapping[str, Chain]
    sets: Mapping[str, AddressSet] = field(default_factory=dict)

    def rules(self, chain: str) -> tuple[Rule, ...]:
        """Return the rules of a chain; none where it does not exist."""
        return self.chains[chain].rules if chain in self.chains else ()


def empty_table(family: Family) -> Table:
    """Return the nat table of a kernel in which nobody has made one yet."""
    return Table(family, {POSTROUTING: Chain(POSTROUTING, "ACCEPT", ())})
