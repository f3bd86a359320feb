"""How full a data plane's own tables of flows are, and where its ports ran out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.flows import End, protocol_name

NEARLY_FULL = 0.8
"""From this part of a table on it is worth a warning."""


class FlowTable(NamedTuple):
    """A table of flows.

    Attributes:
        name: in the plane's own words.
        capacity: how many flows it can hold.
        held: family → how many it holds that have not expired.
    """

    name: str
    capacity: int
    held: Mapping[Family, int]

    @property
    def fill(self) -> float:
        """Which part of it is in use, from 0 to 1."""
        return sum(self.held.values()) / self.capacity

    def as_data(self) -> dict[str, Any]:
        """Return it for JSON."""
        held = {family.value: count for family, count in self.held.items()}
        return {"name": self.name, "capacity": self.capacity, **held}

    def __str__(self) -> str:
        held = sum(self.held.values())
        return f"{self.name} {held} of {self.capacity} ({self.fill:.0%})"


class Exhausted(NamedTuple):
    """A destination to which no port was free.

    Attributes:
        family, address, port: of the destination; the port is 0 for protocols without ports.
        protocol: its number (IANA).
        times: how many packets of new flows were dropped for that.
    """

    family: Family
    address: int
    port: int
    protocol: int
    times: int

    @property
    def destination(self) -> str:
        """Address and port as people write them."""
        return End(self.address, self.port).shown(self.family)

    @property
    def protocol_name(self) -> str:
        """The protocol in words, or its number."""
        return protocol_name(self.protocol)

    def as_data(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "destination": self.destination,
            "protocol": self.protocol_name,
            "times": self.times,
        }

    def __str__(self) -> str:
        return f"{self.protocol_name} to {self.destination}, {self.times} times"


class Usage(NamedTuple):
    """What is in use of a data plane that has tables of its own.

    Attributes:
        tables: all of them.
        exhausted: where ports ran out since the tables were made, most often first; a few.
    """

    tables: tuple[FlowTable, ...] = ()
    exhausted: tuple[Exhausted, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is nearly full, a line each."""
        return tuple(
            f"the table of flows `{table.name}` is {table.fill:.0%} full, and what finds no room "
            "there is dropped or forgotten; --bpf-flows makes a larger one once the programs have "
            "been removed"
            for table in self.tables
            if table.fill >= NEARLY_FULL
        )
