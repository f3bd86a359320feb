"""What the nft backend makes of rules that iptables cannot show, or shows in part."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ipmasq_agent.agent.reconcile import reconcile_family
from ipmasq_agent.errors import KernelReadError
from ipmasq_agent.netlink.nft_objects import chain_info, list_rules
from ipmasq_agent.planes.hook.read import read_hook
from ipmasq_agent.planes.interpretation import Interpretation
from ipmasq_agent.planes.iptables.nft import IptablesNftPlane
from ipmasq_agent.planes.iptables.nft_native import is_shown_in_full
from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.planes.rules.matching import question
from ipmasq_agent.planes.rules.neighbours import joined, neighbours
from ipmasq_agent.policy.addresses import Family, Prefix, parse_address
from ipmasq_agent.policy.decisions import DecisionMap, Stated, Verdict, entry_of_prefix
from ipmasq_agent.policy.model import FamilyPolicy, Guards
from tests.netns import Namespace
from tests.reasons import decider

V4, V6 = Family.IPV4, Family.IPV6
PLACEMENT = Placement("IP-MASQ")
TENS = Prefix(V4, 10 << 24, 8)
GUARDED_JUMP = ("-m", "addrtype", "!", "--dst-type", "LOCAL", "-j", "IP-MASQ")

# iptables-nft-save exits with 0 and leaves out what it does not know of these ...
SHOWN_IN_PART = (
    "ip daddr { 10.0.0.1, 10.0.0.2 } counter accept",
    "ip daddr 10.0.0.1-10.0.0.9 accept",
    "ip daddr @ours accept",
    "ip daddr vmap { 10.0.0.1 : accept }",
    "ip saddr 10.0.0.0/8 ip saddr 10.1.0.0/16 accept",
    "ip daddr 10.0.0.0/8 ip daddr 10.1.0.0/16 accept",
    "oifname eth0 oifname eth1 accept",
    "tcp dport { 80, 81 } accept",
    "tcp dport 80 tcp dport 81 accept",
    "tcp window 5 accept",
    "udp length 20 accept",
    "icmp code 3 accept",
    "ip frag-off 5 accept",
    "log group 5 accept",
    "ip daddr set 192.0.2.1 accept",
    "meta nftrace set 1 accept",
    "@ih,0,8 5 accept",
)
# ... exits with 3 at these ...
NOT_PARSED = (
    "meta skuid 1000 accept",
    "ip dscp 10 accept",
    "ip length 100 accept",
    "sctp dport 80 accept",
    "meta mark set 5 accept",
)
# ... and refuses the whole table for these.
REFUSED = (
    "ct mark 5 accept",
    "fib daddr type local accept",
    'log prefix "hello " accept',
    "limit rate over 5/second accept",
    "masquerade",
    "snat to 192.0.2.1",
    "numgen random mod 2 0 accept",
)
KEEP, MASQ, UNKNOWN = Verdict.NON_MASQUERADE, Verdict.MASQUERADE, Verdict.UNKNOWN
# What becomes of packets to 10.0.0.0, which our chain keeps, and to 9.0.0.0, where such a
# rule decides for all packets or cannot be read. Of most others it decides for some.
DECIDING = {
    **dict.fromkeys(SHOWN_IN_PART[3:4], (UNKNOWN, UNKNOWN)),
    "ip daddr set 192.0.2.1 accept": (UNKNOWN, UNKNOWN),
    "@ih,0,8 5 accept": (UNKNOWN, UNKNOWN),
    "log group 5 accept": (KEEP, KEEP),
    'log prefix "hello " accept': (KEEP, KEEP),
    "meta nftrace set 1 accept": (KEEP, KEEP),
    "meta mark set 5 accept": (KEEP, KEEP),
    "masquerade": (MASQ, MASQ),
    "snat to 192.0.2.1": (MASQ, MASQ),
}
# What iptables-nft writes itself, among it what it writes as native expressions.
WRITTEN_BY_IPTABLES = (
    "-p tcp --dport 80:90 -j ACCEPT",
    "-p tcp ! --dport 80:90 -j ACCEPT",
    "-p tcp --sport 80 --dport 90 -j ACCEPT",
    "-p tcp --sport 1:80 --dport 90 -j ACCEPT",
    "-p udp ! --sport 53:54 -j MASQUERADE --to-ports 5-9",
    "-p tcp --syn -j ACCEPT",
    "-p icmp --icmp-type 3/1 -j ACCEPT",
    "-p sctp --dport 5:7 -j ACCEPT",
    "-p 47 -j ACCEPT",
    "-m ttl --ttl-gt 5 -j ACCEPT",
    "-m mark --mark 0x1/0xf -m mark ! --mark 2 -j ACCEPT",
    "-m limit --limit 5/min -j ACCEPT",
    "-j NFLOG --nflog-group 5 --nflog-prefix x",
    "-j LOG --log-prefix x",
    "-p tcp -m multiport --dports 1,2,4:5 -j ACCEPT",
    "-s 10.0.0.0/8 ! -d 10.1.2.0/23 -o eth+ -j ACCEPT",
    "-d 10.0.0.0/255.0.255.0 -j ACCEPT",
    "-f -j ACCEPT",
    "! -f -j ACCEPT",
    "-j MARK --set-mark 5",
    "-m iprange --dst-range 10.0.0.1-10.0.0.9 -j RETURN",
    "-m comment --comment x -g FOREIGN",
    "-m statistic --mode random --probability 0.25 -j SNAT --to-source 192.0.2.1",
)


def _policy(*prefixes: Prefix) -> FamilyPolicy:
    entries = [entry_of_prefix(p, Verdict.NON_MASQUERADE, Stated(str(p))) for p in prefixes]
    return FamilyPolicy(DecisionMap(V4, entries))


def _foreign_chain(ns: Namespace) -> None:
    ns.run(["iptables-nft", "-t", "nat", "-N", "FOREIGN"])
    ns.run(["iptables-nft", "-t", "nat", "-P", "POSTROUTING", "ACCEPT"])  # makes the base chain
    ns.run(["nft", "add set ip nat ours { type ipv4_addr; }"])


def _native(ns: Namespace, chain: str, rule: str) -> None:
    ns.run(["nft", f"add rule ip nat {chain} {rule}"])


def _rules(ns: Namespace, chain: str, table: str = "ip") -> list[tuple[int, Any]]:
    """Return handle and expressions of each rule, as nft tells them, without counters."""
    done = ns.run(["nft", "-a", "-j", "list", "chain", table, "nat", chain])
    found = [item["rule"] for item in json.loads(done.stdout)["nftables"] if "rule" in item]
    return [
        (rule["handle"], [part for part in rule["expr"] if "counter" not in part]) for rule in found
    ]


def _reconcile(backend: IptablesNftPlane, policy: FamilyPolicy) -> None:
    change = backend.dialect.plan(backend.read(V4), backend.dialect.compile(policy))
    if change:
        backend.apply(V4, change)


def _in_force(backend: IptablesNftPlane, source: int | None = None) -> Interpretation:
    others = neighbours(read_hook(V4, backend.our_base(V4), ()), question(source))
    return joined(backend.dialect.interpret(backend.read(V4), source), others)


@pytest.mark.parametrize("rule", SHOWN_IN_PART + NOT_PARSED + REFUSED)
def test_native_rule_in_our_chain_is_an_error_with_a_remedy_and_nothing_is_written(
    in_ns: Namespace, rule: str
) -> None:
    backend = IptablesNftPlane(PLACEMENT)
    _foreign_chain(in_ns)
    _reconcile(backend, _policy(TENS))
    _native(in_ns, "IP-MASQ", rule)
    before = _rules(in_ns, "IP-MASQ"), _rules(in_ns, "POSTROUTING")
    with pytest.raises(KernelReadError) as caught:
        _reconcile(backend, _policy())
    assert caught.value.remedy
    assert "nft list" in caught.value.remedy
    assert (_rules(in_ns, "IP-MASQ"), _rules(in_ns, "POSTROUTING")) == before


@pytest.mark.parametrize("rule", SHOWN_IN_PART + NOT_PARSED + REFUSED)
def test_native_rule_before_our_jump_is_told_and_untouched_and_our_chain_is_kept_right(
    in_ns: Namespace, rule: str
) -> None:
    backend = IptablesNftPlane(PLACEMENT)
    _foreign_chain(in_ns)
    _native(in_ns, "POSTROUTING", rule)
    foreign = _rules(in_ns, "POSTROUTING")

    _reconcile(backend, _policy())
    _reconcile(backend, _policy(TENS))

    assert _rules(in_ns, "POSTROUTING")[: len(foreign)] == foreign
    assert len(_rules(in_ns, "POSTROUTING")) == len(foreign) + 1
    table = backend.read(V4)
    desired = backend.dialect.compile(_policy(TENS))
    assert table.rules("IP-MASQ") == desired.rules
    assert not backend.dialect.plan(table, desired)
    found = _in_force(backend)
    kept, other = (found.policy.decisions.decide(a) for a in (TENS.first, 9 << 24))
    if rule in DECIDING:
        assert (kept.verdict, other.verdict) == DECIDING[rule]
        assert decider(other.reason)[:2] == ("POSTROUTING", 1)
    else:
        assert (kept.verdict, other.verdict) == (KEEP, MASQ)
    told = [(*e.rule[:2], e.verdict) for e in found.exceptions]
    decided_by_destination = rule.startswith(("ip daddr", "fib daddr"))
    some = rule not in DECIDING and not decided_by_destination
    assert told == [("POSTROUTING", 1, KEEP)] * some


@pytest.mark.parametrize("rule", NOT_PARSED + REFUSED)
def test_native_rule_in_a_chain_of_others_costs_us_nothing(in_ns: Namespace, rule: str) -> None:
    backend = IptablesNftPlane(PLACEMENT)
    _foreign_chain(in_ns)
    _native(in_ns, "FOREIGN", rule)
    foreign = _rules(in_ns, "FOREIGN")

    _reconcile(backend, _policy())
    _reconcile(backend, _policy(TENS))

    assert _rules(in_ns, "FOREIGN") == foreign
    table = backend.read(V4)
    assert backend.dialect.interpret(table).policy == _policy(TENS)
    change = backend.dialect.plan(table, backend.dialect.absent(V4))
    backend.apply(V4, change)
    assert _rules(in_ns, "FOREIGN") == foreign
    assert _rules(in_ns, "POSTROUTING") == []


@pytest.mark.parametrize("rule", ["ip daddr { 10.0.0.0 } masquerade", "ct id 5 masquerade"])
def test_chain_that_cannot_be_shown_and_is_called_before_our_jump_is_told(
    in_ns: Namespace, rule: str
) -> None:
    backend = IptablesNftPlane(PLACEMENT)
    _foreign_chain(in_ns)
    _native(in_ns, "FOREIGN", rule)
    in_ns.run(["iptables-nft", "-t", "nat", "-A", "POSTROUTING", "-j", "FOREIGN"])
    _reconcile(backend, _policy(TENS))
    found = _in_force(backend)
    decided = found.policy.decisions.decide(TENS.first)
    if "daddr" in rule:
        assert (decided.verdict, decider(decided.reason).where) == (MASQ, "FOREIGN")
    else:
        assert decided.verdict is KEEP
        assert [(e.rule.where, e.verdict) for e in found.exceptions] == [("FOREIGN", MASQ)]


def test_our_jump_is_recognised_among_rules_that_iptables_cannot_list(in_ns: Namespace) -> None:
    backend = IptablesNftPlane(PLACEMENT)
    in_ns.run(["iptables-nft", "-t", "nat", "-N", "IP-MASQ"])
    in_ns.run(["iptables-nft", "-t", "nat", "-A", "POSTROUTING", *GUARDED_JUMP])
    _native(in_ns, "POSTROUTING", "ct mark 5 accept")
    before = _rules(in_ns, "POSTROUTING")
    _reconcile(backend, _policy(TENS))
    assert _rules(in_ns, "POSTROUTING") == before


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize("bits", [1, 24, 27, 32])
def test_our_guards_are_recognised_among_rules_that_iptables_cannot_list(
    in_ns: Namespace, family: Family, bits: int
) -> None:
    """iptables-nft compares whole octets, and masks where a prefix ends within one."""
    first = parse_address("172.0.0.0" if family is V4 else "fd00::")[1]
    length = family.bits - 32 + bits
    prefix = Prefix(family, first >> family.bits - length << family.bits - length, length)
    guards = Guards(sources=(prefix,), devices=("bond0.100", "eth1"))
    wanted = FamilyPolicy(DecisionMap(family, ()), guards)
    backend = IptablesNftPlane(PLACEMENT)
    reconcile_family(backend, family, wanted)
    table = "ip" if family is V4 else "ip6"
    in_ns.run(["nft", "add", "rule", table, "nat", "POSTROUTING", "ct", "mark", "5", "accept"])
    assert not reconcile_family(IptablesNftPlane(PLACEMENT), family, wanted)
    held = backend.read(family)
    assert backend.dialect.interpret(held).policy.guards == guards
    # In the very words that are written: what was only moved is told by them.
    said = [rule.text for rule in held.rules("POSTROUTING") if rule.target == "IP-MASQ"]
    assert said == [rule.text for rule in backend.dialect.compile(wanted).jumps]


# {0} is ip or ip6, {1} a prefix of the family.
NATIVE = (
    "{0} saddr {1} oifname eth0 masquerade",
    "{0} saddr {1} ct state new masquerade",
    "oifname {{ eth0, eth1 }} masquerade",
    "{0} daddr @theirs masquerade",
    "{0} daddr {{ {1} }} return",
    "meta mark and 0xff == 5 {0} daddr {1} snat to {2}",
)


def _guarded(family: Family, *, sources: bool, device: str = "eth1") -> FamilyPolicy:
    tens = parse_address("10.0.0.0" if family is V4 else "fd00::")[1]
    guards = Guards(sources=(Prefix(family, tens, 8),) if sources else None, devices=(device,))
    return FamilyPolicy(DecisionMap(family, ()), guards)


def _natively(ns: Namespace, family: Family, rules: Sequence[str]) -> list[tuple[int, Any]]:
    """Write native rules into POSTROUTING, some before our jumps; return all that are not ours."""
    ip, prefix, to = NATIVE_WORDS[family]
    kind = "ipv4_addr" if family is V4 else "ipv6_addr"
    ns.run(["nft", f"add set {ip} nat theirs {{ type {kind}; flags interval; }}"])
    for number, rule in enumerate(rules):
        verb = "insert" if number % 2 else "add"
        ns.run(["nft", f"{verb} rule {ip} nat POSTROUTING {rule.format(ip, prefix, to)}"])
    return _others(ns, family)


NATIVE_WORDS = {
    V4: ("ip", "10.8.0.0/24", "192.0.2.1"),
    V6: ("ip6", "fd00:8::/64", "2001:db8::1"),
}


def _others(ns: Namespace, family: Family) -> list[tuple[int, Any]]:
    rules = _rules(ns, "POSTROUTING", NATIVE_WORDS[family][0])
    return [(handle, parts) for handle, parts in rules if "IP-MASQ" not in json.dumps(parts)]


@pytest.mark.parametrize("with_set", [False, True])
@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize("rules", [*([rule] for rule in NATIVE), NATIVE])
def test_beside_native_rules_our_jumps_change_and_go_and_nothing_of_ours_is_left(
    in_ns: Namespace, family: Family, rules: Sequence[str], with_set: bool
) -> None:
    first, second = (_guarded(family, sources=sources) for sources in (True, False))
    reconcile_family(IptablesNftPlane(PLACEMENT, with_set=with_set), family, first)
    foreign = _natively(in_ns, family, rules)
    backend = IptablesNftPlane(PLACEMENT, with_set=with_set)
    for wanted in (second, first, _guarded(family, sources=True, device="eth2")):
        assert reconcile_family(backend, family, wanted)
        assert not reconcile_family(IptablesNftPlane(PLACEMENT, with_set=with_set), family, wanted)
        assert backend.read(family).rules("IP-MASQ") == backend.dialect.compile(wanted).rules
        assert _others(in_ns, family) == foreign
    assert reconcile_family(IptablesNftPlane(PLACEMENT), family, None)
    assert _rules(in_ns, "POSTROUTING", NATIVE_WORDS[family][0]) == foreign
    assert chain_info(family, "nat", "IP-MASQ") is None


@pytest.mark.parametrize("comment", ["", 'comment "by nft"', 'comment "it\'s \\ said"'])
def test_a_jump_of_others_to_our_chain_beside_native_rules_goes_with_its_comment(
    in_ns: Namespace, comment: str
) -> None:
    reconcile_family(IptablesNftPlane(PLACEMENT), V4, _policy(TENS))
    foreign = _natively(in_ns, V4, NATIVE)
    _native(in_ns, "POSTROUTING", f"oifname eth5 jump IP-MASQ {comment}")
    assert reconcile_family(IptablesNftPlane(PLACEMENT), V4, _policy(TENS))
    assert len(_rules(in_ns, "POSTROUTING")) == len(foreign) + 1
    assert reconcile_family(IptablesNftPlane(PLACEMENT), V4, None)
    assert _rules(in_ns, "POSTROUTING") == foreign


def test_jump_to_us_on_a_condition_among_rules_that_cannot_be_listed_is_an_error(
    in_ns: Namespace,
) -> None:
    in_ns.run(["iptables-nft", "-t", "nat", "-N", "IP-MASQ"])
    jump = ["-p", "tcp", "-j", "IP-MASQ"]
    in_ns.run(["iptables-nft", "-t", "nat", "-A", "POSTROUTING", *jump])
    _native(in_ns, "POSTROUTING", "ct mark 5 accept")
    before = _rules(in_ns, "POSTROUTING")
    with pytest.raises(KernelReadError, match="POSTROUTING"):
        _reconcile(IptablesNftPlane(PLACEMENT), _policy(TENS))
    assert _rules(in_ns, "POSTROUTING") == before


def test_every_rule_that_iptables_writes_counts_as_shown_in_full(in_ns: Namespace) -> None:
    _foreign_chain(in_ns)
    for rule in WRITTEN_BY_IPTABLES:
        in_ns.run(["iptables-nft", "-t", "nat", "-A", "POSTROUTING", *rule.split()])
    listed = [rule.expressions for rule in list_rules(V4, "nat", "POSTROUTING")]
    assert len(listed) == len(WRITTEN_BY_IPTABLES)
    partly = [
        rule
        for rule, expressions in zip(WRITTEN_BY_IPTABLES, listed, strict=True)
        if not is_shown_in_full(expressions, V4)
    ]
    assert partly == []


def test_ipv6_rules_of_iptables_count_as_shown_in_full_and_native_ones_do_not(
    in_ns: Namespace,
) -> None:
    for rule in (
        "-s fd00::/8 -d fd00:1::/33 -j ACCEPT",
        "! -d fd00::1 -j ACCEPT",
        "-p tcp --dport 80:90 -j ACCEPT",
        "-p ipv6-icmp --icmpv6-type 128 -j ACCEPT",
        "-d fd00::/ffff:0:ffff:: -m hl --hl-eq 5 -j ACCEPT",
    ):
        in_ns.run(["ip6tables-nft", "-t", "nat", "-A", "POSTROUTING", *rule.split()])
    in_ns.run(["nft", "add rule ip6 nat POSTROUTING ip6 daddr { fd00::1, fd00::2 } accept"])
    in_ns.run(["nft", "add rule ip6 nat POSTROUTING ip6 flowlabel 5 accept"])
    listed = [rule.expressions for rule in list_rules(V6, "nat", "POSTROUTING")]
    assert [is_shown_in_full(rule, V6) for rule in listed] == [True] * 5 + [False] * 2


@pytest.mark.parametrize(
    ("label", "script"),
    [
        ("nothing", "exit 0"),
        ("garbage", "echo 'Segmentation fault'; exit 0"),
        ("half a chain", 'REAL "$@" | head -c 50; exit 0'),
        ("a rule left out", 'REAL "$@" | grep -v RETURN; exit 0'),
        ("all rules left out", "REAL \"$@\" | grep -v '^-A'; exit 0"),
        ("a line of something else", "REAL \"$@\" | sed 's/^-A IP/Bad IP/'; exit 0"),
        ("another chain", "REAL -t nat -S POSTROUTING; exit 0"),
        ("a failure", "echo no such luck >&2; exit 1"),
    ],
)
def test_incomplete_output_of_the_reader_is_an_error_and_never_an_empty_chain(
    in_ns: Namespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    label: str,
    script: str,
) -> None:
    _reconcile(IptablesNftPlane(PLACEMENT), _policy(TENS))
    before = _rules(in_ns, "IP-MASQ")
    fake = tmp_path / "iptables-nft"
    fake.write_text("#!/bin/sh\n" + script.replace("REAL", "/usr/sbin/iptables-nft") + "\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(KernelReadError) as caught:
        _reconcile(IptablesNftPlane(PLACEMENT), _policy())
    assert caught.value.remedy, label
    assert _rules(in_ns, "IP-MASQ") == before


def test_hostile_comment_of_others_neither_ends_the_table_nor_hides_a_rule(
    in_ns: Namespace,
) -> None:
    comment = 'x\nCOMMIT\n-A POSTROUTING -j ACCEPT # "\x0b\u2028\\'
    foreign = ["-s", "172.17.0.0/16", "-m", "comment", "--comment", comment, "-j", "MASQUERADE"]
    in_ns.run(["iptables-nft", "-t", "nat", "-A", "POSTROUTING", *foreign])
    before = _rules(in_ns, "POSTROUTING")
    backend = IptablesNftPlane(PLACEMENT)
    _reconcile(backend, _policy(TENS))
    table = backend.read(V4)
    assert table.rules("POSTROUTING")[1].target == "IP-MASQ"
    assert _rules(in_ns, "POSTROUTING")[:1] == before
    found = _in_force(backend)
    assert found.policy == _policy(TENS)
    assert [e.rule.position for e in found.exceptions] == [1]
    docker = parse_address("172.17.0.2")[1]
    answered = _in_force(backend, docker).policy.decisions.decide(TENS.first)
    assert answered.verdict is Verdict.MASQUERADE


@pytest.mark.parametrize("family", [V4, V6])
def test_a_table_made_anew_is_read_anew_though_its_rules_have_the_same_numbers(
    in_ns: Namespace, family: Family
) -> None:
    backend, ip = IptablesNftPlane(PLACEMENT), {V4: "ip", V6: "ip6"}[family]
    for prefix in {V4: ("10.1.0.0/16", "10.2.0.0/16"), V6: ("fd01::/16", "fd02::/16")}[family]:
        ruleset = f"""
            add table {ip} nat
            delete table {ip} nat
            table {ip} nat {{
                chain IP-MASQ {{ {ip} daddr {prefix} counter return; }}
                chain POSTROUTING {{
                    type nat hook postrouting priority 100;
                    counter jump IP-MASQ;
                }}
            }}"""
        in_ns.run(["nft", "-f", "-"], stdin=ruleset)
        (rule,) = backend.read(family).rules("IP-MASQ")
        assert rule.text == f"-d {prefix} -j RETURN"


@pytest.mark.parametrize("family", list(Family))
def test_a_jump_that_followed_our_chain_to_another_name_is_missed(
    in_ns: Namespace, family: Family
) -> None:
    backend, wanted = IptablesNftPlane(PLACEMENT), FamilyPolicy(DecisionMap(family, ()))
    iptables = {V4: "iptables-nft", V6: "ip6tables-nft"}[family]
    reconcile_family(backend, family, wanted)
    in_ns.run([iptables, "-t", "nat", "-E", "IP-MASQ", "OLD"])
    in_ns.run([iptables, "-t", "nat", "-N", "IP-MASQ"])
    reconcile_family(backend, family, wanted)
    assert [r.target for r in backend.read(family).rules("POSTROUTING")] == ["OLD", "IP-MASQ"]
    assert not reconcile_family(IptablesNftPlane(PLACEMENT), family, wanted)


def _odd_jump(ns: Namespace) -> None:
    """Put in the place of our jump what iptables writes where it may not ask for revisions."""
    listed = ns.run(["iptables-nft", "-t", "nat", "-S", "POSTROUTING"]).stdout.splitlines()
    words = shlex.split(listed[-1])
    usual = [rule.expressions for rule in list_rules(V4, "nat", "POSTROUTING")]
    for when in range(1, 30):
        ns.run(["iptables-nft", "-t", "nat", "-F", "POSTROUTING"])
        fault = f"inject=socket:error=EMFILE:when={when}"
        writer = ["strace", "-o", "/dev/null", "-e", fault, "iptables-nft", "-t", "nat"]
        ns.run([*writer, *words], check=False)
        rules = list_rules(V4, "nat", "POSTROUTING")
        if rules and [rule.expressions for rule in rules] != usual:
            return
    raise AssertionError("iptables never wrote it otherwise")


@pytest.mark.parametrize("leaves", [False, True])
def test_a_jump_that_iptables_cannot_find_again_goes_by_its_handle(
    in_ns: Namespace, leaves: bool
) -> None:
    backend, wanted = IptablesNftPlane(PLACEMENT), _policy(TENS)
    reconcile_family(backend, V4, wanted)
    _odd_jump(in_ns)
    foreign = ["-s", "172.17.0.0/16", "-j", "RETURN"]
    in_ns.run(["iptables-nft", "-t", "nat", "-A", "POSTROUTING", *foreign])
    reconcile_family(backend, V4, None if leaves else wanted)
    saved = in_ns.run(["iptables-nft", "-t", "nat", "-S", "POSTROUTING"]).stdout
    assert saved.count("-j IP-MASQ") == (0 if leaves else 1)
    assert saved.count("-s 172.17.0.0/16 -j RETURN") == 1
    assert not reconcile_family(backend, V4, None if leaves else wanted)
