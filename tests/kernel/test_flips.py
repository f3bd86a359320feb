"""New flows at full speed while the policy flips, and while the agent moves between planes.

What both documents say alike must hold for every single flow. The world counts in its own
kernel, with rules of nftables, so that no packet with a wrong source can be missed.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ipmasq_agent.agent.choice import BackendChoice
from ipmasq_agent.agent.intent import Intent
from ipmasq_agent.agent.reconcile import clean, reconcile
from ipmasq_agent.backends import detect
from ipmasq_agent.config.document import parse_document
from ipmasq_agent.config.model import Flags
from ipmasq_agent.dialects.iptables import Placement
from ipmasq_agent.policy.addresses import Family
from tests.kernel.crossing import PLANS, Crossing, crossing
from tests.netns import Namespace

pytestmark = pytest.mark.kernel
BACKENDS = ("iptables-nft", "iptables-legacy", "ipset-nft", "ipset-legacy", "nftables")
FLAGS = Flags(enable_ipv6=True, cidr_limit=None)
POD = "172.20.0.10"
NODE = PLANS[Family.IPV4].eth[0]
# All of them keep 10.10.1.0/24 and masquerade 10.10.2.0/24, each in its own words. Between
# some lie few differences, between others many: edits in place and whole new contents.
_MORE = [f"10.{40 + n // 200}.{n % 200}.0/24" for n in range(400)]
DOCUMENTS = (
    {"nonMasqueradeCIDRs": ["172.20.0.0/16", "10.10.1.0/24"]},
    {"nonMasqueradeCIDRs": ["10.0.0.0/8"], "masqueradeCIDRs": ["10.10.2.0/23", "10.10.2.128/25"]},
    {
        "nonMasqueradeCIDRs": ["10.10.1.0/25", "10.10.1.128/25", "10.11.0.0/16"],
        "masqueradeCIDRs": ["10.0.0.0/8"],
    },
    {"nonMasqueradeCIDRs": ["10.10.1.0/24", *_MORE], "podCIDRs": ["172.20.0.0/16"]},
    {
        "defaultAction": "keep",
        "masqueradeCIDRs": ["10.10.2.0/24", "10.10.3.0/24"],
        "nonMasqueradeCIDRs": ["10.10.1.0/24"],
    },
)
# Sends one packet a flow to both networks in turn, from a socket of its own, until killed.
SENDER = """
import itertools, socket
for number in itertools.count():
    for net in (1, 2):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            try:
                sender.sendto(b"x", (f"10.10.{net}.{number % 250 + 1}", 9))
            except BlockingIOError:
                continue
"""
COUNTERS = f"""
table ip seen {{
    counter kept {{}}
    counter kept_wrong {{}}
    counter masqueraded {{}}
    counter masqueraded_wrong {{}}
    chain seen {{
        type filter hook prerouting priority raw;
        ip daddr 10.10.1.0/24 ip saddr {POD} counter name kept drop
        ip daddr 10.10.1.0/24 counter name kept_wrong drop
        ip daddr 10.10.2.0/24 ip saddr {NODE} counter name masqueraded drop
        ip daddr 10.10.2.0/24 counter name masqueraded_wrong drop
    }}
}}
"""


def intents() -> list[Intent]:
    made = []
    for document in DOCUMENTS:
        text = json.dumps(document).encode()
        made.append(Intent(parse_document(text, "cm", FLAGS).config.wish(FLAGS)))
    return made


@pytest.fixture(scope="module")
def node() -> Iterator[Crossing]:
    with crossing() as made:
        # The table of connections must not fill up: each packet is a new one.
        settings = ["net.netfilter.nf_conntrack_udp_timeout=1"]
        made.node.run(["sysctl", "-q", "-w", *settings])
        made.world.run(["nft", "-f", "-"], stdin=COUNTERS)
        yield made


def counted(world: Namespace) -> dict[str, int]:
    listed = json.loads(world.run(["nft", "-j", "list", "counters"]).stdout)["nftables"]
    counters = (item["counter"] for item in listed if "counter" in item)
    return {counter["name"]: counter["packets"] for counter in counters}


@contextmanager
def flowing(node: Crossing) -> Iterator[dict[str, int]]:
    """Send flows while the block runs; afterwards the given counts tell what arrived."""
    before = counted(node.world)
    counts: dict[str, int] = {}
    sender = node.pods[0].popen([sys.executable, "-c", SENDER])
    try:
        # Not before flows really arrive.
        deadline = time.monotonic() + 20
        while counted(node.world)["kept"] == before["kept"]:
            assert time.monotonic() < deadline, "no flow arrives"
        yield counts
    finally:
        sender.kill()
        sender.wait()
    counts |= {name: count - before[name] for name, count in counted(node.world).items()}


def verify(counts: dict[str, int], at_least: int) -> None:
    assert counts["kept_wrong"] == 0, counts
    assert counts["masqueraded_wrong"] == 0, counts
    # At full speed, or the test shows less than it says.
    assert min(counts["kept"], counts["masqueraded"]) > at_least, counts


def bring(backend: Any, intent: Intent, *, thorough: bool) -> None:
    outcomes = reconcile(backend, intent, thorough=thorough)
    assert [str(outcome.error) for outcome in outcomes.values() if outcome.error] == []


def flip(node: Crossing, backend: str, times: int) -> None:
    wanted = intents()
    with node.node.entered():
        made = detect.make(backend, Placement())
        try:
            bring(made, wanted[0], thorough=True)
            with flowing(node) as counts:
                for number in range(times):
                    # Each document follows upon each other one.
                    next_one = wanted[(number + number // len(wanted)) % len(wanted)]
                    bring(made, next_one, thorough=number % 10 == 0)
        finally:
            clean(made, Family)
            made.close()
    verify(counts, at_least=times * 5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_flow_has_a_wrong_source_while_the_policy_flips(backend: str, node: Crossing) -> None:
    flip(node, backend, 60)


@pytest.mark.long
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_flow_has_a_wrong_source_in_a_thousand_flips(backend: str, node: Crossing) -> None:
    flip(node, backend, 1000)


def move(node: Crossing, rounds: int) -> None:
    wanted = itertools.cycle(intents())
    stations = [BACKENDS[0]]
    for here, there in itertools.permutations(BACKENDS, 2):
        stations += [here, there]
    with node.node.entered():
        where = stations[:1]
        choice = BackendChoice(
            detect=lambda large: (where[0], "the test says so"),
            make=lambda name: detect.make(name, Placement()),
            holders=detect.holders,
        )
        try:
            backend, _ = choice.current()
            bring(backend, next(wanted), thorough=True)
            with flowing(node) as counts:
                for _ in range(rounds):
                    for where[0] in stations:
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
    move(node, 10)
