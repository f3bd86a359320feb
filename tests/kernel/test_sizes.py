"""Policies past every limit of old: each works whole, or is refused whole with the reason."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from tests import oracle
from tests.kernel.agent import Verb
from tests.kernel.running import Running
from tests.netns import Namespace
from tests.waiting import wait_until

pytestmark = pytest.mark.kernel
PLAIN = ("iptables-nft", "iptables-legacy")
SETS = ("ipset", "ipset-legacy", "nftables", "auto")


def asked_for(backend: str, namespace: Namespace) -> tuple[str, str]:
    """Return the flags for a backend. A set under the legacy iptables takes kubelet's mark."""
    if backend != "ipset-legacy":
        return "--backend", backend
    namespace.run(["iptables-legacy", "-t", "mangle", "-N", "KUBE-IPTABLES-HINT"])
    return "--backend", "ipset"


def cidr(number: int, family: oracle.Family = "ipv4") -> str:
    """Return one of 131,072 prefixes with gaps between them."""
    if family == "ipv6":
        return f"2a00:{1 + (number >> 15):x}:{(number & 0x7FFF) * 2 + 1:x}::/48"
    return f"{11 + (number >> 15)}.{number >> 7 & 255}.{(number & 127) * 2}.0/24"


def write(path: Path, count: int, more: str = "", family: oracle.Family = "ipv4") -> Path:
    cidrs = "".join(f"- {cidr(number, family)}\n" for number in range(count))
    alone = "masqLinkLocal: true\nmasqLinkLocalIPv6: true\n"
    path.write_text(f"{alone}{more}nonMasqueradeCIDRs:\n{cidrs}")
    return path


def held(namespace: Namespace, backend: str, family: oracle.Family = "ipv4") -> set[str]:
    """Return the prefixes that the kernel keeps, as a reader that is not ours tells them."""
    if backend == "nftables":
        table = ["table", oracle.NFT_FAMILY[family], "ip-masq"]
        listed = json.loads(namespace.run(["nft", "-j", "list", *table]).stdout)
        found = set()
        for item in listed["nftables"]:
            for element in item.get("set", {}).get("elem", ()):
                prefix = element["prefix"]
                found.add(f"{prefix['addr']}/{prefix['len']}")
        return found
    tables = "iptables" if family == "ipv4" else "ip6tables"
    variant = "legacy" if backend.endswith("legacy") else "nft"
    rules = namespace.run([f"{tables}-{variant}-save", "-t", "nat"]).stdout
    if backend in PLAIN:
        return {line.split()[3] for line in rules.splitlines() if line.startswith("-A IP-MASQ -d")}
    (name,) = set(re.findall(r"--match-set (\S+)", rules))
    lines = namespace.run(["ipset", "save", name]).stdout.splitlines()[1:]
    assert not any("nomatch" in line for line in lines)
    return {line.split()[2] for line in lines}


@pytest.mark.parametrize("count", [65, 100_001])
@pytest.mark.parametrize("backend", PLAIN)
def test_plain_iptables_refuses_more_than_its_limit_and_changes_nothing(
    backend: str, count: int, verb: Verb, in_ns: Namespace, tmp_path: Path
) -> None:
    refused = write(tmp_path / "config.yaml", count)
    untouched = oracle.snapshot(counters=True, handles=True)
    good = write(tmp_path / "good.yaml", 64)
    for before in ("nothing", "the last good document"):
        if before != "nothing":
            assert verb("apply", "--config", str(good), "--backend", backend)[0] == 0
            untouched = oracle.snapshot(counters=True, handles=True)
        for name in ("apply", "diff"):
            status, out, err = verb(name, "--config", str(refused), "--backend", backend)
            assert (status, out) == (2, "")
            assert f"has {count} entries, cidrLimit allows 64" in err
            assert "--backend ipset or nftables" in err
        assert oracle.snapshot(counters=True, handles=True) == untouched
    assert held(in_ns, backend) == {cidr(number) for number in range(64)}
    listed = json.loads(verb("list", "--backend", backend, "-o", "json")[1])
    assert len(listed["nonMasqueradeCIDRs"]) == 64


@pytest.mark.parametrize(
    ("backend", "count", "family"),
    [
        ("auto", 65, "ipv4"),
        ("auto", 16_385, "ipv4"),
        ("ipset-legacy", 16_385, "ipv4"),
        *((name, n, "ipv4") for name in ("ipset", "nftables") for n in (65, 100_001)),
        *((name, 16_385, "ipv6") for name in ("ipset", "nftables")),
    ],
)
def test_sets_take_all_of_them(
    backend: str,
    count: int,
    family: oracle.Family,
    verb: Verb,
    in_ns: Namespace,
    tmp_path: Path,
) -> None:
    document = write(tmp_path / "config.yaml", count, family=family)
    which = asked_for(backend, in_ns)
    chosen = ("--config", str(document), *which, "--enable-ipv6")
    assert verb("diff", *chosen)[0] == 1
    status, _, err = verb("apply", *chosen)
    assert (status, err) == (0, "")
    assert held(in_ns, backend, family) == {cidr(number, family) for number in range(count)}
    assert verb("diff", *chosen)[0] == 0
    last = cidr(count - 1, family).partition("/")[0]
    address = last + "9" if family == "ipv6" else last.removesuffix("0") + "9"
    answer: Any = json.loads(verb("explain", address, *chosen, "-o", "json")[1])
    assert (answer["verdict"], answer["line"]) == ("non-masquerade", count + 3)
    listed = json.loads(verb("list", *which, "-o", "json")[1])
    assert set(listed["nonMasqueradeCIDRs"]) == {cidr(n, family) for n in range(count)}
    assert verb("cleanup")[0] == 0


@pytest.mark.parametrize("backend", [*PLAIN, *SETS])
def test_a_limit_that_the_document_sets_holds_everywhere(
    backend: str, verb: Verb, in_ns: Namespace, tmp_path: Path
) -> None:
    document = write(tmp_path / "config.yaml", 65, "cidrLimit: 64\n")
    which = asked_for(backend, in_ns)
    untouched = oracle.snapshot(counters=True, handles=True)
    status, _, err = verb("apply", "--config", str(document), *which)
    assert status == 2
    assert "has 65 entries, cidrLimit allows 64; raise cidrLimit" in err
    assert oracle.snapshot(counters=True, handles=True) == untouched
    raised = write(tmp_path / "raised.yaml", 65, "cidrLimit: 65\n")
    assert verb("apply", "--config", str(raised), *which)[0] == 0


@pytest.mark.parametrize("backend", PLAIN)
def test_plain_iptables_takes_thousands_where_the_document_allows_them(
    backend: str, verb: Verb, in_ns: Namespace, tmp_path: Path
) -> None:
    document = write(tmp_path / "config.yaml", 5_000, "cidrLimit: 5000\n")
    chosen = ("--config", str(document), "--backend", backend)
    status, _, err = verb("diff", *chosen)
    assert status == 1
    assert "has 5001 rules" in err
    assert "--backend ipset or nftables" in err
    assert verb("apply", *chosen)[0] == 0
    assert held(in_ns, backend) == {cidr(number) for number in range(5_000)}


@pytest.mark.parametrize("backend", [*PLAIN, *SETS])
def test_an_agent_keeps_and_heals_the_last_good_policy_after_a_document_too_large(
    backend: str, in_ns: Namespace, tmp_path: Path
) -> None:
    plain = backend in PLAIN
    document = write(tmp_path / "config", 64)
    which = asked_for(backend, in_ns)
    agent = Running(tmp_path / "log", "run", *which, "--config", str(document))
    good = {cidr(number) for number in range(64)}
    try:
        agent.wait_ready()
        # Where nothing limits it, the document must do it itself.
        more = "" if plain else "cidrLimit: 16384\n"
        refused = write(tmp_path / "refused", 16_385, more)
        refused.rename(document)
        wait_until(lambda: not agent.status()["config"]["accepted"], "the refusal")
        code, why = agent.get("/readyz")
        assert code == 503
        assert f"has 16385 entries, cidrLimit allows {64 if plain else 16384}" in why
        kept_by = "iptables-nft" if backend == "auto" else backend
        assert held(in_ns, kept_by) == good
        heals = agent.status()["heals"]
        spoil(in_ns, kept_by)
        agent.process.send_signal(signal.SIGHUP)
        wait_until(lambda: agent.status()["heals"] > heals, "the healing")
        assert held(in_ns, kept_by) == good
        assert not agent.status()["config"]["accepted"]
    finally:
        agent.stop()


def spoil(namespace: Namespace, backend: str) -> None:
    """Take one of the first prefixes away, with a program that is not ours."""
    gone = cidr(3)
    if backend in PLAIN:
        rule = ["-d", gone, "-j", "RETURN"]
        namespace.run([backend, "-t", "nat", "-D", "IP-MASQ", *rule])
    elif backend == "nftables":
        element = ["ip", "ip-masq", keeping(namespace), "{", gone, "}"]
        namespace.run(["nft", "delete", "element", *element])
    else:
        names = namespace.run(["ipset", "list", "-n"]).stdout.split()
        namespace.run(["ipset", "del", names[0], gone])


def keeping(namespace: Namespace) -> str:
    """Return the name of the set of nftables that holds what is kept."""
    listed = json.loads(namespace.run(["nft", "-j", "list", "sets", "ip"]).stdout)["nftables"]
    names = [item["set"]["name"] for item in listed if item.get("set", {}).get("elem")]
    assert len(names) == 1
    return str(names[0])
