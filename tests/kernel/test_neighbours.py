"""Others write to the same nat table: not a rule or a counter of theirs, or of ours, is lost."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import oracle
from tests.kernel.agent import apply, kept_backends, status_of
from tests.kernel.upstream_table import IPV6, LINK_LOCAL, LINK_LOCAL6, MASQ, cidrs, stay
from tests.netns import Namespace

OUTBOUND = ("-m", "addrtype", "!", "--dst-type", "LOCAL")
OUR_JUMP = oracle.Rule(None, "IP-MASQ", other=OUTBOUND)
# Two documents that differ in the middle, at the end and in length, and what they become.
DOCUMENTS = (
    (
        cidrs("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fd00::/8"),
        (*LINK_LOCAL, *stay("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"), MASQ),
        (*LINK_LOCAL6, *stay("fd00::/8"), MASQ),
    ),
    (
        cidrs("10.0.0.0/8", "198.51.100.0/24", "fd00::/8", "2001:db8::/32"),
        (*LINK_LOCAL, *stay("10.0.0.0/8", "198.51.100.0/24"), MASQ),
        (*LINK_LOCAL6, *stay("fd00::/8", "2001:db8::/32"), MASQ),
    ),
)

# What stands in the table before we come. Counters are given, so that a lost one shows.
STANDING = """*nat
:KUBE-SERVICES - [0:0]
:KUBE-MARK - [0:0]
[11:1100] -A PREROUTING -m comment --comment "it's theirs" -j KUBE-SERVICES
[12:1200] -A POSTROUTING -m mark --mark 0x4000/0x4000 -j RETURN
[13:1300] -A POSTROUTING -p tcp -m multiport --dports 80,443 -j KUBE-SERVICES
[14:1400] -A KUBE-SERVICES -p udp -m statistic --mode nth --every 2 --packet 0 -j KUBE-MARK
[15:1500] -A KUBE-SERVICES -m conntrack --ctstate NEW -m limit --limit 5/min -j RETURN
[16:1600] -A KUBE-MARK -j MARK --set-xmark 0x4000/0x4000
COMMIT
"""

# A program that writes its two chains anew, and moves its jump, until its input is closed.
# It stops at the first refusal, and says how often it wrote.
RIVAL = r"""
import select, subprocess, sys
argv = sys.argv[1:]
def text(turn):
    rules = [f"-A RIVAL-A -m mark --mark {n:#x} -j RIVAL-B" for n in range(10 + turn % 2 * 10)]
    rules += [f"-A RIVAL-B -p tcp -m tcp --dport {turn % 2 + 1} -j ACCEPT"]
    jump = "POSTROUTING -m mark --mark 0x2 -j RIVAL-A"
    move = [f"-D {jump}"] if turn else []
    move += [f"-I {jump}" if turn % 2 else f"-A {jump}"]
    lines = ["*nat", ":RIVAL-A - [0:0]", ":RIVAL-B - [0:0]", *rules, *move, "COMMIT", ""]
    return "\n".join(lines)
turn = 0
while turn < 2 or not select.select([sys.stdin], [], [], 0)[0]:
    done = subprocess.run(argv, input=text(turn), text=True, capture_output=True)
    if done.returncode:
        sys.exit(f"turn {turn}: {done.stderr}")
    turn += 1
    if turn == 1:
        print("going", flush=True)
print(turn, flush=True)
"""


def program(variant: oracle.Variant, family: oracle.Family, verb: str) -> str:
    return ("iptables" if family == "ipv4" else "ip6tables") + f"-{variant}-{verb}"


def restore(variant: oracle.Variant, family: oracle.Family) -> list[str]:
    wait = ["-w"] if variant == "legacy" else []
    return [program(variant, family, "restore"), *wait, "--noflush"]


def others(variant: oracle.Variant, family: oracle.Family) -> dict[str, oracle.Chain]:
    """Return the chains without what is ours or the rival's."""
    table = oracle.read_table(variant, family)
    return {
        name: oracle.Chain(
            chain.policy,
            tuple(r for r in chain.rules if r.target not in ("IP-MASQ", "RIVAL-A")),
        )
        for name, chain in table.items()
        if name not in ("IP-MASQ", "RIVAL-A", "RIVAL-B")
    }


def counted(chains: dict[str, oracle.Chain]) -> list[tuple[int, int]]:
    return [(rule.packets, rule.bytes) for chain in chains.values() for rule in chain.rules]


def unset(variant: oracle.Variant, family: oracle.Family) -> tuple[int, ...]:
    """Return the count that rules have where restore does not take the one it is given.

    ip6tables-nft-restore 1.8.9 ignores --counters; handles are the proof there.
    """
    return (0,) if (variant, family) == ("nft", "ipv6") else ()


class Rival:
    """The rival process; ``stop`` ends it and returns how often it wrote."""

    def __init__(self, ns: Namespace, variant: oracle.Variant, family: oracle.Family) -> None:
        self._child = ns.popen(
            [sys.executable, "-c", RIVAL, *restore(variant, family)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self._child.stdout is not None
        assert self._child.stdout.readline() == "going\n", self._child.communicate()

    def stop(self) -> int:
        said, complaints = self._child.communicate(timeout=30)
        assert self._child.returncode == 0, complaints
        return int(said)


@contextmanager
def standing(
    ns: Namespace, variant: oracle.Variant
) -> Iterator[dict[oracle.Family, dict[str, oracle.Chain]]]:
    """Load what others keep in both families; check at the end that it is all still there."""
    for family in oracle.FAMILIES:
        ns.run([*restore(variant, family), "--counters"], stdin=STANDING)
    before = {family: others(variant, family) for family in oracle.FAMILIES}
    for family, chains in before.items():
        assert sum(packets for packets, _ in counted(chains)) in (81, *unset(variant, family))
    yield before
    for family in oracle.FAMILIES:
        now = others(variant, family)
        assert now == before[family]
        assert counted(now) == counted(before[family])


@pytest.fixture(params=oracle.VARIANTS)
def variant(request: pytest.FixtureRequest) -> oracle.Variant:
    name: oracle.Variant = request.param
    return name


@pytest.mark.parametrize(
    ("passes", "families"),
    [
        pytest.param(100, ("ipv4",), id="100"),
        pytest.param(1000, ("ipv4", "ipv6"), id="1000", marks=pytest.mark.long),
    ],
)
def test_no_rule_is_lost_or_doubled_while_another_program_writes_the_same_table(
    in_ns: Namespace,
    variant: oracle.Variant,
    passes: int,
    families: tuple[oracle.Family, ...],
    tmp_path: Path,
) -> None:
    document = tmp_path / "config"
    with standing(in_ns, variant), kept_backends():
        rivals = {family: Rival(in_ns, variant, family) for family in families}
        for number in range(passes):
            content, *expected = DOCUMENTS[number % 2]
            if "ipv6" not in families:
                content = b"".join(line for line in content.splitlines(True) if b"::" not in line)
            document.write_bytes(content)
            assert apply(variant, document, f"--enable-ipv6={'ipv6' in families}") == 0
            for family, rules in zip(families, expected, strict=False):
                assert oracle.read_chain(variant, family, "IP-MASQ") == rules, f"pass {number}"
        for family, rival in rivals.items():
            turns = rival.stop()
            # The rival was at work all the time, or the test shows nothing.
            assert turns > passes / 10
            table = oracle.read_table(variant, family)
            hooks = table["POSTROUTING"].rules
            assert hooks.count(OUR_JUMP) == 1
            assert [rule.target for rule in hooks].count("RIVAL-A") == 1
            assert len(table["RIVAL-A"].rules) == (20 if turns % 2 == 0 else 10)
            assert len(table["RIVAL-B"].rules) == 1


def test_rules_and_counters_of_others_are_not_touched_and_cleanup_leaves_all_as_it_was(
    in_ns: Namespace, variant: oracle.Variant, tmp_path: Path
) -> None:
    document = tmp_path / "config"
    with standing(in_ns, variant) as before, kept_backends():
        whole = oracle.snapshot(counters=True)
        handles = {f: oracle.rule_handles(f, "KUBE-SERVICES") for f in oracle.FAMILIES}
        for content, _, _ in DOCUMENTS:
            document.write_bytes(content)
            assert apply(variant, document, *IPV6, "--jump-position=first") == 0
            for family in oracle.FAMILIES:
                now = others(variant, family)
                assert (now, counted(now)) == (before[family], counted(before[family]))
                assert oracle.rule_handles(family, "KUBE-SERVICES") == handles[family]
                assert oracle.read_table(variant, family)["POSTROUTING"].rules[0] == OUR_JUMP
        assert status_of("cleanup") == 0
        assert oracle.snapshot(counters=True) == whole


def test_cleanup_of_a_table_that_was_ours_alone_leaves_no_rule_and_no_chain(
    in_ns: Namespace, variant: oracle.Variant, tmp_path: Path
) -> None:
    document = tmp_path / "config"
    document.write_bytes(DOCUMENTS[0][0])
    with kept_backends():
        assert apply(variant, document, *IPV6) == 0
        assert status_of("cleanup") == 0
        for family in oracle.FAMILIES:
            table = oracle.read_table(variant, family)
            assert not any(chain.rules for chain in table.values())
            assert all(chain.policy == "ACCEPT" for chain in table.values())
        again = oracle.snapshot(handles=True)
        assert status_of("cleanup") == 0
        assert oracle.snapshot(handles=True) == again


def test_cleanup_where_we_never_were_changes_nothing(in_ns: Namespace) -> None:
    with kept_backends():
        assert status_of("cleanup") == 0
    assert not any(oracle.snapshot().values())


def test_unchanged_rules_of_ours_keep_counters_and_handles_across_a_change(
    in_ns: Namespace, variant: oracle.Variant, tmp_path: Path
) -> None:
    document = tmp_path / "config"
    handles: dict[oracle.Family, list[int]] = {}
    with kept_backends():
        document.write_bytes(DOCUMENTS[0][0])
        assert apply(variant, document, *IPV6) == 0
        for family in oracle.FAMILIES:
            saved = in_ns.run([program(variant, family, "save"), "-t", "nat"]).stdout
            kept = saved.replace("-A IP-MASQ", "[7:700] -A IP-MASQ")
            in_ns.run([program(variant, family, "restore"), "--counters"], stdin=kept)
            handles[family] = oracle.rule_handles(family, "IP-MASQ")
        document.write_bytes(DOCUMENTS[1][0])
        assert apply(variant, document, *IPV6) == 0
    for family, expected in zip(oracle.FAMILIES, DOCUMENTS[1][1:], strict=True):
        rules = oracle.read_chain(variant, family, "IP-MASQ")
        assert rules == expected
        old = unset(variant, family) or (7,)
        assert [rule.packets for rule in rules] == [*old * 2, 0, *old]
        now, then = oracle.rule_handles(family, "IP-MASQ"), handles[family]
        assert now[:2] + now[3:] == then[:2] + then[-1:]
