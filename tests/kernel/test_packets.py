"""Random documents, every data plane, real packets: each arrives with the source it should.

What is expected is worked out here from the document's own words, by the longest of the
prefixes that hold a destination, and never by the code that is tested.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import pytest

from ipmasq_agent.agent.intent import Intent
from ipmasq_agent.agent.reconcile import clean, reconcile
from ipmasq_agent.config.document import parse_document
from ipmasq_agent.config.model import Flags
from ipmasq_agent.planes import detect
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.facts import LINKS, NO_FACTS, Links
from ipmasq_agent.policy.model import parse_port_ranges
from tests.kernel.crossing import PLANS, Crossing, arrivals, crossing
from tests.kernel.pins import placement

pytestmark = pytest.mark.kernel
BACKENDS = ("iptables-nft", "iptables-legacy", "ipset-nft", "ipset-legacy", "nftables", "bpf")
POLICIES = 25
SENDERS = {0: 9, 1: 8, None: 3}  # pods and the node itself, with 20 destinations in all
FIXED = {Family.IPV4: "203.0.113.77", Family.IPV6: "2001:db8:77::77"}
STRAY = 10
# Where nothing asks for connections no packet meets a nat chain. On any node something does.
TRACKED = """\
table inet tracked {
    chain forward { type filter hook forward priority 0; ct state new accept; }
}
"""
DEVICES = ("eth0", "eth1", "lo", "pod0", "pod1")
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class Spec:
    """What a document says, in the words of this test."""

    keep: tuple[Network, ...]
    masquerade: tuple[Network, ...]
    keep_the_rest: bool
    pods: tuple[Network, ...] | None
    devices: tuple[str, ...] | None
    fixed: bool
    ports: str

    def document(self, family: Family) -> str:
        lines = [
            f"nonMasqueradeCIDRs: {_listed(self.keep)}",
            f"masqueradeCIDRs: {_listed(self.masquerade)}",
            f"defaultAction: {'keep' if self.keep_the_rest else 'masquerade'}",
            "cidrLimit: 1000\nmasqLinkLocal: true\nmasqLinkLocalIPv6: true",
        ]
        if self.pods is not None:
            lines.append(f"podCIDRs: {_listed(self.pods)}")
        if self.devices is not None:
            lines.append(f"egressInterfaces: {_listed(self.devices)}")
        if self.fixed:
            lines.append(f"snatAddress: {{{family.value}: '{FIXED[family]}'}}")
        return "\n".join(lines)

    def speaks_of(self, family: Family, pod: int | None, destination: str) -> bool:
        """Return whether source and device are among those that it is about."""
        source, out = _way(family, pod, destination)
        return (self.pods is None or any(source in network for network in self.pods)) and (
            self.devices is None or f"eth{out}" in self.devices
        )

    def seen(self, family: Family, pod: int | None, destination: str) -> tuple[str, bool]:
        """Return the source with which a packet must arrive, and whether it is masqueraded.

        Args:
            family: of its addresses.
            pod: who sends it; None for the node itself.
            destination: where to.
        """
        plan = PLANS[family]
        address = ipaddress.ip_address(destination)
        source, out = _way(family, pod, destination)
        covering = [(n.prefixlen, True) for n in self.keep if address in n]
        covering += [(n.prefixlen, False) for n in self.masquerade if address in n]
        kept = max(covering)[1] if covering else self.keep_the_rest
        if kept or not self.speaks_of(family, pod, destination):
            return str(source), False
        return FIXED[family] if self.fixed else plan.eth[out], True


def _way(
    family: Family, pod: int | None, destination: str
) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]:
    """Return the source of what a pod, or the node, sends there, and the number of its device."""
    plan = PLANS[family]
    address = ipaddress.ip_address(destination)
    out = 1 if address in ipaddress.ip_network(plan.through_eth1) else 0
    return ipaddress.ip_address(plan.eth[out] if pod is None else plan.pods[pod]), out


def _listed(items: tuple[object, ...]) -> str:
    return "[" + ", ".join(f"'{item}'" for item in items) + "]"


def random_network(family: Family, random: Random) -> Network:
    """A prefix that may hold destinations: long, short, nested or everything."""
    base = int(ipaddress.ip_address(random_destination(family, random)))
    bits = family.bits
    if family is Family.IPV4:
        length = random.choice([0, 1, 3, 8, 9, 16, 23, 24, 30, 32])
    else:
        length = random.choice([0, 1, 4, 8, 16, 48, 64, 65, 127, 128])
    kind = ipaddress.IPv4Network if family is Family.IPV4 else ipaddress.IPv6Network
    return kind((base >> bits - length << bits - length, length))


def random_destination(family: Family, random: Random) -> str:
    """An address that is neither the node's nor special; close to others rather often."""
    if family is Family.IPV4:
        first = random.choice([8, 9, 10, 10, 11, 70, 71, 100, 110])
        rest = [random.choice([0, 1, random.randrange(256)]) for _ in range(2)]
        return ".".join(map(str, (first, *rest, random.randrange(1, 255))))
    first = random.choice([0x2A00, 0x2A01, 0x3001, 0x3FF0, 0xFD11, 0xFD12])
    rest = [random.choice([0, 1, random.randrange(1 << 16)]) for _ in range(3)]
    return str(ipaddress.IPv6Address(":".join(f"{g:x}" for g in (first, *rest, 0, 0, 0, 7))))


def random_spec(family: Family, random: Random) -> Spec:
    drawn = (random_network(family, random) for _ in range(random.randrange(12)))
    networks = list(dict.fromkeys(drawn))
    some = [network for network in networks if random.random() < 0.4]
    pods = [ipaddress.ip_network(network) for network in PLANS[family].pod_networks]
    chosen = random.sample(pods, random.randrange(1, 3))
    return Spec(
        keep=tuple(network for network in networks if network not in some),
        masquerade=tuple(some),
        keep_the_rest=random.random() < 0.3,
        pods=tuple(chosen) if random.random() < 0.4 else None,
        devices=random.choice([None, None, ("eth0",), ("eth1",), ("eth0", "eth1"), ("lo",)]),
        fixed=random.random() < 0.3,
        ports=random.choice(["", "", "1024-1999", "2000-2999,30000-30099"]),
    )


@pytest.fixture(scope="module")
def node() -> Iterator[Crossing]:
    with crossing() as made:
        yield made


@pytest.mark.parametrize("family", list(Family), ids=lambda family: family.value)
@pytest.mark.parametrize("backend", BACKENDS)
def test_packets_arrive_with_the_source_that_the_document_says(
    backend: str, family: Family, node: Crossing
) -> None:
    check_packets(backend, family, node, POLICIES)


@pytest.mark.long
@pytest.mark.parametrize("family", list(Family), ids=lambda family: family.value)
@pytest.mark.parametrize("backend", BACKENDS)
def test_five_thousand_packets_do(backend: str, family: Family, node: Crossing) -> None:
    check_packets(backend, family, node, 10 * POLICIES)


def check_packets(backend: str, family: Family, node: Crossing, policies: int) -> None:
    """Send the same packets under the same random documents, whatever the backend."""
    random = Random(f"{family.value} packets")
    facts = NO_FACTS.with_(LINKS, Links(DEVICES, ("eth0", "eth1")))
    masqueraded = kept = 0
    # What the kernel remembers of the backend before would be translated as it did.
    number = BACKENDS.index(backend) * policies * sum(SENDERS.values())
    with node.node.entered(), node.listening(family) as listener:
        if backend != "bpf":
            node.node.run(["nft", "-f", "-"], stdin=TRACKED)
        made = detect.make(backend, placement())
        made.counters()  # from here on they are added up, whatever becomes of the rules
        try:
            for step in range(policies):
                spec = random_spec(family, random)
                flags = Flags(enable_ipv6=True, to_ports=parse_port_ranges(spec.ports))
                text = spec.document(family)
                config = parse_document(text.encode(), "cm", flags).config
                outcomes = reconcile(made, Intent(config, facts), thorough=step % 2 == 0)
                assert [str(o.error) for o in outcomes.values() if o.error] == []
                expected: dict[int, tuple[str, str, bool]] = {}
                for pod, share in SENDERS.items():
                    sent = {}
                    for _ in range(share):
                        sent[number] = random_destination(family, random)
                        expected[number] = sent[number], *spec.seen(family, pod, sent[number])
                        if spec.speaks_of(family, pod, sent[number]):
                            kept += not expected[number][2]
                        number += 1
                    node.send(family, node.node if pod is None else node.pods[pod], sent)
                found = arrivals(listener, len(expected))
                seen = {n: (to, arrival.source) for n, (to, arrival) in found.items()}
                assert seen == {n: e[:2] for n, e in expected.items()}, f"policy {step}:\n{text}"
                translated = [found[n][1].port for n, e in expected.items() if e[2]]
                masqueraded += len(translated)
                if backend != "bpf":  # which tells the node's own flows apart
                    told = made.counters()
                    flows = [told.get((family, f"flows_{w}"), 0) for w in ("translated", "kept")]
                    # More only by what the node itself may have to say to its neighbours.
                    more = [n - due for n, due in zip(flows, (masqueraded, kept), strict=True)]
                    assert 0 <= min(more) <= max(more) <= STRAY, f"policy {step}:\n{text}"
                if spec.ports:
                    ranges = parse_port_ranges(spec.ports)
                    assert all(any(r.first <= p <= r.last for r in ranges) for p in translated)
        finally:
            gone = clean(made, Family)
            made.close()
            if backend != "bpf":
                node.node.run(["nft", "delete", "table", "inet", "tracked"])
    assert not [str(outcome.error) for outcome in gone.values() if outcome.error]
    # Both ways were walked, or the test shows less than it says.
    assert 2 * policies < masqueraded < 16 * policies
