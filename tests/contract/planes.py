"""One subject for each row of the registry: a plane on a node, and ways around it.

A subject shows what a plane wrote, and ruins it, without the plane under test.
"""

from __future__ import annotations

import os
import shutil
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from ipmasq_agent.agent.reconcile import reconcile_family
from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.planes.plane import AnyPlane, Change
from ipmasq_agent.planes.registry import PLANES, PlaneRow
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.model import FamilyPolicy
from tests import oracle
from tests.fakeplane.plane import path_of
from tests.fakeplane.row import ROW as FAKE
from tests.kernel.pins import PINS
from tests.netns import Namespace

ROWS = (*PLANES, FAKE)
DEVICES = ("eth0", "eth1", "bond0.7")
"""Those of the node, as ``policies.walk`` names them; traffic leaves through the first."""
NFT = {Family.IPV4: "ip", Family.IPV6: "ip6"}


Ruin = Callable[[], object]
"""What somebody may do to our state."""


class Subject(ABC):
    """A plane of one family in a namespace that the calling thread has entered.

    Args:
        row: of the plane.
        family: of the policies.
        namespace: a node, with routes that lead out of it.
    """

    def __init__(self, row: PlaneRow, family: Family, namespace: Namespace) -> None:
        self.row = row
        self.family = family
        self.namespace = namespace
        self.placement = Placement(pins=os.environ[PINS])
        self._made: list[AnyPlane] = []
        self.plane = self.another()

    def another(self) -> AnyPlane:
        """Return the plane as an agent has it that knows nothing yet."""
        self._made.append(self.row.make(self.placement))
        return self._made[-1]

    def write(self, policy: FamilyPolicy | None) -> Change[object]:
        """Make one pass, as the agent does, and return what it changed."""
        return reconcile_family(self.plane, self.family, policy)

    def planned(self, policy: FamilyPolicy) -> Change[object]:
        """Return what a pass would change, as an agent sees it that knows nothing yet."""
        fresh = self.another()
        change: Change[object] = fresh.dialect.plan(
            fresh.read(self.family), fresh.dialect.compile(policy)
        )
        return change

    def decided(self) -> FamilyPolicy:
        """Return what is in force, as an agent reads it that knows nothing yet."""
        fresh = self.another()
        return fresh.dialect.interpret(fresh.read(self.family)).policy

    def shown(self) -> object:
        """Return all that other readers find on the node, each thing as it was made."""
        return oracle.snapshot(self.namespace.name, counters=True, handles=True)

    @abstractmethod
    def ruins(self) -> Iterator[Ruin]:
        """Yield what somebody may do to our state, each by itself."""

    def close(self) -> None:
        """Give back what planes hold."""
        for plane in self._made:
            plane.close()

    def run(self, *words: str) -> Ruin:
        """Return a program of somebody else's, to be run."""
        return lambda: self.namespace.run(list(words))


class Chain(Subject):
    """A chain with a rule for each prefix."""

    def ruins(self) -> Iterator[Ruin]:
        """Flush it, cut it short, begin it with another rule, leave it without a jump."""
        variant = "legacy" if self.row.name.endswith("legacy") else "nft"
        stem = "iptables" if self.family is Family.IPV4 else "ip6tables"
        iptables = f"{stem}-{variant}", "-t", "nat"
        yield self.run(*iptables, "-F", "IP-MASQ")
        yield self.run(*iptables, "-D", "IP-MASQ", "1")
        yield self.run(*iptables, "-I", "IP-MASQ", "-j", "ACCEPT")
        yield self.run(*iptables, "-F", "POSTROUTING")


class ChainWithSet(Chain):
    """A chain with a rule that asks a set."""

    def ruins(self) -> Iterator[Ruin]:
        """Do what is done to a chain, and to the set."""
        yield from super().ruins()
        legacy = "-legacy" if self.row.name.endswith("legacy") else ""
        name = f"IP-MASQ{legacy}-{'4' if self.family is Family.IPV4 else '6'}"
        strange = "192.0.2.0/24" if self.family is Family.IPV4 else "2001:db8::/64"
        yield self.run("ipset", "flush", name)
        yield self.run("ipset", "add", name, strange)


class OwnTable(Subject):
    """A table of nf_tables."""

    def ruins(self) -> Iterator[Ruin]:
        """Take it away, in whole and in parts, and add to it."""
        table = f"{NFT[self.family]} ip-masq"
        strange = "192.0.2.0/24" if self.family is Family.IPV4 else "2001:db8::/64"
        yield self.run("nft", f"delete table {table}")
        yield self.run("nft", f"flush chain {table} postrouting")
        yield self.run("nft", f"flush set {table} keep")
        yield self.run("nft", f"add element {table} keep {{ {strange} }}")
        yield self.run("nft", f"insert rule {table} postrouting accept")


class Programs(Subject):
    """Programs on devices, and pinned maps."""

    def shown(self) -> object:
        """Return the programs on devices, and what is pinned, beside the rest."""
        devices = self.namespace.run(["bpftool", "net", "list"]).stdout
        pinned = sorted(path.name for path in Path(self.placement.pins).glob("*"))
        return super().shown(), devices, pinned

    def ruins(self) -> Iterator[Ruin]:
        """Take a program off its device, or all pins away."""
        yield Path(self.placement.pins, f"link-{socket.if_nametoindex('eth0')}-egress").unlink
        yield lambda: shutil.rmtree(self.placement.pins)


class InFiles(Subject):
    """The plane of docs/new-plane.md."""

    def shown(self) -> object:
        """Return the files beside the rest."""
        paths = [path_of(family) for family in Family]
        return super().shown(), [path.stat().st_ino for path in paths if path.exists()]

    def ruins(self) -> Iterator[Ruin]:
        """Remove the file, empty it, and add to it."""
        path = path_of(self.family)
        yield path.unlink
        yield lambda: path.write_text("")
        yield lambda: path.write_text(path.read_text() + "keep 1 2\n")


SUBJECTS: Mapping[str, type[Subject]] = {
    "iptables-legacy": Chain,
    "iptables-nft": Chain,
    "ipset-nft": ChainWithSet,
    "ipset-legacy": ChainWithSet,
    "nftables": OwnTable,
    "bpf": Programs,
    "fake": InFiles,
}


class Node(Namespace):
    """A network namespace with devices, routes, and what others keep at the hook."""

    others: ClassVar[Sequence[str]] = (
        "-A POSTROUTING -m mark --mark 0x7 -j THEIRS",
        "-A THEIRS -p tcp -m mark --mark 0x8 -j RETURN",
    )

    def furnish(self) -> None:
        """Make devices and routes."""
        for number, name in enumerate(DEVICES, start=1):
            self.run(["ip", "link", "add", name, "type", "veth", "peer", "name", f"far{number}"])
            self.run(["ip", "link", "set", name, "up"])
            self.run(["ip", "link", "set", f"far{number}", "up"])
            self.address(name, f"203.0.113.{number}/24", f"2001:db8:9::{number}/64")
        self.run(["ip", "route", "add", "default", "via", "203.0.113.9", "dev", DEVICES[0]])
        self.run(["ip", "-6", "route", "add", "default", "via", "2001:db8:9::9", "dev", DEVICES[0]])

    def clear(self) -> None:
        """Leave nothing but what others have."""
        pins = Path(os.environ[PINS])
        if pins.exists():
            shutil.rmtree(pins)
        for family in Family:
            path_of(family).unlink(missing_ok=True)
        self.run(["nft", "flush", "ruleset"])
        for variant in oracle.VARIANTS:
            for stem in ("iptables", "ip6tables"):
                chains = [":POSTROUTING ACCEPT [0:0]", ":THEIRS - [0:0]"]
                text = "\n".join(["*nat", *chains, *self.others, "COMMIT\n"])
                self.run([f"{stem}-{variant}-restore"], stdin=text)
        self.run(["ipset", "destroy"])
        self.run(["ipset", "create", "theirs", "hash:net"])
        self.run(["ipset", "add", "theirs", "10.0.0.0/8"])
        native = "add table inet ip-masq; add chain inet ip-masq postrouting"
        self.run(["nft", native])
