"""What the contract tests are held against: each backend, with a way around it.

A subject loads and shows a nat table without the backend under test: what others write
before us, and what they find after us.
"""

from __future__ import annotations

import itertools
import socket
from abc import ABC, abstractmethod
from typing import cast

from ipmasq_agent.agent.reconcile import reconcile_family
from ipmasq_agent.planes.iptables.legacy import IptablesLegacyPlane
from ipmasq_agent.planes.iptables.nft import IptablesNftPlane
from ipmasq_agent.planes.iptables.plan import ChainPlan
from ipmasq_agent.planes.iptables.plane import IptablesPlane, iptables_dialect, program
from ipmasq_agent.planes.iptables.save import parse_saved
from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.planes.rules.table import Table, empty_table
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.model import FamilyPolicy
from tests import oracle
from tests.memory import MemoryPlane
from tests.netns import Namespace

CHAIN = "IP-MASQ"
_EMPTY = (
    "*nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n"
    ":OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\nCOMMIT\n"
)


class Subject(ABC):
    """A backend and the nat table of one family."""

    backend: IptablesPlane

    def __init__(self, family: Family) -> None:
        self.family = family

    @abstractmethod
    def load(self, text: str) -> None:
        """Replace the nat table, as another program would with iptables-restore."""

    @abstractmethod
    def shown(self) -> list[str]:
        """Return the nat table line by line, counters included where there are any."""

    def place(self, *, jump_first: bool) -> None:
        """Set the place of our jump."""
        self.backend.placement = Placement(CHAIN, jump_first)
        self.backend.dialect = iptables_dialect(self.backend.placement)

    def clear(self) -> None:
        """Leave an empty table, and the jump in its default place."""
        self.place(jump_first=False)
        self.load(_EMPTY)

    def write(self, policy: FamilyPolicy | None) -> ChainPlan:
        """Make one pass, as the agent does, and return what it changed."""
        return cast(ChainPlan, reconcile_family(self.backend, self.family, policy))

    def planned(self, policy: FamilyPolicy) -> ChainPlan:
        """Return what a pass would change."""
        table = self.backend.read(self.family)
        return self.backend.dialect.plan(table, self.backend.dialect.compile(policy))

    def rules(self, chain: str = CHAIN) -> list[str]:
        """Return the rules of a chain as another reader sees them, without counters."""
        lines = (line.partition("] ")[2] if line[0] == "[" else line for line in self.shown())
        return [line for line in lines if line.startswith(f"-A {chain} ")]

    def close(self) -> None:
        """Give back what the backend holds."""
        self.backend.close()


class InMemory(Subject):
    """The fake that plans are tried on without a kernel."""

    def __init__(self, family: Family) -> None:
        super().__init__(family)
        self.backend: MemoryPlane = MemoryPlane(Placement())

    def load(self, text: str) -> None:
        whole = text if ":POSTROUTING" in text else text.replace("*nat\n", _EMPTY[:-7])
        self.backend.tables[self.family] = parse_saved(whole, self.family, writer="the test")

    def shown(self) -> list[str]:
        table: Table = self.backend.tables[self.family]
        names = [f":{chain.name} {chain.policy or '-'}" for chain in table.chains.values()]
        rules = [
            f"-A {chain.name} {rule.text}"
            for chain in table.chains.values()
            for rule in chain.rules
        ]
        return names + rules

    def clear(self) -> None:
        super().clear()
        self.backend.tables[self.family] = empty_table(self.family)


class InKernel(Subject):
    """A backend in a network namespace, which the calling thread has entered.

    It is made once for many tests: a legacy worker takes half a second to start, and lives
    in the namespace in which it was started.
    """

    def __init__(self, variant: oracle.Variant, family: Family, namespace: Namespace) -> None:
        super().__init__(family)
        self.variant = variant
        self.namespace = namespace
        self.backend: IptablesPlane = (
            IptablesNftPlane if variant == "nft" else IptablesLegacyPlane
        )(Placement())
        # Below those that the kernel picks: conntrack knows a flow for 30 s, and a packet
        # from a port that it picked again would not be the first of its connection.
        self._ports = itertools.count(10_000)

    def load(self, text: str) -> None:
        self.namespace.run([program(self.family, self.variant, "restore")], stdin=text)

    def shown(self) -> list[str]:
        family: oracle.Family = "ipv4" if self.family is Family.IPV4 else "ipv6"
        text = oracle.save_text(self.variant, family)
        return [line for line in text.splitlines() if line[:1] in ("[", ":")]

    def packets(self, chain: str = CHAIN) -> list[int]:
        """Return how many packets each rule of a chain has counted."""
        lines = (line for line in self.shown() if f"] -A {chain} " in line)
        return [int(line[1:].partition(":")[0]) for line in lines]

    def send(self, *destinations: str) -> None:
        """Send one packet, the first of its connection, to each address of our own."""
        kind = socket.AF_INET if self.family is Family.IPV4 else socket.AF_INET6
        for destination in destinations:
            with socket.socket(kind, socket.SOCK_DGRAM) as sender:
                sender.bind(("", next(self._ports)))
                sender.sendto(b"x", (destination, 9))
