"""``compare`` of the kernel's rules, of pinned maps, and of documents, in a namespace."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests import oracle
from tests.kernel import bpffs
from tests.kernel.agent import Verb, apply

NONE = ("--native-routing-cidr", "none")
CILIUM_DEFAULTS = ["10.0.0.0/8", "169.254.0.0/16"]


@pytest.fixture
def compare(verb: Verb) -> Verb:
    return partial(verb, "compare")


@pytest.fixture
def document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("doc").write_text("nonMasqueradeCIDRs:\n  - 10.0.0.0/8\n")
    return Path("doc")


@pytest.fixture
def maps() -> Iterator[Path]:
    """A bpf file system in the usual place, seen by nobody else."""
    with bpffs.private_mounts():
        yield bpffs.mount()


def cidrs(output: str) -> list[tuple[str, str, str]]:
    answer: dict[str, Any] = json.loads(output)
    return [(each["cidr"], each["left"], each["right"]) for each in answer["differences"]]


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_a_kernel_in_step_with_its_document_decides_alike(
    compare: Verb, document: Path, variant: oracle.Variant, capsys: pytest.CaptureFixture[str]
) -> None:
    apply(variant, document, "--enable-ipv6")
    capsys.readouterr()
    status, out, err = compare("doc", f"kernel:iptables-{variant}", "--enable-ipv6")
    assert (status, out, err) == (
        0,
        f"doc and kernel:iptables-{variant} decide alike about ipv4 and ipv6\n",
        "",
    )


def test_a_kernel_that_somebody_changed_shows_the_rule_behind_it(
    compare: Verb, document: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    apply("nft", document)
    capsys.readouterr()
    insert = "iptables-nft -t nat -I IP-MASQ 1 -d 203.0.113.0/24 -j RETURN"
    subprocess.run(insert.split(), check=True)
    before = oracle.snapshot()
    status, out, _ = compare("doc", "kernel:iptables-nft")
    assert status == 1
    assert out.splitlines() == [
        "--- doc",
        "+++ kernel:iptables-nft",
        "@@ 203.0.113.0/24, for example 203.0.113.0 @@",
        "-masquerade: every other destination",
        "+non-masquerade: rule 1 of IP-MASQ: -d 203.0.113.0/24 -j RETURN",
    ]
    status, out, _ = compare("kernel", "doc", "-o", "json")
    assert status == 1
    assert cidrs(out) == [("203.0.113.0/24", "non-masquerade", "masquerade")]
    assert json.loads(out)["left"] == "kernel:iptables-nft"
    assert oracle.snapshot() == before


def test_two_backends_of_one_kernel_are_compared(
    compare: Verb, document: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    apply("nft", document)
    capsys.readouterr()
    status, out, err = compare("kernel:iptables-nft", "kernel:iptables-legacy")
    assert status == 1
    assert "+non-masquerade: kernel:iptables-legacy does not manage ipv4" in out
    assert "kernel:iptables-legacy: it masquerades nothing" in err


def test_the_kernel_is_what_the_backend_that_has_rules_says(
    compare: Verb, document: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "kernel:iptables-nft leaves its packets" in compare("doc", "kernel")[2]
    apply("legacy", document)
    capsys.readouterr()
    assert compare("doc", "kernel")[:2] == (
        0,
        "doc and kernel:iptables-legacy decide alike about ipv4\n",
    )
    assert compare("doc", "kernel:iptables")[0] == 1
    apply("nft", document)
    capsys.readouterr()
    assert "kernel:iptables-nft decide alike" in compare("doc", "kernel:auto")[1]


def test_a_rule_of_others_that_decides_for_some_packets_is_noted(
    compare: Verb, document: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    apply("nft", document)
    capsys.readouterr()
    others = "iptables-nft -t nat -I POSTROUTING -p udp -j MASQUERADE"
    subprocess.run(others.split(), check=True)
    status, _, err = compare("doc", "kernel")
    assert status == 0
    assert "note: kernel:iptables-nft: for some packets rule 1 of POSTROUTING: -p udp" in err


def test_rules_that_cannot_be_read_are_a_difference(
    compare: Verb, document: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    apply("nft", document)
    capsys.readouterr()
    pair = "ip daddr . ip saddr { 203.0.113.1 . 10.0.0.1 }"
    native = f"nft insert rule ip nat POSTROUTING {pair} masquerade"
    subprocess.run(native.split(), check=True)
    status, out, _ = compare("doc", "kernel", "-o", "json")
    assert status == 1
    assert {right for _, _, right in cidrs(out)} == {"unknown"}
    status, out, _ = compare("kernel", "kernel", "-o", "json")
    assert status == 1
    assert {(left, right) for _, left, right in cidrs(out)} == {("unknown", "unknown")}


def test_a_rule_for_some_sources_only_is_a_condition(
    compare: Verb, document: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    apply("nft", document)
    capsys.readouterr()
    jump = "-m addrtype ! --dst-type LOCAL -j IP-MASQ"
    subprocess.run(["iptables-nft", "-t", "nat", "-F", "POSTROUTING"], check=True)
    guarded = f"iptables-nft -t nat -A POSTROUTING -s 172.20.0.0/24 {jump}"
    subprocess.run(guarded.split(), check=True)
    status, out, _ = compare("doc", "kernel:iptables-nft")
    assert status == 1
    assert out.splitlines()[2:] == [
        "@@ ipv4, packets from @@",
        "-any source",
        "+172.20.0.0/24",
    ]


@pytest.mark.parametrize(
    ("version", "flags", "entries", "other"),
    [
        (4, (), CILIUM_DEFAULTS, "10.128.0.0/9"),
        (6, ("--enable-ipv6",), ["fd00::/8", "fe80::/10"], "fd80::/9"),
    ],
)
def test_the_pinned_maps_of_cilium_are_compared(
    compare: Verb,
    document: Path,
    maps: Path,
    version: int,
    flags: tuple[str, ...],
    entries: list[str],
    other: str,
) -> None:
    if version == 6:
        document.write_text("nonMasqueradeCIDRs: [10.0.0.0/8, 'fd00::/8']\n")
        bpffs.make_map(maps, 4, CILIUM_DEFAULTS)
    path = bpffs.make_map(maps, version, entries)
    status, out, _ = compare("doc", "cilium", *NONE, *flags)
    families = "ipv4" if version == 4 else "ipv4 and ipv6"
    assert (status, out) == (0, f"doc and cilium decide alike about {families}\n")
    # In the map of Cilium is a half of what the document keeps.
    half = entries[0].split("/")[0] + f"/{int(entries[0].split('/')[1]) + 1}"
    path.unlink()
    bpffs.make_map(maps, version, [half, *entries[1:]])
    status, out, _ = compare("doc", "cilium", *NONE, *flags, "-o", "json")
    assert status == 1
    assert cidrs(out) == [(other, "non-masquerade", "masquerade")]
    assert json.loads(out)["differences"][0]["rightEntry"] == (
        f"no entry covers it (cilium_ipmasq_v{version})"
    )


def test_this_node_is_compared_with_cilium(
    compare: Verb, document: Path, maps: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    apply("nft", document)
    capsys.readouterr()
    bpffs.make_map(maps, 4, CILIUM_DEFAULTS)
    assert compare("kernel:iptables-nft", "cilium", *NONE)[0] == 0
    bpffs.put(maps / bpffs.GLOBALS / "cilium_ipmasq_v4", ["203.0.113.0/24"])
    status, out, _ = compare("kernel:iptables-nft", "cilium", *NONE, "-o", "json")
    assert status == 1
    assert cidrs(out) == [("203.0.113.0/24", "masquerade", "non-masquerade")]


def test_a_full_map_is_said_to_be_full(compare: Verb, document: Path, maps: Path) -> None:
    bpffs.make_map(maps, 4, CILIUM_DEFAULTS, capacity=2)
    status, _, err = compare("doc", "cilium", *NONE)
    assert status == 0
    assert "cilium_ipmasq_v4 is full with 2 entries" in err
    assert "entries may be missing" in err


def test_maps_are_found_where_the_user_says(
    compare: Verb, document: Path, maps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bpffs.make_map(maps, 4, [])
    other = bpffs.mount(tmp_path / "bpf")
    bpffs.make_map(other, 4, CILIUM_DEFAULTS)
    assert compare("doc", "cilium", *NONE)[0] == 1, "the usual place comes first"
    assert compare("doc", "cilium", *NONE, "--bpffs", str(other))[0] == 0
    assert compare("doc", "cilium", *NONE, "--bpffs", str(other / bpffs.GLOBALS))[0] == 0
    monkeypatch.setenv("IPMASQ_BPFFS", str(other))
    assert compare("doc", "cilium", *NONE)[0] == 0


def test_without_maps_the_remedy_is_told(compare: Verb, document: Path, maps: Path) -> None:
    status, out, err = compare("doc", "cilium", *NONE)
    assert (status, out) == (2, "")
    assert "there is no map cilium_ipmasq_v4 or cilium_ipmasq_v6 in /sys/fs/bpf" in err
    assert "cilium:FILE" in err
    subprocess.run(["umount", str(maps)], check=True)
    status, _, err = compare("doc", "cilium", *NONE)
    assert status == 2
    assert "no bpf file system is mounted here" in err
    assert "mount the node's /sys/fs/bpf" in err


def test_a_map_of_another_layout_is_an_error(compare: Verb, document: Path, maps: Path) -> None:
    path = maps / bpffs.GLOBALS / "cilium_ipmasq_v4"
    create = f"bpftool map create {path} type lpm_trie key 20 value 1 entries 4 name x flags 1"
    subprocess.run(create.split(), check=True)
    status, _, err = compare("doc", "cilium", *NONE)
    assert status == 2
    assert "not a trie of ipv4 prefixes" in err


def test_a_hundred_thousand_entries_of_a_map_are_compared(
    compare: Verb, document: Path, maps: Path, tmp_path: Path
) -> None:
    many = [f"{20 + (n >> 16)}.{n >> 8 & 255}.{n & 255}.1/32" for n in range(100_000)]
    bpffs.make_map(maps, 4, [*CILIUM_DEFAULTS, *many], capacity=200_000)
    (tmp_path / "list.txt").write_text("\n".join([*CILIUM_DEFAULTS, *many[:-1]]))
    status, out, _ = compare("cilium", "cilium:list.txt", *NONE, "-o", "json")
    assert status == 1
    assert cidrs(out) == [(many[-1], "non-masquerade", "masquerade")]
