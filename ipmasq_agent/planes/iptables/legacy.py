"""iptables over the legacy ip_tables interface, written by ``iptables-legacy-restore``.

A legacy table is read and replaced as a whole. We hold the xtables lock from before the read
until after the write, and both programs hand back the rules of others as the bytes they came
in, with their counters.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from ipmasq_agent.host.commands import run
from ipmasq_agent.planes.flowcount import ENTERED, TRANSLATED, Counts
from ipmasq_agent.planes.iptables.lock import xtables_lock
from ipmasq_agent.planes.iptables.plan import ChainPlan, restore_text
from ipmasq_agent.planes.iptables.plane import IptablesPlane, program
from ipmasq_agent.planes.iptables.save import Sieve, parse_saved
from ipmasq_agent.planes.iptables.shape import counts, digest, shape
from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.planes.rules.table import POSTROUTING, Table, empty_table
from ipmasq_agent.policy.addresses import Family

# Where the chains of a table led to when it was read last: most often they still do.
_reached: dict[tuple[Family, str, frozenset[str]], set[str]] = {}


def read_chains(
    family: Family, table: str, chains: Collection[str], *, follow: bool = False
) -> Table:
    """Return some chains of a table that exists, and with ``follow`` all that they lead to.

    The kernel hands out the whole table; what is not asked for is dropped as it comes.

    Raises:
        KernelReadError: it cannot be read in full.
        HostError: the program cannot be run.
    """
    saver, asked = program(family, "legacy", "save"), (family, table, frozenset(chains))
    wanted = {*chains, *(_reached.get(asked, ()) if follow else ())}
    while True:
        saved = run([saver, "-t", table], keep=Sieve(wanted)).stdout
        found = parse_saved(saved, family, writer=saver, table=table)
        rules = (rule for chain in found.chains.values() for rule in chain.rules)
        led = {rule.target for rule in rules if rule.target}
        if not follow or led <= wanted:
            _reached[asked] = led
            return found
        wanted |= led


class _Signs(NamedTuple):
    """What tells a nat table from others; None where there is none, or it is being replaced."""

    shape: bytes | None
    digest: int | None


def _signs(family: Family) -> _Signs:
    now = shape(family, "nat")
    return _Signs(now, None if now is None else digest(family, "nat", POSTROUTING, now))


class IptablesLegacyPlane(IptablesPlane):
    """The nat table of ip_tables and ip6_tables."""

    variant = "legacy"
    _lock: int  # of the session that goes on

    def __init__(self, placement: Placement, *, with_set: bool = False) -> None:
        super().__init__(placement, with_set=with_set)
        # What was read, with the signs of the table before and after.
        self._seen: dict[Family, tuple[_Signs, Table]] = {}

    def read_rules(self, family: Family) -> Table:
        """Return our chain and POSTROUTING; no rules where the kernel has no nat table."""
        before = _signs(family)
        table = empty_table(family)
        if before.shape is not None:
            table = read_chains(family, "nat", (self.placement.chain, POSTROUTING))
        if _signs(family) == before:
            self._seen[family] = before, table
        else:
            self._seen.pop(family, None)
        return table

    def glance(self, family: Family, *, closely: bool) -> Table:
        """Return it from memory as long as the table has as many rules, of the same size.

        Where it is looked at closely, also what packets may meet says what it said.
        """
        if family in self._seen:
            signs, table = self._seen[family]
            if signs == (_signs(family) if closely else (shape(family, "nat"), signs.digest)):
                return table
        return self.read_rules(family)

    def counted(self, family: Family) -> Counts:
        """Yield what the rules of our chain have counted."""
        before = shape(family, "nat")
        if before is not None:
            for one in counts(family, "nat", self.placement.chain, before):
                yield one.rule, ENTERED, one.packets
                if one.extends:
                    yield one.rule, TRANSLATED, one.packets

    @contextmanager
    def session(self, family: Family) -> Iterator[None]:
        """Hold the xtables lock."""
        with xtables_lock() as self._lock:
            yield

    def write_rules(self, family: Family, change: ChainPlan) -> None:
        """Make the edits and commit them, all in one, within a session.

        The program would wait for the lock that is ours, so it is given another one. It
        inherits ours, which so stays held until its commit has ended, whatever becomes of us.
        """
        restore = [program(family, self.variant, "restore"), "--noflush"]
        with open(os.memfd_create("xtables.lock"), "rb") as lock:
            run(
                restore,
                stdin=restore_text(change, locked=True),
                inherited=(self._lock, lock.fileno()),
                environment={"XTABLES_LOCKFILE": f"/proc/self/fd/{lock.fileno()}"},
            )
