"""New flows at full speed while the policy flips, and while the agent moves between planes.

What the documents say alike must hold for every single flow.
"""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ipmasq_agent.agent.choice import PlaneChoice
from ipmasq_agent.agent.intent import Intent
from ipmasq_agent.agent.reconcile import clean, reconcile
from ipmasq_agent.config.document import parse_document
from ipmasq_agent.config.model import Flags
from ipmasq_agent.planes import detect, registry
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.facts import LINKS, NO_FACTS, Links
from ipmasq_agent.policy.model import PortRange
from tests import oracle
from tests.kernel.crossing import PLANS, Crossing, crossing
from tests.kernel.flows import KEPT, MASQUERADED, both, count_in, flowing, verify
from tests.kernel.pins import placement
from tests.kernel.running import Running, write
from tests.waiting import wait_until

pytestmark = pytest.mark.kernel
BACKENDS = ("iptables-nft", "iptables-legacy", "ipset-nft", "ipset-legacy", "nftables", "bpf")
FLIPPING = pytest.mark.parametrize(
    ("backend", "kind"),
    [
        *itertools.product(BACKENDS, ("near", "far")),
        *((backend, "large") for backend in BACKENDS if not backend.startswith("iptables")),
    ],
)
FLAGS = Flags(enable_ipv6=True)
# All documents keep KEPT and masquerade MASQUERADED, each in words of its own.
WORDS: tuple[tuple[list[str], list[str]], ...] = (
    ([KEPT], []),
    (["10.10.1.0/25", "10.10.1.128/25"], []),
    (["10.0.0.0/8"], ["10.10.2.0/23", "10.10.2.128/25"]),
    (["10.0.0.0/8", KEPT], ["10.10.0.0/16"]),
    (["10.10.0.0/16"], [MASQUERADED, "10.10.3.0/25"]),
)


def ladder(octet: int) -> list[str]:
    """Return a prefix of each length from 9 to 25 within one of 8, all of them apart."""
    heads = (octet << 24 | 0x1FFFFFF << 33 - length & 0xFFFFFF for length in range(9, 26))
    return [f"{ipaddress.IPv4Address(head)}/{9 + n}" for n, head in enumerate(heads)]


# Few enough differences for a set to be edited in place, element after element: what lies
# between two that belong together gives packets time to fall between them.
NEAR: tuple[dict[str, Any], ...] = tuple(
    {
        "nonMasqueradeCIDRs": [
            *keep,
            "21.0.0.0/8",
            *itertools.chain.from_iterable(map(ladder, (20, *range(30 + 4 * n, 34 + 4 * n)))),
        ],
        "masqueradeCIDRs": masquerade,
    }
    for n, (keep, masquerade) in enumerate(WORDS)
)
# Whole new contents, other rules around them.
FAR: tuple[dict[str, Any], ...] = (
    {"nonMasqueradeCIDRs": ["172.20.0.0/16", KEPT]},
    {"nonMasqueradeCIDRs": WORDS[2][0], "masqueradeCIDRs": WORDS[2][1]},
    {
        "nonMasqueradeCIDRs": [*WORDS[1][0], "10.11.0.0/16"],
        "masqueradeCIDRs": ["10.0.0.0/8"],
        "snatAddress": {family.value: plan.eth[0] for family, plan in PLANS.items()},
    },
    {
        "nonMasqueradeCIDRs": [KEPT, *(f"10.{40 + n // 200}.{n % 200}.0/24" for n in range(400))],
        "podCIDRs": ["172.20.0.0/16", "fd00:172:20::/48"],
    },
    {
        "defaultAction": "keep",
        "masqueradeCIDRs": [MASQUERADED, "10.10.3.0/24"],
        "nonMasqueradeCIDRs": [KEPT],
        "egressInterfaces": ["eth*"],
    },
)
# For sets, also what takes them many elements, past one part of a table in nftables.
_MOST = [f"10.{40 + n // 125}.{n % 125 * 2}.0/24" for n in range(6000)]
LARGE: tuple[dict[str, Any], ...] = (
    {"nonMasqueradeCIDRs": [KEPT, *_MOST]},
    {"nonMasqueradeCIDRs": [*_MOST[1:], "10.10.0.0/23"]},
)
KINDS = {"near": NEAR, "far": FAR, "large": (*LARGE, FAR[0])}


def text(document: dict[str, Any]) -> str:
    """Return a document that says the same for both families."""
    said = {**document, "cidrLimit": 100_000}
    for key in ("nonMasqueradeCIDRs", "masqueradeCIDRs"):
        said[key] = [prefix for ipv4 in document.get(key, ()) for prefix in both(ipv4)]
    return json.dumps(said)


def intents(documents: Sequence[dict[str, Any]]) -> list[Intent]:
    facts = NO_FACTS.with_(LINKS, Links(("eth0", "eth1", "lo", "pod0", "pod1"), ("eth0", "eth1")))
    found = []
    for document in documents:
        # One comes with ports of its own, as where an agent is started with another flag.
        ports = (PortRange(1024, 65535),) if document is FAR[0] else ()
        flags = replace(FLAGS, to_ports=ports)
        parsed = parse_document(text(document).encode(), "cm", flags)
        found.append(Intent(parsed.config, facts))
    return found


def tour(count: int) -> list[int]:
    """Return a round trip that goes from each number to each other one exactly once."""
    return [number for pair in itertools.combinations(range(count), 2) for number in pair]


@pytest.fixture(scope="module")
def node() -> Iterator[Crossing]:
    with crossing() as made:
        # The table of connections must not fill up: each packet is a new one.
        settings = ["net.netfilter.nf_conntrack_udp_timeout=1"]
        made.node.run(["sysctl", "-q", "-w", *settings])
        count_in(made.world)
        yield made


def test_a_tour_takes_every_way_once() -> None:
    stations = tour(6)
    ways = list(zip(stations, [*stations[1:], stations[0]], strict=True))
    assert sorted(ways) == list(itertools.permutations(range(6), 2))


def bring(backend: Any, intent: Intent, *, thorough: bool) -> None:
    outcomes = reconcile(backend, intent, thorough=thorough)
    assert [str(outcome.error) for outcome in outcomes.values() if outcome.error] == []


def flip(node: Crossing, backend: str, kind: str, times: int) -> None:
    wanted = intents(KINDS[kind])
    stations = itertools.islice(itertools.cycle(tour(len(wanted))), times)
    with node.node.entered():
        made = detect.make(backend, placement())
        try:
            bring(made, wanted[0], thorough=True)
            with flowing(node) as counts:
                for number, station in enumerate(stations):
                    bring(made, wanted[station], thorough=number % 10 == 0)
        finally:
            clean(made, Family)
            made.close()
    verify(counts, at_least=times * 5)


@FLIPPING
def test_no_flow_has_a_wrong_source_while_the_policy_flips(
    backend: str, kind: str, node: Crossing
) -> None:
    flip(node, backend, kind, len(tour(len(KINDS[kind]))))  # from each to each other, once


@pytest.mark.long
@FLIPPING
def test_no_flow_has_a_wrong_source_in_a_thousand_flips(
    backend: str, kind: str, node: Crossing
) -> None:
    flip(node, backend, kind, 1000)


def move(node: Crossing, rounds: int) -> None:
    wanted = itertools.cycle(intents(NEAR + FAR))
    stations = [BACKENDS[number] for number in tour(len(BACKENDS))]
    with node.node.entered():
        where = stations[:1]
        choice = PlaneChoice(
            detect=lambda large: (where[0], "the test says so"),
            make=lambda name: detect.make(name, placement()),
            holders=lambda: detect.holders(placement()),
            home=registry.home,
        )
        try:
            backend, _ = choice.current()
            bring(backend, next(wanted), thorough=True)
            with flowing(node) as counts:
                for where[0] in [*stations * rounds, stations[0]]:
                    backend, left_behind = choice.current()
                    bring(backend, next(wanted), thorough=False)
                    for other in left_behind:
                        gone = clean(other, Family)
                        assert [str(o.error) for o in gone.values() if o.error] == []
                        choice.cleaned(other)
        finally:
            for other in choice.every():
                clean(other, Family)
            choice.close()
    verify(counts, at_least=rounds * len(stations) * 5)


def test_no_flow_has_a_wrong_source_while_the_agent_moves(node: Crossing) -> None:
    move(node, 1)


@pytest.mark.long
def test_no_flow_has_a_wrong_source_in_hundreds_of_moves(node: Crossing) -> None:
    move(node, 25)


def _changed(agent: Running, times: int) -> bool:
    return bool(agent.status().get("changes", 0) >= times)


@pytest.mark.parametrize("backend", ["iptables-nft", "iptables-legacy", "ipset", "nftables", "bpf"])
def test_no_flow_has_a_wrong_source_while_the_document_of_an_agent_is_rewritten(
    backend: str, node: Crossing, tmp_path: Path
) -> None:
    document = tmp_path / "config"
    document.write_text(text(NEAR[0]))
    flags = (f"--backend={backend}", f"--config={document}", "--enable-ipv6")
    with node.node.entered():
        agent = Running(tmp_path / "log", "run", *flags, "--cleanup-on-exit")
        try:
            agent.wait_ready()
            with flowing(node) as counts:
                for changes, number in enumerate([*tour(len(NEAR))[1:], 0, 1], start=1):
                    write(document, text(NEAR[number]))
                    wait_until(partial(_changed, agent, changes + 1), "the change")
            assert agent.ready()
        finally:
            agent.stop()
    verify(counts, at_least=1000)


def _holds(variant: oracle.Variant, *, with_set: bool) -> bool:
    """Whether one iptables has our rules, in that form and both families, and the other none."""
    (other,) = set(oracle.VARIANTS) - {variant}
    # A set may go while a rule that names it is listed: then it is not yet so.
    with contextlib.suppress(oracle.Unreadable):
        for family in oracle.FAMILIES:
            rules = oracle.read_chain(variant, family, "IP-MASQ") or ()
            if not rules or any("--match-set" in rule.other for rule in rules) is not with_set:
                return False
            if oracle.read_chain(other, family, "IP-MASQ") is not None:
                return False
        return True
    return False


def test_no_flow_has_a_wrong_source_while_an_agent_follows_the_node(
    node: Crossing, tmp_path: Path
) -> None:
    """Kubelet's mark comes and goes, documents are large and small: ``auto`` goes everywhere."""
    places = list(itertools.product(oracle.VARIANTS, (False, True)))
    document = tmp_path / "config"
    document.write_text(text(NEAR[0]))
    mark, marked = "KUBE-IPTABLES-HINT", True
    for variant in oracle.VARIANTS:
        # Where both have it, it is nft.
        node.node.run([f"iptables-{variant}", "-t", "mangle", "-N", mark])
    with node.node.entered():
        flags = (f"--config={document}", "--enable-ipv6", "--cleanup-on-exit")
        agent = Running(tmp_path / "log", "run", *flags)
        try:
            agent.wait_ready()
            with flowing(node) as counts:
                for number in [*tour(len(places))[1:], 0]:
                    variant, large = places[number]
                    if marked is not (variant == "nft"):
                        marked = not marked
                        edit = "-N" if marked else "-X"
                        node.node.run(["iptables-nft", "-t", "mangle", edit, mark])
                    write(document, text(LARGE[0] if large else NEAR[0]) + " " * number)
                    wait_until(
                        partial(_holds, variant, with_set=large), f"{variant}, large: {large}"
                    )
        finally:
            agent.stop()
            for variant in oracle.VARIANTS:
                node.node.run([f"iptables-{variant}", "-t", "mangle", "-X"])
    verify(counts, at_least=1000)
