"""What others have at the postrouting hook: do the verbs say what the receiver sees?

A pod sends through a node that has a policy in one data plane and a rule of somebody else's
in another. The answer comes from the receiving socket.
"""

from __future__ import annotations

import ipaddress
import itertools
import json
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from ipmasq_agent.netlink import nf as nfnetlink
from ipmasq_agent.planes.hook.read import read_hook
from ipmasq_agent.planes.placement import OurBase
from ipmasq_agent.planes.rules.matching import ANY, Question
from ipmasq_agent.planes.rules.neighbours import neighbours
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.decisions import Verdict
from tests.kernel.agent import kept_backends, status_of
from tests.kernel.crossing import PLANS, Crossing, arrivals, crossing
from tests.netns import Namespace
from tests.reasons import decider

PLANES = ("iptables-nft", "iptables-legacy", "ipset", "nftables", "bpf")
# Kept and masqueraded by the document, for each family.
PROBES = {
    Family.IPV4: ("10.1.2.3", "9.9.9.9"),
    Family.IPV6: ("fd00:10::7", "2a00:9::7"),
}
KEPT = {Family.IPV4: "10.0.0.0/8", Family.IPV6: "fd00:10::/32"}
IPTABLES = {Family.IPV4: "iptables", Family.IPV6: "ip6tables"}
IP = {Family.IPV4: "ip", Family.IPV6: "ip6"}
NFTABLES = OurBase("ip ip-masq", "postrouting", "postrouting")
LEGACY_NAT = OurBase("iptables-legacy nat", "POSTROUTING", "IP-MASQ")
_numbers = itertools.count(1)


class Answers(NamedTuple):
    """What the receiver saw, and what the verbs said, for each of the two probes.

    Attributes:
        seen: the sources with which packets arrived.
        told: those that explain says.
        explained: all that it says.
        kept: whether list has the destination.
        status: what status says.
        exit: its exit status.
    """

    seen: list[str]
    told: list[str | None]
    explained: list[dict[str, Any]]
    kept: list[bool]
    status: dict[str, Any]
    exit: int


class Node:
    """The crossing with a policy in one data plane."""

    def __init__(self, crossing_: Crossing, plane: str, family: Family, document: Path) -> None:
        self.crossing, self.plane, self.family = crossing_, plane, family
        self.flags = ("--config", str(document), "--backend", plane, "--enable-ipv6=true")
        keep = ", ".join(f'"{cidr}"' for cidr in KEPT.values())
        pods = ", ".join(f'"{plan.pod_networks[0]}"' for plan in PLANS.values())
        document.write_text(f"nonMasqueradeCIDRs: [{keep}]\npodCIDRs: [{pods}]\n")
        with self.crossing.node.entered():
            assert status_of("apply", *self.flags) == 0

    def run(self, *words: str, stdin: str | None = None) -> None:
        self.crossing.node.run(list(words), stdin=stdin)

    def nft(self, text: str) -> None:
        self.run("nft", "-f", "-", stdin=text)

    def do(self, command: str) -> None:
        family = self.family
        words = {
            "FAMILY": IP[family],
            "PODS": PLANS[family].pod_networks[0],
            "KEPT": KEPT[family],
            "ADDRESS": other_address(family),
            "IPTABLES": IPTABLES[family],
            "TYPE": "ipv4_addr" if family is Family.IPV4 else "ipv6_addr",
        }
        for old, new in words.items():
            command = command.replace(old, new)
        if command.startswith("nft "):
            text = command.removeprefix("nft ")
            self.nft(text.replace("; }", ";\n}").replace("} }", "}\n}"))
        else:
            self.run(*command.split())

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
            assert status_of("list", "--backend", self.plane, "-o", "json") == 0
            listed = json.loads(capsys.readouterr().out)["nonMasqueradeCIDRs"]
            left = status_of("status", *self.flags, "-o", "json")
            status = json.loads(capsys.readouterr().out)
        networks = [ipaddress.ip_network(cidr) for cidr in listed]
        probes = [ipaddress.ip_address(probe) for probe in sent.values()]
        return Answers(
            [found[number][1].source for number in sent],
            [answer["source"] for answer in explained],
            explained,
            [any(probe in network for network in networks) for probe in probes],
            status,
            left,
        )

    def clean(self) -> None:
        with self.crossing.node.entered():
            status_of("cleanup")
        self.run("nft", "flush", "ruleset")
        for program in IPTABLES.values():
            self.run(f"{program}-legacy-restore", "-w", stdin="*nat\nCOMMIT\n*raw\nCOMMIT\n")


def other_address(family: Family) -> str:
    """An address that is neither the node's nor the pod's."""
    return f"{PLANS[family].eth[0]}77"


@pytest.fixture(scope="module")
def place() -> Iterator[Crossing]:
    with crossing() as made, kept_backends():
        yield made


# One code path serves both families: of IPv6 two planes are enough for every day.
PLACES = [
    pytest.param(
        (plane, family),
        id=f"{plane}-{family.value}",
        marks=() if family is Family.IPV4 or plane in ("iptables-nft", "bpf") else pytest.mark.long,
    )
    for plane in PLANES
    for family in Family
]


@pytest.fixture(params=PLACES)
def node(request: pytest.FixtureRequest, place: Crossing, tmp_path: Path) -> Iterator[Node]:
    plane, family = request.param
    made = Node(place, plane, family, tmp_path / "config.yaml")
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
    assert found.kept == [False, False]
    assert found.status["inForce"] is False
    assert {item["family"] for item in found.status["overrides"]} == {"ipv4", "ipv6"}


POD, NODE, OTHER = "pod", "node", "other"


class Scene(NamedTuple):
    """What somebody does, and what the receiver sees of a kept and a masqueraded packet.

    Attributes:
        seen: unless the plane has its own.
        of: plane → what is seen there.
    """

    commands: str
    seen: tuple[str, str]
    of: Mapping[str, tuple[str, str]] = MappingProxyType({})


NAT = "type nat hook postrouting priority"
RAW = "type filter hook prerouting priority"
NETFILTER = PLANES[:-1]
SCENES = {
    "a native rule at a later priority": Scene(
        f"nft table FAMILY x {{ chain c {{ {NAT} 110; FAMILY saddr PODS masquerade; }} }}",
        (NODE, NODE),
    ),
    "a native rule at an earlier priority with an address of its own": Scene(
        f"nft table FAMILY x {{ chain c {{ {NAT} 10; FAMILY daddr KEPT snat to ADDRESS; }} }}",
        (OTHER, NODE),
    ),
    "an inet table with a set": Scene(
        f"nft table inet x {{ set s {{ type TYPE; flags interval; elements = {{ KEPT }}; }}; "
        f'chain c {{ {NAT} 300; oifname != "lo" ct state new FAMILY daddr @s masquerade; }} }}',
        (NODE, NODE),
    ),
    "a chain of kube-proxy's make": Scene(
        f"nft table FAMILY x {{ chain c {{ {NAT} 100; jump d; }}; chain d {{ "
        "meta mark & 0x4000 == 0 return; meta mark set meta mark ^ 0x4000; masquerade; } }",
        (POD, NODE),
    ),
    "another device": Scene(
        f'nft table inet x {{ chain c {{ {NAT} 300; oifname "wg0" masquerade; }} }}',
        (POD, NODE),
    ),
    "another source": Scene(
        f"nft table FAMILY x {{ chain c {{ {NAT} 9; FAMILY saddr != PODS masquerade; }} }}",
        (POD, NODE),
    ),
    "the shadow of a rule of iptables-nft": Scene(
        "IPTABLES-nft -t nat -I POSTROUTING -j MASQUERADE", (NODE, NODE)
    ),
    "the shadow of a rule of iptables-legacy": Scene(
        "IPTABLES-legacy -t nat -I POSTROUTING ! -o lo -j MASQUERADE", (NODE, NODE)
    ),
    "an address of its own by iptables-nft": Scene(
        "IPTABLES-nft -t nat -A POSTROUTING -s PODS -d KEPT -j SNAT --to-source ADDRESS",
        (OTHER, NODE),
    ),
    "an address of its own by iptables-legacy": Scene(
        "IPTABLES-legacy -t nat -A POSTROUTING -s PODS -d KEPT -j SNAT --to-source ADDRESS",
        (OTHER, NODE),
    ),
    "what is accepted before ours in the same chain": Scene(
        "IPTABLES-nft -t nat -I POSTROUTING -s PODS -j ACCEPT",
        (POD, NODE),
        {"iptables-nft": (POD, POD), "ipset": (POD, POD)},
    ),
    "what is returned before ours in the same chain of legacy": Scene(
        "IPTABLES-legacy -t nat -I POSTROUTING -j RETURN",
        (POD, NODE),
        {"iptables-legacy": (POD, POD)},
    ),
    "no tracking of pods, natively": Scene(
        f"nft table inet x {{ chain c {{ {RAW} -300; FAMILY saddr PODS notrack; }} }}",
        (POD, POD),
        {"bpf": (POD, NODE)},
    ),
    "no tracking by iptables-nft": Scene(
        "IPTABLES-nft -t raw -A PREROUTING -s PODS -j CT --notrack",
        (POD, POD),
        {"bpf": (POD, NODE)},
    ),
    "no tracking by iptables-legacy": Scene(
        "IPTABLES-legacy -t raw -A PREROUTING -s PODS -j NOTRACK",
        (POD, POD),
        {"bpf": (POD, NODE)},
    ),
    "no tracking, and a masquerade rule that does not count": Scene(
        f"nft table inet x {{ chain r {{ {RAW} -300; FAMILY daddr KEPT notrack; }}; "
        f"chain c {{ {NAT} 99; FAMILY daddr KEPT masquerade; }} }}",
        (POD, NODE),
    ),
    "a dormant table of others": Scene(
        f"nft table inet x {{ flags dormant; chain c {{ {NAT} 99; masquerade; }} }}",
        (POD, NODE),
    ),
    "the dormant table of iptables": Scene(
        "nft table FAMILY nat { flags dormant; }",
        (POD, NODE),
        {"iptables-nft": (POD, POD), "ipset": (POD, POD)},
    ),
}


def test_our_own_table_asleep_is_told_and_woken(
    place: Crossing, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = Node(place, "nftables", Family.IPV4, tmp_path / "config.yaml")
    plan = PLANS[Family.IPV4]
    node.nft("table ip ip-masq { flags dormant; }")
    asleep = node.answers(capsys)
    assert asleep.seen == asleep.told == [plan.pods[0]] * 2
    assert "dormant" in asleep.explained[1]["rule"]
    assert (asleep.status["inSync"], asleep.status["inForce"], asleep.exit) == (False, False, 1)
    with place.node.entered():
        assert status_of("apply", *node.flags) == 0
    awake = node.answers(capsys)
    assert awake.seen == awake.told == [plan.pods[0], plan.eth[0]]
    assert (awake.status["inSync"], awake.status["inForce"], awake.exit) == (True, True, 0)
    node.clean()


@pytest.mark.parametrize("scene", SCENES.values(), ids=list(SCENES))
def test_the_verbs_say_what_the_receiver_sees(
    node: Node, scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = PLANS[node.family]
    places = {POD: plan.pods[0], NODE: plan.eth[0], OTHER: other_address(node.family)}
    expected = [places[word] for word in scene.of.get(node.plane, scene.seen)]
    node.do(scene.commands)
    found = node.answers(capsys)
    assert found.seen == expected
    assert found.told == expected, found.explained
    if found.kept != [False, False] or plan.eth[0] in expected:  # where all is kept, no rule is
        assert found.kept == [source == plan.pods[0] for source in expected]
    in_force = expected == [plan.pods[0], plan.eth[0]]
    overridden = [o for o in found.status["overrides"] if o["family"] == node.family.value]
    assert (found.status["inForce"], not overridden) == (in_force, in_force), found.status
    assert found.status["inSync"] is True
    assert found.exit == (0 if in_force else 1)


def test_what_cannot_be_read_makes_the_verdict_unknown_and_is_named(
    in_ns: Namespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    in_ns.run(["iptables-legacy", "-t", "nat", "-A", "POSTROUTING", "-j", "ACCEPT"])
    in_ns.run(["nft", "-f", "-"], stdin=FIREWALLD)
    everywhere = Question(devices=("eth0",))
    found = neighbours(read_hook(Family.IPV4, NFTABLES, ()), everywhere)
    assert found.beside.decide(10 << 24).verdict is Verdict.MASQUERADE
    # A kernel without nf_tables has legacy tables only.
    with monkeypatch.context() as patch:
        patch.setattr(nfnetlink, "ask", lambda *_: None)
        found = neighbours(read_hook(Family.IPV4, LEGACY_NAT, ()), everywhere)
    assert found.beside.decide(10 << 24).verdict is Verdict.NON_MASQUERADE
    # And a node may have such tables, but not the programs.
    in_ns.run(["nft", "flush", "ruleset"])
    monkeypatch.setenv("PATH", str(tmp_path))
    found = neighbours(read_hook(Family.IPV4, NFTABLES, ()), everywhere)
    decided = found.beside.decide(10 << 24)
    assert decided.verdict is Verdict.UNKNOWN
    assert "iptables-legacy" in str(decided.reason)


def test_chains_of_too_many_rules_are_named_and_unknown(in_ns: Namespace) -> None:
    rules = "\n".join(["ip saddr 192.0.2.1 accept"] * 20_001)
    in_ns.run(["nft", "-f", "-"], stdin=f"table ip x {{ chain c {{ {NAT} 5;\n{rules}\n}}\n}}\n")
    hook = read_hook(Family.IPV4, NFTABLES, ())
    found = neighbours(hook, ANY).beside.decide(10 << 24)
    assert (found.verdict, decider(found.reason).where) == (Verdict.UNKNOWN, "c of table ip x")
    assert "20001 rules, too many" in str(found.reason)


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_of_the_same_priority_the_chain_that_was_made_last_decides(
    in_ns: Namespace, order: tuple[int, int]
) -> None:
    in_ns.run(["ip", "link", "set", "lo", "up"])
    for n in order:
        # One of the family inet, one of a single family.
        head = f"table {('ip', 'inet')[n - 1]} t{n} {{ chain c {{ {NAT} 100;"
        rule = f"ip daddr 127.0.0.9 snat ip to 127.0.1.{n}"
        in_ns.run(["nft", "-f", "-"], stdin=f"{head} {rule}; }}\n}}\n")
    with in_ns.entered(), socket.socket(type=socket.SOCK_DGRAM) as there:
        there.bind(("127.0.0.9", 0))
        there.settimeout(10)
        with socket.socket(type=socket.SOCK_DGRAM) as here:
            here.sendto(b"x", there.getsockname())
            _, (seen, _) = there.recvfrom(9)
    found = neighbours(read_hook(Family.IPV4, NFTABLES, ()), ANY)
    decided = found.beside.decide(int(ipaddress.ip_address("127.0.0.9")))
    assert (seen, found.sources[decider(decided.reason)]) == (f"127.0.1.{order[1]}",) * 2


def test_a_verdict_map_of_devices_concerns_these_alone(in_ns: Namespace) -> None:
    """So Docker leads the traffic of each bridge to its own chain."""
    chains = f"""table ip docker {{
        map outward {{ type ifname : verdict; }}
        map inward {{ type ifname : verdict; elements = {{ "docker0" : jump pods }}; }}
        chain pods {{ ip saddr 172.17.0.0/16 masquerade; }}
        chain c {{ {NAT} 100; iifname vmap @inward; oifname vmap @outward; }}
    }}"""
    in_ns.run(["nft", "-f", "-"], stdin=chains)
    seen = []
    for more in ("docker0", "eth0"):
        found = neighbours(read_hook(Family.IPV4, NFTABLES, ()), Question(None, ("eth0",)))
        seen.append(found.beside.decide(10 << 24).verdict)
        in_ns.run(["nft", "add", "element", "ip", "docker", "outward", f"{{ {more} : jump pods }}"])
    found = neighbours(read_hook(Family.IPV4, NFTABLES, ()), Question(None, ("eth0",)))
    seen.append(found.beside.decide(10 << 24).verdict)
    assert seen == [Verdict.NON_MASQUERADE, Verdict.NON_MASQUERADE, Verdict.UNKNOWN]
