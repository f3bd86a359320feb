"""Policies past every limit of old: each works whole, or is refused whole with the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import oracle
from tests.kernel.agent import status_of
from tests.netns import Namespace

pytestmark = pytest.mark.kernel
PLAIN = ("iptables-nft", "iptables-legacy")
SETS = ("ipset", "nftables", "auto")
Verb = Callable[..., tuple[int, str, str]]


@pytest.fixture
def verb(in_ns: Namespace, capsys: pytest.CaptureFixture[str]) -> Verb:
    def run(*words: str) -> tuple[int, str, str]:
        status = status_of(*words)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def cidr(number: int) -> str:
    """Return one of 131,072 prefixes with gaps between them."""
    return f"{11 + (number >> 15)}.{number >> 7 & 255}.{(number & 127) * 2}.0/24"


def write(path: Path, count: int, more: str = "") -> Path:
    cidrs = "".join(f"- {cidr(number)}\n" for number in range(count))
    path.write_text(f"masqLinkLocal: true\n{more}nonMasqueradeCIDRs:\n{cidrs}")
    return path


def held(namespace: Namespace, backend: str) -> set[str]:
    """Return the prefixes that the kernel keeps, as a reader that is not ours tells them."""
    if backend == "nftables":
        listed = json.loads(namespace.run(["nft", "-j", "list", "table", "ip", "ip-masq"]).stdout)
        found = set()
        for item in listed["nftables"]:
            for element in item.get("set", {}).get("elem", ()):
                prefix = element["prefix"]
                found.add(f"{prefix['addr']}/{prefix['len']}")
        return found
    saver = "iptables-legacy-save" if backend == "iptables-legacy" else "iptables-nft-save"
    if backend in PLAIN:
        rules = namespace.run([saver, "-t", "nat"]).stdout.splitlines()
        return {line.split()[3] for line in rules if line.startswith("-A IP-MASQ -d")}
    lines = namespace.run(["ipset", "save", "IP-MASQ-4"]).stdout.splitlines()[1:]
    assert not any("nomatch" in line for line in lines)
    return {line.split()[2] for line in lines}


@pytest.mark.parametrize("count", [65, 16_385, 100_001])
@pytest.mark.parametrize("backend", PLAIN)
def test_plain_iptables_refuses_more_than_its_limit_and_changes_nothing(
    backend: str, count: int, verb: Verb, tmp_path: Path
) -> None:
    good = write(tmp_path / "good.yaml", 64)
    assert verb("apply", "--config", str(good), "--backend", backend)[0] == 0
    before = oracle.snapshot()
    document = write(tmp_path / "config.yaml", count)
    for name in ("apply", "diff"):
        status, _, err = verb(name, "--config", str(document), "--backend", backend)
        assert status == 2
        assert f"has {count} entries, cidrLimit allows 64" in err
        assert "--backend ipset or nftables" in err
    assert oracle.snapshot() == before


@pytest.mark.parametrize(
    ("backend", "count"),
    [("auto", 65), *((name, n) for name in SETS[:2] for n in (65, 16_385, 100_001))],
)
def test_sets_take_all_of_them(
    backend: str, count: int, verb: Verb, in_ns: Namespace, tmp_path: Path
) -> None:
    document = write(tmp_path / "config.yaml", count)
    chosen = ("--config", str(document), "--backend", backend)
    status, _, err = verb("apply", *chosen)
    assert (status, err) == (0, "")
    assert held(in_ns, backend) == {cidr(number) for number in range(count)}
    assert verb("diff", *chosen)[0] == 0
    last = cidr(count - 1)
    answer: Any = json.loads(verb("explain", last.replace(".0/24", ".9"), *chosen, "-o", "json")[1])
    assert (answer["verdict"], answer["line"]) == ("non-masquerade", count + 2)
    listed = json.loads(verb("list", "--backend", backend, "-o", "json")[1])
    assert len(listed["nonMasqueradeCIDRs"]) == count
    assert verb("cleanup")[0] == 0


@pytest.mark.parametrize("backend", [*PLAIN, *SETS])
def test_a_limit_that_the_document_sets_holds_everywhere(
    backend: str, verb: Verb, tmp_path: Path
) -> None:
    document = write(tmp_path / "config.yaml", 65, "cidrLimit: 64\n")
    status, _, err = verb("apply", "--config", str(document), "--backend", backend)
    assert status == 2
    assert "has 65 entries, cidrLimit allows 64; raise cidrLimit" in err
    raised = write(tmp_path / "raised.yaml", 65, "cidrLimit: 65\n")
    assert verb("apply", "--config", str(raised), "--backend", backend)[0] == 0


@pytest.mark.parametrize("backend", PLAIN)
def test_plain_iptables_takes_thousands_where_the_document_allows_them(
    backend: str, verb: Verb, in_ns: Namespace, tmp_path: Path
) -> None:
    document = write(tmp_path / "config.yaml", 5_000, "cidrLimit: 5000\n")
    status, _, _ = verb("apply", "--config", str(document), "--backend", backend)
    assert status == 0
    assert len(held(in_ns, backend)) == 5_000
