"""The oracle and the namespaces themselves, proven on rules made by hand."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import oracle
from tests.netns import Namespace, sweep

ORACLE = Path(oracle.__file__)
PROGRAM = {"ipv4": "iptables", "ipv6": "ip6tables"}
JUMP = ("-m", "addrtype", "!", "--dst-type", "LOCAL")


def iptables(ns: Namespace, variant: oracle.Variant, family: oracle.Family, *words: str) -> None:
    wait = ["-w"] if variant == "legacy" else []
    ns.run([f"{PROGRAM[family]}-{variant}", *wait, "-t", "nat", *words])


@pytest.fixture(params=[(v, f) for v in oracle.VARIANTS for f in oracle.FAMILIES], ids="-".join)
def where(request: pytest.FixtureRequest) -> tuple[oracle.Variant, oracle.Family]:
    variant, family = request.param
    return variant, family


def test_oracle_imports_nothing_but_the_standard_library() -> None:
    imported = set()
    for node in ast.walk(ast.parse(ORACLE.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            assert node.module is not None
            imported.add(node.module.split(".")[0])
        elif isinstance(node, ast.Name):
            assert node.id not in ("__import__", "exec", "eval")
    assert imported <= set(sys.stdlib_module_names) - {"importlib", "runpy"}


def test_oracle_works_where_no_package_of_ours_can_be_found(ns: Namespace, tmp_path: Path) -> None:
    # -I -S: neither this checkout, nor site-packages, nor PYTHONPATH.
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(ORACLE), ns.name],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert '"nft nat ipv4": []' in done.stdout


def test_a_fresh_namespace_holds_nothing_and_looking_makes_nothing(ns: Namespace) -> None:
    first = oracle.snapshot(ns.name, counters=True)
    assert not any(first.values())
    assert oracle.snapshot(ns.name, counters=True) == first


def test_rules_are_read_in_order_with_all_that_they_match(
    ns: Namespace, where: tuple[oracle.Variant, oracle.Family]
) -> None:
    variant, family = where
    prefix = "10.0.0.0/8" if family == "ipv4" else "fd00::/8"
    comment = 'it\'s "local" \\ traffic'
    share = ["-m", "statistic", "--mode", "random", "--probability", "0.469292562840114"]
    ports = ["--to-ports", "1024-29999", "--random-fully"]
    for words in (
        ["-N", "MASQ"],
        ["-A", "MASQ", "-d", prefix, "-m", "comment", "--comment", comment, "-j", "RETURN"],
        ["-A", "MASQ", "!", "-d", prefix, "-j", "RETURN"],
        ["-A", "MASQ", "-p", "tcp", *share, "-j", "MASQUERADE", *ports],
        ["-A", "MASQ", "-p", "udp", "-j", "MASQUERADE", "--to-ports", "42-42"],
        ["-A", "MASQ", "-j", "MASQUERADE"],
        ["-A", "POSTROUTING", *JUMP, "-j", "MASQ"],
    ):
        iptables(ns, variant, family, *words)
    table = oracle.read_table(variant, family, ns.name)
    assert table["MASQ"].rules == (
        oracle.Rule(prefix, "RETURN"),
        oracle.Rule(target="RETURN", other=("!", "-d", prefix)),
        oracle.Rule(
            None, "MASQUERADE", "tcp", "1024-29999", probability=0.469292563, random_fully=True
        ),
        oracle.Rule(None, "MASQUERADE", "udp", "42"),
        oracle.Rule(None, "MASQUERADE"),
    )
    assert table["MASQ"].rules[0].comment == comment
    assert table["MASQ"].policy == "-"
    assert table["POSTROUTING"] == oracle.Chain("ACCEPT", (oracle.Rule(None, "MASQ", other=JUMP),))
    other: oracle.Variant = "legacy" if variant == "nft" else "nft"
    assert oracle.read_table(other, family, ns.name) == {}
    assert oracle.read_chain(variant, family, "NONE", ns.name) is None


def test_counters_count_and_are_left_out_of_a_comparison(
    ns: Namespace, where: tuple[oracle.Variant, oracle.Family]
) -> None:
    variant, family = where
    # Without a rule that needs it there is no conntrack here, and without that the nat
    # table sees no packet at all.
    new = ["-m", "conntrack", "--ctstate", "NEW"]
    iptables(ns, variant, family, "-A", "OUTPUT", "-p", "udp", *new, "-j", "ACCEPT")
    before = oracle.snapshot(ns.name)
    counted = oracle.snapshot(ns.name, counters=True)
    address = "127.0.0.1" if family == "ipv4" else "::1"
    # A closed UDP port of the namespace's own loopback: one packet, one count.
    ns.run(["bash", "-c", f"echo > /dev/udp/{address}/9"])
    (rule,) = oracle.read_table(variant, family, ns.name)["OUTPUT"].rules
    assert (rule.packets, rule.bytes > 0) == (1, True)
    assert oracle.snapshot(ns.name) == before
    assert oracle.snapshot(ns.name, counters=True) != counted


def test_one_more_rule_anywhere_shows_in_the_snapshot(
    ns: Namespace, where: tuple[oracle.Variant, oracle.Family]
) -> None:
    variant, family = where
    before = oracle.snapshot(ns.name)
    iptables(ns, variant, family, "-A", "POSTROUTING", "-j", "RETURN")
    assert oracle.snapshot(ns.name) != before
    assert oracle.legacy_tables(family, ns.name) == ({"nat"} if variant == "legacy" else set())


def test_native_nft_rules_are_seen_and_never_taken_for_an_empty_table(ns: Namespace) -> None:
    ns.run(["nft", "-f", "-"], stdin=NATIVE)
    (table,) = oracle.nft_objects("table", ns.name)
    (rule,) = oracle.nft_objects("rule", ns.name)
    assert (table["family"], table["name"]) == ("ip", "nat")
    assert {"masquerade": None} in rule["expr"]
    with pytest.raises(oracle.Unreadable, match="cannot show the nat table"):
        oracle.read_table("nft", "ipv4", ns.name)
    before = oracle.snapshot(ns.name)
    ns.run(["nft", "flush", "chain", "ip", "nat", "after"])
    assert oracle.snapshot(ns.name) != before


NATIVE = """
table ip nat {
    set quiet { type ipv4_addr; flags interval; elements = { 10.0.0.0/8 } }
    chain after { type nat hook postrouting priority 110; ip daddr != @quiet masquerade; }
}
"""


def test_a_rewritten_rule_is_told_from_an_untouched_one_by_its_handle(ns: Namespace) -> None:
    for _ in range(2):
        iptables(ns, "nft", "ipv4", "-A", "POSTROUTING", "-d", "192.0.2.0/24", "-j", "RETURN")
    first, second = oracle.rule_handles("ipv4", "POSTROUTING", ns.name)
    iptables(ns, "nft", "ipv4", "-D", "POSTROUTING", "2")
    iptables(ns, "nft", "ipv4", "-A", "POSTROUTING", "-d", "192.0.2.0/24", "-j", "RETURN")
    kept, new = oracle.rule_handles("ipv4", "POSTROUTING", ns.name)
    assert kept == first
    assert new != second
    assert oracle.rule_handles("ipv6", "POSTROUTING", ns.name) == []


def test_ipsets_are_read_whole(ns: Namespace) -> None:
    assert oracle.ipsets(ns.name) == {}
    ns.run(
        ["ipset", "restore"],
        stdin="create quiet hash:net\nadd quiet 10.0.0.0/8\nadd quiet 10.1.0.0/16 nomatch\n",
    )
    quiet = oracle.ipsets(ns.name)["quiet"]
    assert quiet.kind == "hash:net"
    assert quiet.options[:2] == ("family", "inet")
    assert quiet.members == ("10.0.0.0/8", "10.1.0.0/16 nomatch")


@pytest.mark.parametrize(
    ("cut", "complaint"),
    [("COMMIT\n", "before COMMIT"), ("-A", "not a rule")],
)
def test_a_garbled_answer_is_an_error(
    monkeypatch: pytest.MonkeyPatch, cut: str, complaint: str
) -> None:
    whole = "*nat\n:POSTROUTING ACCEPT [0:0]\n[0:0] -A POSTROUTING -j RETURN\nCOMMIT\n"
    garbled = whole.replace(cut, "")
    monkeypatch.setattr(oracle, "save_text", lambda *where: garbled)
    with pytest.raises(oracle.Unreadable, match=complaint):
        oracle.read_table("nft", "ipv4")


@pytest.mark.parametrize("family", oracle.FAMILIES)
@pytest.mark.parametrize("protocol", ["icmp", "udp"])
def test_capture_tells_the_source_that_the_receiver_saw(
    ns: Namespace, family: oracle.Family, protocol: str
) -> None:
    left, right = ("192.0.2.1", "192.0.2.2") if family == "ipv4" else ("fd00::1", "fd00::2")
    length = "24" if family == "ipv4" else "64"
    expression = {"icmp": {"ipv4": "icmp", "ipv6": "icmp6[0] == 128"}[family], "udp": "udp"}
    with Namespace("peer") as peer:
        ns.veth("eth0", peer, "eth0")
        ns.address("eth0", f"{left}/{length}")
        peer.address("eth0", f"{right}/{length}")
        # nodad spares the address the wait, not the link: it is up when both ends are.
        with oracle.Capture(peer.name, "eth0", expression[protocol]) as capture:
            if protocol == "icmp":
                ns.run(["ping", "-c", "1", "-W", "5", right])
            else:
                ns.run(["bash", "-c", f"echo > /dev/udp/{right}/9"])
            assert capture.wait(1) == [(left, right)]
            assert capture.sources() == [left]


def test_capture_of_silence_is_empty(ns: Namespace) -> None:
    with oracle.Capture(ns.name, "lo") as capture:
        assert capture.wait(1, timeout=0.05) == []


def test_capture_on_a_missing_device_is_an_error(ns: Namespace) -> None:
    with pytest.raises(oracle.Unreadable, match="nowhere0"), oracle.Capture(ns.name, "nowhere0"):
        raise AssertionError("it listens on a device that does not exist")


def test_entering_a_namespace_takes_this_process_its_children_and_proc_along(
    in_ns: Namespace,
) -> None:
    inside = os.stat(in_ns.path).st_ino
    assert os.stat("/proc/thread-self/ns/net").st_ino == inside
    child = subprocess.run(
        ["stat", "-Lc", "%i", "/proc/self/ns/net"], capture_output=True, text=True, check=True
    )
    assert int(child.stdout) == inside
    devices = Path("/proc/net/dev").read_text().splitlines()[2:]
    assert [line.split(":")[0].strip() for line in devices] == ["lo"]
    subprocess.run(["iptables-legacy", "-w", "-t", "nat", "-L"], capture_output=True, check=True)
    assert Path("/proc/net/ip_tables_names").read_text() == "nat\n"
    assert oracle.read_table("legacy", "ipv4") == oracle.read_table("legacy", "ipv4", in_ns.name)


def test_leaving_a_namespace_comes_home_even_after_an_error(ns: Namespace) -> None:
    home = os.stat("/proc/thread-self/ns/net").st_ino
    with pytest.raises(AssertionError), ns.entered():
        assert os.stat("/proc/thread-self/ns/net").st_ino == home
    assert os.stat("/proc/thread-self/ns/net").st_ino == home


def test_a_closed_namespace_leaves_neither_its_name_nor_its_processes() -> None:
    with Namespace("brief") as brief:
        child = brief.popen(["sleep", "600"])
        assert brief.path.exists()
    assert child.poll() is not None
    assert not brief.path.exists()


def test_namespaces_of_a_killed_run_are_swept_and_those_of_a_living_one_are_not(
    ns: Namespace,
) -> None:
    orphan = subprocess.run(
        [sys.executable, "-c", "from tests.netns import Namespace; print(Namespace().name)"],
        cwd=ORACLE.parent.parent,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert orphan in sweep()
    assert not (ns.path.parent / orphan).exists()
    assert ns.path.exists()
