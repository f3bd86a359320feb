"""What others have at the postrouting hook: do the verbs say what the receiver sees?

A pod sends through a node that has a policy in one data plane and a rule of somebody else's
in another. The answer comes from the receiving socket.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ipmasq_agent.policy.addresses import Family
from tests.kernel.agent import status_of
from tests.kernel.crossing import PLANS, Crossing, arrivals, crossing

PLANES = ("iptables-nft", "iptables-legacy", "ipset", "nftables", "bpf")
# Kept and masqueraded by the document, for each family.
PROBES = {
    Family.IPV4: ("10.1.2.3", "9.9.9.9"),
    Family.IPV6: ("fd00:10::7", "2a00:9::7"),
}
KEPT = {Family.IPV4: "10.0.0.0/8", Family.IPV6: "fd00:10::/32"}
IPTABLES = {Family.IPV4: "iptables", Family.IPV6: "ip6tables"}
IP = {Family.IPV4: "ip", Family.IPV6: "ip6"}
_numbers = itertools.count(1)


class Answers(NamedTuple):
    """What the receiver saw, and what the verbs said, for each of the two probes."""

    seen: list[str]
    told: list[str | None]
    explained: list[dict[str, Any]]


class Node:
    """The crossing with a policy in one data plane."""

    def __init__(self, crossing_: Crossing, plane: str, family: Family, document: Path) -> None:
        self.crossing, self.plane, self.family = crossing_, plane, family
        self.flags = ("--config", str(document), "--backend", plane, "--enable-ipv6=true")
        keep = ", ".join(f'"{cidr}"' for cidr in KEPT.values())
        document.write_text(f"nonMasqueradeCIDRs: [{keep}]\n")
        with self.crossing.node.entered():
            assert status_of("apply", *self.flags) == 0

    def run(self, *words: str, stdin: str | None = None) -> None:
        self.crossing.node.run(list(words), stdin=stdin)

    def nft(self, text: str) -> None:
        plan = PLANS[self.family]
        for old, new in (("FAMILY", IP[self.family]), ("PODS", plan.pod_networks[0])):
            text = text.replace(old, new)
        self.run("nft", "-f", "-", stdin=text.replace("SNAT", other_address(self.family)))

    def answers(self, capsys: pytest.CaptureFixture[str]) -> Answers:
        source = PLANS[self.family].pods[0]
        with self.crossing.listening(self.family) as listener:
            sent = {next(_numbers): probe for probe in PROBES[self.family]}
            self.crossing.send(self.family, self.crossing.pods[0], sent)
            found = arrivals(listener, len(sent))
        explained = []
        with self.crossing.node.entered():
            capsys.readouterr()
            for probe in sent.values():
                assert status_of("explain", probe, "--src", source, *self.flags, "-o", "json") == 0
                explained.append(json.loads(capsys.readouterr().out))
        seen = [found[number][1].source for number in sent]
        return Answers(seen, [answer["source"] for answer in explained], explained)

    def clean(self) -> None:
        with self.crossing.node.entered():
            status_of("cleanup")
        self.run("nft", "flush", "ruleset")
        for program in IPTABLES.values():
            for table in ("nat", "raw"):
                for flag in ("-F", "-X"):
                    self.run(f"{program}-legacy", "-t", table, flag)


def other_address(family: Family) -> str:
    """An address that is neither the node's nor the pod's."""
    return f"{PLANS[family].eth[0]}77"


@pytest.fixture(scope="module")
def _crossing() -> Iterator[Crossing]:
    with crossing() as made:
        yield made


@pytest.fixture(params=list(Family), ids=lambda family: family.value)
def family(request: pytest.FixtureRequest) -> Family:
    found: Family = request.param
    return found


@pytest.fixture(params=PLANES)
def node(
    request: pytest.FixtureRequest, _crossing: Crossing, family: Family, tmp_path: Path
) -> Iterator[Node]:
    made = Node(_crossing, request.param, family, tmp_path / "config.yaml")
    yield made
    made.clean()


def test_a_policy_alone_is_what_the_receiver_sees(
    node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = PLANS[node.family]
    found = node.answers(capsys)
    assert found.seen == found.told == [plan.pods[0], plan.eth[0]]
    assert [answer["overridden"] for answer in found.explained] == [False, False]


FIREWALLD = """
table inet firewalld {
  chain nat_POSTROUTING {
    type nat hook postrouting priority srcnat + 10; policy accept;
    jump nat_POSTROUTING_POLICIES_pre
    jump nat_POSTROUTING_ZONES
  }
  chain nat_POSTROUTING_POLICIES_pre { }
  chain nat_POSTROUTING_ZONES {
    oifname "eth0" goto nat_POST_public
    goto nat_POST_public
  }
  chain nat_POST_public {
    jump nat_POST_public_allow
  }
  chain nat_POST_public_allow {
    meta nfproto ipv4 oifname != "lo" masquerade
    meta nfproto ipv6 oifname != "lo" masquerade
  }
}
"""


def test_firewalld_masquerades_what_the_policy_keeps(
    node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    node.nft(FIREWALLD)
    found = node.answers(capsys)
    assert found.seen == found.told == [PLANS[node.family].eth[0]] * 2
    assert [answer["overridden"] for answer in found.explained] == [True, node.plane == "bpf"]
    assert "nat_POST_public_allow of table inet firewalld" in found.explained[0]["rule"]
    assert "somebody else's rule" in found.explained[0]["reason"]
