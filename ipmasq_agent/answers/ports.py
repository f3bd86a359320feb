"""How many source ports translated connections have left, by destination."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ipmasq_agent.policy.ports import MOST, PortUse
from ipmasq_agent.policy.tally import Tally

NEARLY_USED = 0.8
"""From this part of the ports on it is worth a warning: what tries a number of ports, as the
kernel does, finds none before the last one is taken."""


class PortRow(NamedTuple):
    """What is in use of the ports that some connections share.

    Attributes:
        shared: by which connections.
        used: how many of its ports.
        grown: how many more than at the look before; None where there was none.
    """

    shared: PortUse
    used: int
    grown: int | None = None

    @property
    def of(self) -> int:
        """How many ports there are."""
        return self.shared.pool.size

    @property
    def left(self) -> int:
        """How many are not in use."""
        return max(0, self.of - self.used)

    @property
    def fill(self) -> float:
        """Which part of them is in use, from 0 to 1."""
        return self.used / self.of

    @property
    def labels(self) -> tuple[str, str, str, str]:
        """Destination, protocol, the address that they leave with, and the pool, as text."""
        shared = self.shared
        family = shared.family
        ends = shared.reached.shown(family), shared.protocol_name, family.show(shared.address)
        return (*ends, str(shared.pool))

    def as_data(self) -> dict[str, Any]:
        """Return it for JSON."""
        destination, protocol, address, pool = self.labels
        return {
            "destination": destination,
            "protocol": protocol,
            "address": address,
            "ports": pool,
            "used": self.used,
            "of": self.of,
            "left": self.left,
            "grown": self.grown,
        }

    @property
    def warning(self) -> str | None:
        """What there is to fear, from ``NEARLY_USED`` on."""
        if self.fill < NEARLY_USED:
            return None
        destination, protocol, address, pool = self.labels
        return (
            f"{self.used} of {self.of} source ports ({pool}) are in use for {protocol} to "
            f"{destination} as {address}: new connections there will fail; keep the pods' "
            "addresses there, widen --to-ports, or use another snatAddress for a part of them"
        )


class PortLook(NamedTuple):
    """One look at the ports in use.

    Attributes:
        rows: those of which most are in use, the fullest first.
        missed: how many more each may use, where there are more destinations than are counted.
        seconds: since the look before; None where there was none.
        tracked: how many connections connection tracking knows, and how many it may; None
            where it is not asked.
    """

    rows: tuple[PortRow, ...] = ()
    missed: int = 0
    seconds: float | None = None
    tracked: tuple[int, int] | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is nearly used up, a line each."""
        count, most = self.tracked or (0, 0)
        full = most and count >= NEARLY_USED * most
        room = (
            f"{count} of {most} connections are tracked: packets of new ones are dropped when the "
            "table is full; raise net.netfilter.nf_conntrack_max"
        )
        return (*((room,) if full else ()), *filter(None, (row.warning for row in self.rows)))

    def since(self, before: Mapping[str, int], seconds: float) -> PortLook:
        """Return it beside what an earlier look, so long ago, ``counted``."""
        # What was not among the fullest then had some ports, or none: nobody knows.
        unknown = 0 if len(before) < MOST else None
        rows = []
        for row in self.rows:
            count = before.get(" ".join(row.labels), unknown)
            rows.append(row if count is None else row._replace(grown=row.used - count))
        return self._replace(rows=tuple(rows), seconds=seconds)

    def counted(self) -> dict[str, int]:
        """Return what the next look compares with."""
        return {" ".join(row.labels): row.used for row in self.rows}


def looked(found: Tally[PortUse]) -> PortLook:
    """Return what was counted as a look."""
    rows = [PortRow(shared, used) for shared, used in found.counts.items()]
    rows.sort(key=lambda row: (-row.fill, -row.used, row.labels))
    return PortLook(tuple(rows), found.missed)
