"""Upstream's rules in upstream's order, for every document of the table, read by the oracle."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import oracle
from tests.kernel.agent import apply, kept_backends
from tests.kernel.upstream_table import (
    DEFAULTS,
    DEFAULTS6,
    FLAGS,
    IPV6,
    LINK_LOCAL,
    MASQ,
    REFUSED,
    RFC1918,
    TABLE,
    Row,
    cidrs,
    stay,
)
from tests.netns import Namespace

LAST_GOOD = cidrs("192.0.2.0/24")
OUTBOUND = ("-m", "addrtype", "!", "--dst-type", "LOCAL")


@dataclass(frozen=True)
class Node:
    """A namespace in which one backend is at work, row after row."""

    variant: oracle.Variant
    ns: Namespace


@pytest.fixture(scope="module", params=oracle.VARIANTS)
def node(request: pytest.FixtureRequest) -> Iterator[Node]:
    with Namespace(request.param) as ns, kept_backends():
        yield Node(request.param, ns)


@pytest.fixture
def inside(node: Node) -> Iterator[Node]:
    with node.ns.entered():
        yield node


def written(path: Path, document: bytes | None) -> Path:
    if document is not None:
        path.write_bytes(document)
    return path


def everything() -> dict[str, object]:
    return oracle.snapshot(counters=True, handles=True)


@pytest.mark.parametrize(
    "row", [row for row in TABLE if row.ipv4 != REFUSED], ids=lambda row: row.name
)
def test_chain_holds_upstreams_rules_in_upstreams_order(
    inside: Node, row: Row, tmp_path: Path
) -> None:
    # The namespace still holds the rules of the row before: each row is an edit, too.
    unmanaged = oracle.read_table(inside.variant, "ipv6")
    assert apply(inside.variant, written(tmp_path / "config", row.document), *row.flags) == 0
    expected = {"ipv4": row.ipv4, "ipv6": row.ipv6}
    for family in oracle.FAMILIES:
        table = oracle.read_table(inside.variant, family)
        if expected[family] is None:
            assert table == unmanaged
        else:
            assert table[row.chain].rules == expected[family]
            jumps = [rule for rule in table["POSTROUTING"].rules if rule.target == row.chain]
            assert jumps == [oracle.Rule(None, row.chain, other=OUTBOUND)]


@pytest.mark.parametrize(
    "row", [row for row in TABLE if row.ipv4 == REFUSED], ids=lambda row: row.name
)
def test_refused_document_says_why_and_leaves_the_rules_of_the_last_good_one(
    inside: Node, row: Row, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert apply(inside.variant, written(tmp_path / "good", LAST_GOOD), *row.flags) == 0
    before = everything()
    capsys.readouterr()
    assert apply(inside.variant, written(tmp_path / "config", row.document), *row.flags) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert everything() == before


def test_the_other_backend_is_never_touched(node: Node) -> None:
    # Runs last for each backend: after every row above.
    for family in oracle.FAMILIES:
        if node.variant == "nft":
            assert oracle.legacy_tables(family, node.ns.name) == set()
        else:
            assert oracle.nft_tables(family, node.ns.name) == set()


@pytest.mark.parametrize(
    "row",
    [
        Row("whole address spaces", cidrs("::/0", "0.0.0.0/0", "fd00::/8"), (), (), IPV6),
        *(row for row in FLAGS if row.name.startswith(("two ranges", "source ports not"))),
    ],
    ids=lambda row: row.name,
)
def test_second_pass_over_a_document_writes_nothing(inside: Node, row: Row, tmp_path: Path) -> None:
    document = written(tmp_path / "config", row.document)
    assert apply(inside.variant, document, *row.flags) == 0
    before = everything()
    assert apply(inside.variant, document, *row.flags) == 0
    assert everything() == before


@pytest.mark.parametrize("variant", oracle.VARIANTS)
def test_the_program_itself_does_what_its_main_function_does(
    ns: Namespace, variant: oracle.Variant, tmp_path: Path
) -> None:
    program = [sys.executable, "-m", "ipmasq_agent", "apply", "--backend", f"iptables-{variant}"]
    document = tmp_path / "config"
    document.touch()

    def run() -> subprocess.CompletedProcess[str]:
        return ns.run([*program, "--config", str(document), "--enable-ipv6"], check=False)

    assert run().returncode == 0
    assert oracle.read_chain(variant, "ipv4", "IP-MASQ", ns.name) == DEFAULTS
    assert oracle.read_chain(variant, "ipv6", "IP-MASQ", ns.name) == DEFAULTS6
    document.write_bytes(cidrs("10.0.0.1/8"))
    refused = run()
    assert refused.returncode == 2
    assert "10.0.0.1/8" in refused.stderr
    assert "10.0.0.0/8" in refused.stderr
    assert oracle.read_chain(variant, "ipv4", "IP-MASQ", ns.name) == DEFAULTS
    document.write_bytes(b"masqLinkLocal: true\nmasqLinkLocalIPv6: true\n")
    assert run().returncode == 0
    assert oracle.read_chain(variant, "ipv4", "IP-MASQ", ns.name) == (*RFC1918, MASQ)
    assert oracle.read_chain(variant, "ipv6", "IP-MASQ", ns.name) == (MASQ,)


@pytest.mark.parametrize("variant", oracle.VARIANTS)
def test_jump_is_appended_after_the_rules_of_others_unless_it_is_to_be_first(
    in_ns: Namespace, variant: oracle.Variant, tmp_path: Path
) -> None:
    wait = ["-w"] if variant == "legacy" else []
    for destination in ("198.51.100.1/32", "198.51.100.2/32"):
        rule = ["-A", "POSTROUTING", "-d", destination, "-j", "ACCEPT"]
        in_ns.run([f"iptables-{variant}", *wait, "-t", "nat", *rule])
    others = tuple(oracle.Rule(f"198.51.100.{n}/32", "ACCEPT") for n in (1, 2))
    jump = oracle.Rule(None, "IP-MASQ", other=OUTBOUND)
    document = written(tmp_path / "config", LAST_GOOD)
    with kept_backends():
        assert apply(variant, document) == 0
        assert oracle.read_chain(variant, "ipv4", "POSTROUTING") == (*others, jump)
        assert apply(variant, document, "--jump-position=first") == 0
        assert oracle.read_chain(variant, "ipv4", "POSTROUTING") == (jump, *others)
    assert oracle.read_chain(variant, "ipv4", "IP-MASQ") == (
        *LINK_LOCAL,
        *stay("192.0.2.0/24"),
        MASQ,
    )
