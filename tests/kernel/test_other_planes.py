"""Verbs that are asked about one data plane while another one is in force."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.agent import Verb
from tests.netns import Namespace

pytestmark = pytest.mark.usefixtures("node")

MOVES = [
    ("iptables-nft", "nftables"),
    ("nftables", "bpf"),
    ("bpf", "iptables-nft"),
    ("bpf", "ipset"),
    ("iptables-legacy", "bpf"),
]


@pytest.fixture
def node(in_ns: Namespace) -> None:
    in_ns.lead_out()


def document(tmp_path: Path, *cidrs: str) -> str:
    path = tmp_path / "document"
    path.write_text(f"nonMasqueradeCIDRs: [{', '.join(map(repr, cidrs))}]\n")
    return f"--config={path}"


def decisions(verb: Verb, *words: str) -> dict[str, Any]:
    status, out, err = verb("diff", *words, "-o", "json")
    assert status == 1, err
    answer = json.loads(out)
    assert answer["leaves"]
    return {name: family["decisions"] for name, family in answer["families"].items()}


@pytest.mark.parametrize(("before", "after"), MOVES)
def test_a_move_changes_those_decisions_that_its_document_changes(
    verb: Verb, tmp_path: Path, before: str, after: str
) -> None:
    held = document(tmp_path, "172.20.0.0/16", "10.1.1.1/32", "fd00:20::/64")
    assert verb("apply", held, f"--backend={before}", "--enable-ipv6")[0] == 0
    assert decisions(verb, held, f"--backend={after}", "--enable-ipv6") == {"ipv4": [], "ipv6": []}
    text = verb("diff", held, f"--backend={after}", "--enable-ipv6")[1]
    assert "no decision changes (ipv4)" in text
    new = document(tmp_path, "172.20.0.0/16", "10.1.1.2/32", "fd00:21::/64")
    keep, take = "non-masquerade", "masquerade"
    assert decisions(verb, new, f"--backend={after}", "--enable-ipv6") == {
        "ipv4": [
            {"cidr": "10.1.1.1/32", "from": keep, "to": take},
            {"cidr": "10.1.1.2/32", "from": take, "to": keep},
        ],
        "ipv6": [
            {"cidr": "fd00:20::/64", "from": keep, "to": take},
            {"cidr": "fd00:21::/64", "from": take, "to": keep},
        ],
    }
    # What comes true, and is told.
    promised = json.loads(verb("diff", new, f"--backend={after}", "--enable-ipv6", "-o", "json")[1])
    status, out, _ = verb("apply", new, f"--backend={after}", "--enable-ipv6", "-o", "json")
    assert (status, json.loads(out)["leaves"]) == (0, promised["leaves"])
    kept = {"source": None, "verdict": keep}
    found = json.loads(verb("explain", "10.1.1.2", f"--backend={after}", new, "-o", "json")[1])
    assert kept.items() <= found.items()


def test_a_family_that_is_no_longer_managed_is_masqueraded_no_more(
    verb: Verb, tmp_path: Path
) -> None:
    held = document(tmp_path, "fd00:20::/64")
    assert verb("apply", held, "--backend=nftables", "--enable-ipv6")[0] == 0
    four = document(tmp_path)
    found = decisions(verb, four, "--backend=iptables-nft")["ipv6"]
    assert {change["to"] for change in found} == {"non-masquerade"}
    assert "fd00:20::/64" not in [change["cidr"] for change in found]


@pytest.mark.parametrize(("held", "asked"), MOVES)
def test_list_names_the_data_plane_that_is_in_force_where_another_one_is_asked(
    verb: Verb, tmp_path: Path, held: str, asked: str
) -> None:
    words = document(tmp_path, "172.20.0.0/16")
    verb("apply", words, f"--backend={held}")
    _, out, err = verb("list", f"--backend={asked}", "-o", "json")
    answer = json.loads(out)
    assert (answer["inForce"], answer["inForceElsewhere"]) == (False, [held])
    assert "nothing is masqueraded" not in err
    assert f"`ipmasq-agent list --backend {held}`" in err
    answer = json.loads(verb("list", f"--backend={held}", "-o", "json")[1])
    assert (answer["inForce"], answer["inForceElsewhere"]) == (True, [])
    # Nobody named one: the one in force is meant.
    found = json.loads(verb("list", "-o", "json")[1])
    assert found == answer
    explained = json.loads(verb("explain", "8.8.8.8", f"--backend={asked}", words, "-o", "json")[1])
    assert (explained["verdict"], explained["overridden"]) == ("masquerade", False)


def test_list_tells_no_rules_from_rules_that_masquerade_everything_and_nothing(
    verb: Verb, tmp_path: Path
) -> None:
    def listed() -> tuple[list[str], bool, str]:
        _, out, err = verb("list", "-o", "json")
        answer = json.loads(out)
        return answer["nonMasqueradeCIDRs"], answer["inForce"], err

    assert listed()[:2] == ([], False)
    path = tmp_path / "document"
    path.write_text("nonMasqueradeCIDRs: []\nmasqLinkLocal: true\n")
    verb("apply", f"--config={path}")
    assert listed() == ([], True, "")
    subprocess.run(["iptables-nft", "-t", "nat", "-F", "POSTROUTING"], check=True)
    assert listed()[1] is False
    verb("apply", document(tmp_path, "0.0.0.0/0"))
    cidrs, in_force, said = listed()
    assert (cidrs, in_force) == (["169.254.0.0/16", "0.0.0.0/0"], True)
    assert "nothing is masqueraded by us: iptables-nft keeps every destination" in said
