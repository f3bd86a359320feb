"""Between two resyncs a look every few seconds finds what others took away from us."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ipmasq_agent.agent.reconcile import reconcile_family
from ipmasq_agent.planes import detect
from ipmasq_agent.planes.iptables.plane import IptablesPlane
from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.planes.plane import AnyPlane
from ipmasq_agent.policy.addresses import Family, Prefix
from ipmasq_agent.policy.decisions import DecisionMap, Stated, Verdict, entry_of_prefix
from ipmasq_agent.policy.model import FamilyPolicy
from tests import oracle
from tests.kernel.running import Running
from tests.netns import Namespace
from tests.waiting import wait_until

NAMES = ("iptables-nft", "ipset-nft", "nftables", "iptables-legacy", "ipset-legacy")


def _policy(family: Family) -> FamilyPolicy:
    prefix = Prefix(family, 0xFD << family.bits - 8, 16)
    entry = entry_of_prefix(prefix, Verdict.NON_MASQUERADE, Stated("one"))
    return FamilyPolicy(DecisionMap(family, [entry]))


def _name_of(backend: AnyPlane) -> str:
    if not isinstance(backend, IptablesPlane):
        return backend.name
    return f"{backend.name.removesuffix('-' + backend.variant)}-{backend.variant}"


@pytest.fixture(params=[(name, family) for name in NAMES for family in Family], ids=str)
def kept(request: pytest.FixtureRequest, in_ns: Namespace) -> Iterator[tuple[AnyPlane, Family]]:
    """A backend whose rules are in force, as a pass left them."""
    name, family = request.param
    backend = detect.make(name, Placement())
    assert reconcile_family(backend, family, _policy(family))
    yield backend, family
    backend.close()


def _ruin(name: str, family: Family) -> list[list[str]]:
    """Return what somebody may do to our rules, each by itself."""
    ip = "ip" if family is Family.IPV4 else "ip6"
    variant = "legacy" if name.endswith("legacy") else "nft"
    iptables = [f"{ip}tables-{variant}", "-t", "nat"]
    if name == "nftables":
        return [
            ["nft", f"delete table {ip} ip-masq"],
            ["nft", f"flush chain {ip} ip-masq postrouting"],
            ["nft", f"flush set {ip} ip-masq keep"],
            ["nft", f"insert rule {ip} ip-masq postrouting accept"],
            ["nft", "flush ruleset"],
        ]
    return [
        [*iptables, "-F"],
        [*iptables, "-F", "POSTROUTING"],
        [*iptables, "-F", "IP-MASQ"],
        [*iptables, "-D", "IP-MASQ", "1"],
        [*iptables, "-I", "IP-MASQ", "-j", "ACCEPT"],
        *([["nft", "flush ruleset"]] if variant == "nft" else []),
        *([["ipset", "flush", _set_of(name, family)]] if name.startswith("ipset") else []),
    ]


def _set_of(name: str, family: Family) -> str:
    return f"IP-MASQ{'-legacy' if name.endswith('legacy') else ''}-{family.value[-1]}"


def test_what_others_do_to_our_rules_is_seen_at_the_next_look(
    kept: tuple[AnyPlane, Family], in_ns: Namespace
) -> None:
    backend, family = kept
    assert not backend.disturbed()
    for words in _ruin(_name_of(backend), family):
        in_ns.run(words)
        assert backend.disturbed(), words
        assert reconcile_family(backend, family, _policy(family)), words
        assert not backend.disturbed()


def _replace(name: str, family: Family) -> list[str]:
    """Return what puts something else in the place of what is ours, and nothing more or less."""
    ip, old, new = {
        Family.IPV4: ("ip", "253.0.0.0/16", "10.9.0.0/16"),
        Family.IPV6: ("ip6", "fd00::/16", "fd09::/16"),
    }[family]
    if name.startswith("ipset"):
        chosen = _set_of(name, family)
        return ["sh", "-c", f"ipset del {chosen} {old} && ipset add {chosen} {new}"]
    if name == "nftables":
        of_set = f"element {ip} ip-masq keep"
        return ["nft", f"delete {of_set} {{ {old} }}; add {of_set} {{ {new} }}"]
    variant = "legacy" if name.endswith("legacy") else "nft"
    return [f"{ip}tables-{variant}", "-t", "nat", "-R", "IP-MASQ", "1", "-d", new, "-j", "RETURN"]


def test_what_takes_the_place_of_ours_is_seen_though_nothing_is_missing(
    kept: tuple[AnyPlane, Family], in_ns: Namespace
) -> None:
    backend, family = kept
    words = _replace(_name_of(backend), family)
    for _ in range(2):
        assert not backend.disturbed()
        in_ns.run(words)
        wait_until(backend.disturbed, str(words))
        assert reconcile_family(backend, family, _policy(family))
    assert not backend.disturbed()


def test_what_others_do_to_their_own_rules_calls_for_no_pass(
    kept: tuple[AnyPlane, Family], in_ns: Namespace
) -> None:
    backend, family = kept
    variant = "legacy" if _name_of(backend).endswith("legacy") else "nft"
    iptables = f"{'iptables' if family is Family.IPV4 else 'ip6tables'}-{variant}"
    for words in (
        ["nft", "add table inet theirs"],
        [iptables, "-t", "nat", "-N", "THEIRS"],
        [iptables, "-t", "nat", "-A", "THEIRS", "-p", "tcp", "-j", "RETURN"],
        [iptables, "-t", "nat", "-F", "THEIRS"],
        ["nft", "delete table inet theirs"],
    ):
        in_ns.run(words)
        assert not backend.disturbed(), words
    assert not reconcile_family(backend, family, _policy(family))


@pytest.mark.parametrize("name", ["iptables-nft", "nftables", "iptables-legacy"])
def test_the_agent_puts_back_what_was_flushed_long_before_its_resync(
    run: Callable[..., Running], in_ns: Namespace, tmp_path: Path, name: str
) -> None:
    document = tmp_path / "config"
    document.write_text("resyncInterval: 1h\nnonMasqueradeCIDRs: [10.0.0.0/8]\n")
    agent = run("run", f"--config={document}", f"--backend={name}", "--enable-ipv6")
    agent.wait_ready()
    before = oracle.snapshot()
    for family in Family:
        in_ns.run(_ruin(name, family)[0])
    wait_until(lambda: oracle.snapshot() == before, "all is there again")
    assert agent.ready()


@pytest.mark.parametrize("name", ["iptables-nft", "nftables"])
def test_rules_of_others_that_decide_are_told_long_before_the_resync(
    run: Callable[..., Running], in_ns: Namespace, tmp_path: Path, name: str
) -> None:
    document = tmp_path / "config"
    document.write_text("resyncInterval: 1h\nnonMasqueradeCIDRs: [10.0.0.0/8]\n")
    agent = run("run", f"--config={document}", f"--backend={name}")
    agent.wait_ready()
    chain, rule = "type nat hook postrouting priority 50", "ip daddr 10.0.0.0/8 masquerade"
    for _ in range(2):
        wait_until(lambda: agent.status().get("overrides") == [], "nobody else decides")
        in_ns.run(["nft", f"table ip theirs {{ chain c {{ {chain}; {rule}; }}; }}"])
        wait_until(lambda: agent.status().get("overrides"), "somebody does")
        in_ns.run(["nft", "delete table ip theirs"])
