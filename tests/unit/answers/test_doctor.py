"""What the checks make of facts; the facts themselves come from namespaces elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ipmasq_agent.answers.doctor import CHECKS, examine, name
from ipmasq_agent.answers.doctor.facts import Device, Node, Role, Severity
from ipmasq_agent.planes.rules.owners import owner, owner_of_bridge
from ipmasq_agent.planes.rules.rule import Option, Rule
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.facts import DroppedReply

PAGE = Path(__file__).parents[3] / "docs" / "doctor.md"


def ids(node: Node) -> list[str]:
    return [one.id for one in examine(node)]


def test_every_finding_has_a_section_and_every_section_a_finding() -> None:
    sections = re.findall(r"^### (.*)$", PAGE.read_text(), re.MULTILINE)
    assert sorted(sections) == sorted(map(name, CHECKS))


def test_of_a_node_of_which_nothing_is_known_nothing_is_said() -> None:
    assert ids(Node()) == []


@pytest.mark.parametrize(
    ("count", "severity"),
    [(79, None), (80, Severity.WARNING), (94, Severity.WARNING), (95, Severity.ERROR)],
)
def test_conntrack_is_told_before_it_is_full(count: int, severity: Severity | None) -> None:
    found = [one.severity for one in examine(Node(conntrack=(count, 100)))]
    assert found == ([] if severity is None else [severity])


def test_what_the_agent_cannot_write_is_told_with_its_reason() -> None:
    [one] = examine(Node(failing={Family.IPV6: "no nat\nfor it"}))
    assert (one.id, one.severity) == ("agent-fails", Severity.ERROR)
    assert "ipv6" in one.title
    assert one.evidence == ("no nat", "for it")


def test_the_worst_comes_first() -> None:
    node = Node(conntrack=(80, 100), doubtful=("far",), unanswered=("near",))
    assert ids(node) == ["snat-unanswered", "conntrack-full", "snat-by-routers"]


@pytest.mark.parametrize(("mark", "severity"), [(0, Severity.ERROR), (0x80, Severity.INFO)])
def test_replies_to_what_only_a_mark_sends_elsewhere_are_no_failure(
    mark: int, severity: Severity
) -> None:
    node = Node(dropped=(DroppedReply("eth1.7", "10.10.1.200", mark),))
    [one] = examine(node)
    assert (one.id, one.severity) == ("reverse-path-filter", severity)
    assert "`sysctl -w net/ipv4/conf/eth1.7/rp_filter=2`" in one.remedy
    assert ("0x80" in one.title) == bool(mark)


@pytest.mark.parametrize(
    ("pods", "overlay", "out", "found"),
    [
        ((1500,), (), (1500,), False),
        ((1450,), (1450,), (1500,), False),
        ((9000,), (), (1500, 9000), False),  # some way fits
        ((1500,), (), (1460,), True),
        ((1500,), (1450,), (1500,), True),
        ((1450,), (1460,), (1500,), True),
    ],
)
def test_mtu(
    pods: tuple[int, ...], overlay: tuple[int, ...], out: tuple[int, ...], found: bool
) -> None:
    devices = [
        *(Device(f"pods{mtu}", mtu, Role.PODS) for mtu in pods),
        *(Device(f"over{mtu}", mtu, Role.OVERLAY, (f"out{out[0]}",)) for mtu in overlay),
        *(Device(f"out{mtu}", mtu, Role.OUT) for mtu in out),
    ]
    assert ids(Node(devices=tuple(devices))) == ["mtu-mismatch"] * found


@pytest.mark.parametrize(
    ("chain", "table", "options", "comment", "whose"),
    [
        ("KUBE-POSTROUTING", "nat", (), None, "kube-proxy or kubelet"),
        ("AWS-SNAT-CHAIN-0", "nat", (), None, "the AWS VPC CNI"),
        ("nat_POST_public_allow", "firewalld", (), None, "firewalld"),
        ("POSTROUTING", "nat", (Option("out-interface", ("docker0",), True),), None, "Docker"),
        ("POSTROUTING", "nat", (), "flanneld masq", "flannel"),
        ("POSTROUTING", "nat", (), None, None),
    ],
)
def test_whose_a_rule_is(
    chain: str, table: str, options: tuple[Option, ...], comment: str | None, whose: str | None
) -> None:
    assert owner(chain, table, Rule("", options, comment)) == whose


def test_bridges_of_pods_are_nobody_elses() -> None:
    names = ("docker0", "br-0123456789ab", "virbr0", "cni0", "br-ex", "br-lan", "podman1")
    assert [name for name in names if owner_of_bridge(name) is None] == ["cni0", "br-ex", "br-lan"]
