"""Every verb on every data plane, moves from each to each, and who is chosen when."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest

from ipmasq_agent.planes import registry
from tests.kernel.agent import Verb
from tests.kernel.pins import PINS
from tests.netns import Namespace

pytestmark = pytest.mark.kernel
BACKENDS = tuple(dict.fromkeys(row.backend for row in registry.PLANES))
DOCUMENT = """\
nonMasqueradeCIDRs: [10.0.0.0/8, 'fd00:1::/64']
masqueradeCIDRs: [10.66.0.0/16]
nativeRoutingCIDRs: [172.30.0.0/16]
podCIDRs: [172.20.0.0/16, 'fd00:172:20::/48']
egressInterfaces: [eth*]
snatAddress: {ipv4: 192.0.2.7}
"""


@pytest.fixture
def verb(in_ns: Namespace, verb: Verb) -> Verb:
    """Run a verb where there is a device to guard."""
    in_ns.run(["ip", "link", "add", "eth1", "type", "veth", "peer", "name", "far"])
    return verb


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(DOCUMENT)
    return path


def flags(backend: str, document: Path) -> tuple[str, ...]:
    return ("--backend", backend, "--config", str(document), "--enable-ipv6", "-o", "json")


def data(answer: tuple[int, str, str]) -> Any:
    assert answer[1], answer
    return json.loads(answer[1])


def traces(namespace: Namespace) -> str:
    """Return every rule, set and table of ours that any reader finds."""
    found = []
    for reader in (
        *(["iptables-nft-save"], ["ip6tables-nft-save"]),
        *(["iptables-legacy-save"], ["ip6tables-legacy-save"]),
        *(["ipset", "save"], ["nft", "list", "ruleset"]),
    ):
        shown = namespace.run(reader).stdout
        found += [line for line in shown.splitlines() if "ip-masq" in line.lower()]
    if Path(os.environ[PINS]).exists():
        found.append("pins of eBPF maps")
    shown = namespace.run(["bpftool", "net", "list"]).stdout
    found += [line for line in shown.splitlines() if "outward" in line or "inward" in line]
    return "\n".join(found)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_verb_speaks_of_the_data_plane(
    backend: str, verb: Verb, document: Path, in_ns: Namespace, tmp_path: Path
) -> None:
    chosen = flags(backend, document)
    promised = verb("diff", *chosen)
    assert promised[0] == 1
    assert data(promised)["backend"] == backend
    done = verb("apply", *chosen)
    assert done[0] == 0
    for family, lines in data(promised)["families"].items():
        assert lines["rules"]["add"] == data(done)["families"][family]["added"]
    assert verb("diff", *chosen)[0] == 0
    status = verb("status", *chosen)
    assert (status[0], data(status)["mode"]) == (0, backend)
    listed = data(verb("list", "--backend", backend, "-o", "json"))["nonMasqueradeCIDRs"]
    assert {"172.30.0.0/16", "fd00:1::/64", "169.254.0.0/16"} <= set(listed)
    assert verb("compare", f"kernel:{backend}", str(document), "--enable-ipv6")[0] == 0
    # Not as the document has it any more: one prefix less, on either side.
    other = tmp_path / "other.yaml"
    other.write_text(DOCUMENT.replace("10.0.0.0/8", "10.0.0.0/9"))
    changed = data(verb("diff", *flags(backend, other)))["families"]["ipv4"]["decisions"]
    assert {"cidr": "10.128.0.0/9", "from": "non-masquerade", "to": "masquerade"} in changed
    assert verb("compare", f"kernel:{backend}", str(other), "--enable-ipv6")[0] == 1
    assert verb("cleanup")[0] == 0
    assert traces(in_ns) == ""


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("destination", "source", "verdict", "entry"),
    [
        ("10.1.1.1", "172.20.0.5", "non-masquerade", "10.0.0.0/8"),
        ("10.66.1.1", "172.20.0.5", "masquerade", "10.66.0.0/16"),
        ("10.66.1.1", "172.21.0.5", "non-masquerade", "only what comes from 172.20.0.0/16"),
        ("fd00:1::5", "fd00:172:20::5", "non-masquerade", "fd00:1::/64"),
        ("fd00:2::5", "fd00:172:20::5", "masquerade", "every other destination"),
    ],
)
def test_an_explanation_is_the_same_whatever_decides(
    backend: str,
    destination: str,
    source: str,
    verdict: str,
    entry: str,
    verb: Verb,
    document: Path,
) -> None:
    assert verb("apply", *flags(backend, document))[0] == 0
    answer = data(verb("explain", destination, "--src", source, *flags(backend, document)))
    assert answer["verdict"] == verdict
    assert entry in answer["reason"]
    if backend == "bpf" and " " not in entry:
        rule = f"{entry} (the trie of decisions)"
        assert answer["rule"] == rule
        text = verb("explain", destination, "--src", source, *flags(backend, document)[:-2])[1]
        assert f"decided by    {rule}" in text
    if verdict == "masquerade" and ":" not in destination:
        assert answer["source"] == "192.0.2.7"


@pytest.mark.parametrize(("here", "there"), list(itertools.permutations(BACKENDS, 2)))
def test_a_move_leaves_nothing_behind_and_is_announced(
    here: str, there: str, verb: Verb, document: Path, in_ns: Namespace
) -> None:
    verb("apply", *flags(here, document))
    before = traces(in_ns)
    announced = data(verb("diff", *flags(there, document)))
    assert announced["changed"] is True
    assert verb("apply", *flags(there, document))[0] == 0
    after = traces(in_ns)
    assert after != before
    assert verb("diff", *flags(there, document))[0] == 0
    # What is left is as if the other had never been there.
    assert verb("cleanup", "--backend", there)[0] == 0
    assert traces(in_ns) == ""


def test_auto_takes_a_set_once_the_policy_is_large(
    verb: Verb, tmp_path: Path, in_ns: Namespace
) -> None:
    document = tmp_path / "config.yaml"

    def applied(count: int, more: str = "") -> str:
        cidrs = "".join(f"- 10.{n >> 8}.{n & 255}.0/24\n" for n in range(count))
        document.write_text(f"{more}nonMasqueradeCIDRs:\n{cidrs}")
        answer = verb("apply", "--config", str(document), "-o", "json")
        assert answer[0] == 0
        return str(data(answer)["backend"])

    assert applied(64) == "iptables-nft"
    assert applied(65) == "ipset"
    assert applied(250, "cidrLimit: 1000\n") == "iptables-nft"
    assert in_ns.run(["ipset", "list", "-n"]).stdout == ""
    assert applied(257, "cidrLimit: 1000\n") == "ipset"


def test_plain_iptables_past_its_rules_names_the_better_backend(verb: Verb, tmp_path: Path) -> None:
    document = tmp_path / "config.yaml"
    cidrs = ", ".join(f"10.0.{n}.0/24" for n in range(256))
    document.write_text(f"nonMasqueradeCIDRs: [{cidrs}]\ncidrLimit: 300\n")
    _, _, err = verb("diff", "--config", str(document), "--backend", "iptables-nft")
    assert "has 258 rules" in err
    assert "--backend ipset or nftables" in err
    status = data(verb("status", "--config", str(document), "--backend", "iptables", "-o", "json"))
    assert len(status["advice"]) == 1
