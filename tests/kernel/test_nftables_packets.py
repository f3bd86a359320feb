"""Real packets through a node whose kernel holds our table: which source do they arrive with?

Three namespaces: a pod, the node, and an outside that takes whatever is sent to any
address. The answer comes from the receiving socket.
"""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_address
from random import Random

import pytest

from ipmasq_agent.agent.reconcile import reconcile_family
from ipmasq_agent.planes import detect
from ipmasq_agent.planes.nftables import compile as dialect
from ipmasq_agent.planes.nftables.plane import NftablesPlane
from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.decisions import DecisionMap, Entry, Verdict
from ipmasq_agent.policy.model import FamilyPolicy
from tests.contract.policies import entry, policy, prefix
from tests.netns import Namespace

pytestmark = pytest.mark.kernel

PORT = 4000
NODE = {
    Family.IPV4: {"eth0": "192.0.2.1", "eth1": "198.51.100.1"},
    Family.IPV6: {"eth0": "2001:db8:1::1", "eth1": "2001:db8:2::1"},
}
BITS = {Family.IPV4: 24, Family.IPV6: 64}
DOMAIN = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
DEFAULTS = (Verdict.MASQUERADE, Verdict.MASQUERADE, Verdict.NON_MASQUERADE)
# Sent out through eth1; everything else leaves through eth0.
SECOND = range(40, 48)


class Lab:
    """A pod that has two addresses, the node, and the outside."""

    def __init__(self, family: Family, stack: ExitStack) -> None:
        self.family = family
        self.pod, self.node, self.outside = (
            stack.enter_context(Namespace(label)) for label in ("pod", "node", "outside")
        )
        self.inside = [address(family, number, 5) for number in (3, 20)]
        self._numbers = itertools.count()
        self.pod.veth("eth0", self.node, "pod0")
        self.outside.veth("out0", self.node, "eth0")
        self.outside.veth("out1", self.node, "eth1")
        for device, ours in NODE[family].items():
            self.node.address(device, f"{ours}/{BITS[family]}")
        whole = f"/{family.bits}"
        link = "169.254.1.1" if family is Family.IPV4 else "fe80::1"
        self.node.address("pod0", f"{link}{whole}")
        with self.node.entered():
            for name in ("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"):
                self.node.run(["sysctl", "-qw", name])
            for device in ("all", "eth0", "eth1", "pod0"):
                self.node.run(["sysctl", "-qw", f"net.ipv4.conf.{device}.rp_filter=0"])
        for ours in self.inside:
            self.pod.address("eth0", f"{ours}{whole}")
            self._ip(self.node, "route", "add", f"{ours}{whole}", "dev", "pod0")
        self._ip(self.pod, "route", "add", "default", "via", link, "dev", "eth0", "onlink")
        for device, peer in (("eth0", "out0"), ("eth1", "out1")):
            gateway = str(ip_address(NODE[family][device]) + 1)
            self.outside.address(peer, f"{gateway}/{BITS[family]}")
        with self.outside.entered():
            for device in ("all", "out0", "out1"):
                # It takes all addresses for its own, those that packets come from too.
                self.outside.run(["sysctl", "-qw", f"net.ipv4.conf.{device}.accept_local=1"])
                self.outside.run(["sysctl", "-qw", f"net.ipv4.conf.{device}.rp_filter=0"])
        everywhere = "0.0.0.0/0" if family is Family.IPV4 else "::/0"
        self._ip(self.outside, "route", "add", "local", everywhere, "dev", "lo")
        self._ip(self.node, "route", "add", "default", "via", self._gateway("eth0"))
        for number in SECOND:
            where = str(prefix(family, number))
            self._ip(self.node, "route", "add", where, "via", self._gateway("eth1"))
        with self.outside.entered():
            self.receiver = stack.enter_context(socket.socket(DOMAIN[family], socket.SOCK_DGRAM))
        self.receiver.bind(("", PORT))
        self.receiver.settimeout(10)

    def _gateway(self, device: str) -> str:
        return str(ip_address(NODE[self.family][device]) + 1)

    def _ip(self, namespace: Namespace, *words: str) -> None:
        number = "-4" if self.family is Family.IPV4 else "-6"
        namespace.run(["ip", number, *words])

    def seen(self, destination: str, source: str | None = None) -> tuple[str, int, int]:
        """Send a packet from the pod; return its source as it arrives, and its port before."""
        number = next(self._numbers)
        # Conntrack remembers a flow for a while: none comes twice.
        port = 10_000 + number % 50_000
        with self.pod.entered(), socket.socket(DOMAIN[self.family], socket.SOCK_DGRAM) as sender:
            sender.bind((source or self.inside[0], port))
            sender.sendto(str(number).encode(), (destination, PORT))
        while True:
            said, where = self.receiver.recvfrom(100)
            if said == str(number).encode():
                return where[0], where[1], port

    def expected(self, wanted: FamilyPolicy, destination: str, source: str) -> str:
        """Return the source address that the policy gives such a packet."""
        to = int(ip_address(destination))
        second = (prefix(self.family, number) for number in SECOND)
        device = "eth1" if any(p.first <= to <= p.last for p in second) else "eth0"
        guards = wanted.guards
        if guards.sources is not None and not any(
            p.first <= int(ip_address(source)) <= p.last for p in guards.sources
        ):
            return source
        if guards.devices is not None and device not in guards.devices:
            return source
        if wanted.decisions.decide(to).verdict is Verdict.NON_MASQUERADE:
            return source
        for fixed in wanted.action.fixed:
            if fixed.first <= to <= fixed.last:
                return self.family.show(fixed.address)
        return NODE[self.family][device]


def address(family: Family, number: int, host: int) -> str:
    return family.show(prefix(family, number).first + host)


@pytest.fixture(params=list(Family), ids=lambda f: f.value)
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with ExitStack() as stack:
        yield Lab(request.param, stack)


def write(lab: Lab, wanted: FamilyPolicy | None, name: str = "nftables") -> None:
    with lab.node.entered():
        backend = detect.make(name, Placement())
        try:
            reconcile_family(backend, lab.family, wanted)
        finally:
            backend.close()


def test_each_kind_of_decision_as_it_arrives(lab: Lab) -> None:
    kept, fixed, second, other = (address(lab.family, n, 9) for n in (1, 8, 40, 90))
    pod, elsewhere = lab.inside
    eth0, eth1 = NODE[lab.family].values()
    assert lab.seen(other)[0] == pod  # no rules at all
    write(lab, policy(lab.family, [1]))
    assert [lab.seen(to)[0] for to in (kept, second, other)] == [pod, eth1, eth0]
    write(lab, policy(lab.family, [1], devices=["eth1"]))
    assert [lab.seen(to)[0] for to in (kept, second, other)] == [pod, eth1, pod]
    write(lab, policy(lab.family, [1], sources=[3]))
    assert [lab.seen(other, source)[0] for source in lab.inside] == [eth0, elsewhere]
    write(lab, policy(lab.family, [1], fixed=[1, 8]))
    snat = address(lab.family, 77, 1)
    assert [lab.seen(to)[0] for to in (kept, fixed, other)] == [pod, snat, eth0]
    write(lab, policy(lab.family, default=Verdict.NON_MASQUERADE))
    assert lab.seen(other)[0] == pod
    write(lab, policy(lab.family, [1], random_fully=False))
    seen, after, before = lab.seen(other)
    assert (seen, after) == (eth0, before)  # the pod's own port, as it is free
    write(lab, None)
    assert lab.seen(other)[0] == pod


@pytest.mark.parametrize("fixed", [(), (-1,)], ids=["masquerade", "snat"])
def test_ports_come_from_every_range_and_from_no_other(lab: Lab, fixed: tuple[int, ...]) -> None:
    write(lab, policy(lab.family, ports="2000-2999,30000-30999,60000", fixed=fixed))
    # To a destination each: the range of one port has room for one flow to each of them.
    ports = [lab.seen(address(lab.family, 90, host))[1] for host in range(1, 201)]
    shares = [sum(first <= p < first + 1000 for p in ports) for first in (2000, 30000)]
    # Each of two thousand ports is as likely: 100 of 200, and 40 is more than 8 sigma away.
    assert min(shares) > 40
    assert sum(shares) + ports.count(60000) == 200


def test_random_ranges_in_parts_and_destinations(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialect, "PARTED_PAST", 3)
    monkeypatch.setattr(dialect, "_EVERY", 2)
    random = Random(11)
    sources = set()
    pool = [*range(10), *SECOND]
    for step in range(50):
        dressed = policy(
            lab.family,
            sources=random.choice([(), (), (3,), (20,), (3, 20)]),
            devices=random.choice([(), (), ("eth0",), ("eth1",), ("eth0", "eth1")]),
            fixed=random.choice([(), (), (4, 5, 9), (-1,)]),
        )
        entries = [_entry(lab.family, random, pool) for _ in range(random.randrange(12))]
        decisions = DecisionMap(lab.family, entries, random.choice(DEFAULTS))
        wanted = FamilyPolicy(decisions, dressed.guards, dressed.action)
        write(lab, wanted)
        numbers = [random.choice([*pool, random.randrange(65536)]) for _ in range(10)]
        places = [address(lab.family, number, random.randrange(256)) for number in numbers]
        ranges = [*wanted.decisions.ranges][1:]
        corners = random.sample(ranges, min(10, len(ranges)))
        places += [lab.family.show(entry.first) for entry in corners]
        for to in places:
            if (
                not prefix(lab.family, 0).first
                <= int(ip_address(to))
                <= prefix(lab.family, 65535).last
            ):
                continue
            if to in lab.inside:
                continue
            source = random.choice(lab.inside)
            seen = lab.seen(to, source)[0]
            sources.add(seen)
            assert seen == lab.expected(wanted, to, source), f"step {step}: {source} to {to}"
    assert sources >= {*lab.inside, *NODE[lab.family].values()}


def _entry(family: Family, random: Random, pool: list[int]) -> Entry[Verdict]:
    """Return a prefix, or a range that starts or ends within one."""
    first, last = sorted(random.choices(pool, k=2))
    made = entry(family, first, random.choice(list(Verdict)[:2]))
    if random.random() < 0.5:
        return made
    end = prefix(family, last).first + random.randrange(256)
    return made._replace(first=min(made.first + random.randrange(256), end), last=end)


def test_beside_iptables_the_first_that_translates_decides(lab: Lab) -> None:
    to = address(lab.family, 90, 9)
    theirs = address(lab.family, 78, 1)
    tables = "iptables" if lab.family is Family.IPV4 else "ip6tables"
    eth0 = NODE[lab.family]["eth0"]
    for variant in ("nft", "legacy"):
        rule = [f"{tables}-{variant}", "-t", "nat", "-A", "POSTROUTING", "-j", "SNAT"]
        lab.node.run([*rule, "--to-source", theirs])
        for jump_first, seen in ((False, theirs), (True, eth0)):
            with lab.node.entered():
                backend = NftablesPlane(Placement(jump_first=jump_first))
                reconcile_family(backend, lab.family, policy(lab.family, [1]))
            assert lab.seen(to)[0] == seen, (variant, jump_first)
            # To keep a packet is to leave it to those that come after.
            assert lab.seen(address(lab.family, 1, 9))[0] == theirs
        lab.node.run([f"{tables}-{variant}", "-t", "nat", "-F", "POSTROUTING"])
