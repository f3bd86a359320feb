"""``compare`` with what needs neither a kernel nor an API: documents and listings."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ipmasq_agent import cli
from ipmasq_agent.cli import wiring
from ipmasq_agent.errors import SourceUnavailable
from ipmasq_agent.policy.addresses import parse_address
from ipmasq_agent.policy.facts import NO_FACTS, NODE_ADDRESSES, Fact, Facts

Compare = Callable[..., tuple[int, str, str]]
NONE = ("--native-routing-cidr", "none")
NATIVE = (*NONE, "--routing-mode", "native")
CILIUMS_OWN = (
    "10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 100.64.0.0/10 192.0.0.0/24 192.0.2.0/24 "
    "192.88.99.0/24 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 240.0.0.0/4 169.254.0.0/16"
)


@pytest.fixture
def compare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Compare:
    """Run the verb among files: exit status, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            cli.main(["compare", *words])
        captured = capsys.readouterr()
        assert isinstance(left.value.code, int)
        return left.value.code, captured.out, captured.err

    return run


def write(name: str, *cidrs: str, more: str = "") -> str:
    lines = ["nonMasqueradeCIDRs:", *(f"  - {cidr}" for cidr in cidrs), more]
    Path(name).write_text("\n".join(lines) if cidrs else f"nonMasqueradeCIDRs: []\n{more}")
    return name


def differences(output: str) -> list[dict[str, Any]]:
    answer = json.loads(output)
    assert {"equal", "differences"} <= set(answer)
    assert answer["equal"] is (not answer["differences"] and not answer["conditions"])
    return list(answer["differences"])


def test_documents_that_decide_alike_are_equal(compare: Compare) -> None:
    one = write("one", "10.0.0.0/8")
    two = write("two", "10.0.0.0/9", "10.128.0.0/9")
    assert compare(one, two)[:2] == (0, "one and two decide alike about ipv4\n")
    status, out, _ = compare(one, two, "-o", "json")
    assert status == 0
    assert json.loads(out)["equal"] is True


def test_documents_that_differ_show_where_and_by_which_lines(compare: Compare) -> None:
    one = write("one", "10.0.0.0/8", "172.16.0.0/12")
    two = write("two", "172.16.0.0/12", more="masqLinkLocal: true")
    status, out, _ = compare(one, two)
    assert status == 1
    assert out.splitlines() == [
        "--- one",
        "+++ two",
        "@@ 10.0.0.0/8, for example 10.0.0.0 @@",
        "-non-masquerade: 10.0.0.0/8 (one:2)",
        "+masquerade: every other destination",
        "@@ 169.254.0.0/16, for example 169.254.0.0 @@",
        "-non-masquerade: link-local, masqLinkLocal: false",
        "+masquerade: every other destination",
    ]
    status, out, _ = compare(one, two, "-o", "json")
    assert status == 1
    first = differences(out)[0]
    assert (first["cidr"], first["left"], first["right"]) == (
        "10.0.0.0/8",
        "non-masquerade",
        "masquerade",
    )


def test_yaml_has_the_same_keys_as_json(compare: Compare) -> None:
    status, out, _ = compare(write("one", "10.0.0.0/8"), write("two"), "-o", "yaml")
    assert status == 1
    assert "equal: false\n" in out
    assert "- family: ipv4\n  cidr: 10.0.0.0/8\n" in out


def test_ipv6_is_compared_when_it_is_managed(compare: Compare) -> None:
    one, two = write("one", "fd00::/8"), write("two", "fd00::/9")
    status, out, _ = compare(one, two, "--enable-ipv6", "-o", "json")
    assert status == 1
    assert [each["cidr"] for each in differences(out)] == ["fd80::/9"]
    status, _, err = compare(one, two)
    assert status == 2
    assert "--enable-ipv6" in err


def test_a_listing_is_compared_as_cilium_decides(compare: Compare) -> None:
    one = write("one", "10.0.0.0/8")
    Path("list.txt").write_text("IP PREFIX/ADDRESS   \n10.0.0.0/8   \n169.254.0.0/16\n")
    status, out, err = compare(one, "cilium:list.txt", *NONE)
    assert (status, out) == (0, "one and cilium:list.txt decide alike about ipv4\n")
    assert "note: cilium:list.txt: not in the map, and not compared" in err
    Path("list.json").write_text('["10.0.0.0/9","169.254.0.0/16"]')
    status, out, _ = compare(one, "cilium:list.json", *NONE, "-o", "json")
    assert status == 1
    (only,) = differences(out)
    assert only["cidr"] == "10.128.0.0/9"
    assert only["rightEntry"] == "no entry covers it (list.json)"
    status, out, _ = compare("cilium:list.txt", "cilium:list.json", *NONE)
    assert status == 1
    assert "-non-masquerade: 10.0.0.0/8 (list.txt)" in out


def test_the_native_routing_cidr_of_the_user_counts(compare: Compare) -> None:
    one = write("one", "10.0.0.0/8", "172.16.0.0/12")
    Path("list.txt").write_text("10.0.0.0/8\n169.254.0.0/16\n")
    assert compare(one, "cilium:list.txt", *NONE)[0] == 1
    assert compare(one, "cilium:list.txt", "--native-routing-cidr", "172.16.0.0/12")[0] == 0
    status, _, err = compare(one, "cilium:list.txt", "--native-routing-cidr", "x")
    assert status == 2
    assert "'x': is not a prefix" in err


def test_an_empty_listing_masquerades_everything_and_says_so(compare: Compare) -> None:
    Path("list.txt").write_text("")
    status, _, err = compare(write("one", more="masqLinkLocal: true"), "cilium:list.txt", *NONE)
    assert status == 0
    assert "lists no entries" in err


def test_a_family_that_only_one_side_manages_is_said(compare: Compare) -> None:
    Path("list.txt").write_text("10.0.0.0/8\n169.254.0.0/16\nfe80::/10\n")
    status, out, err = compare(write("one", "10.0.0.0/8"), "cilium:list.txt", *NONE)
    assert status == 1
    assert "-non-masquerade: one does not manage ipv6\n" in out
    assert "ipv6 is managed by cilium:list.txt alone" in err


@pytest.mark.parametrize(
    ("operands", "complaint"),
    [
        (("one", "nothing"), "'nothing' does not exist"),
        (("one", "kernal:iptables"), "kernel[:BACKEND]"),
        (("one", "kernel:nonsense"), "names no backend"),
        (("one", "cilium:nothing"), "nothing cannot be read: No such file"),
        (("one", "cilium:"), "a file without a name cannot be read"),
        (("one", "cilium:one", *NONE), "one:1: 'nonMasqueradeCIDRs:' is not a prefix"),
        (("one", "configmap:nonsense"), "is not NAMESPACE/NAME"),
        (("one", "bad"), "bad:2:5"),
        (("-", "-"), "both operands are a pipe"),
        (("one", "cilium:one", "--cilium-config", "x"), "is not NAMESPACE/NAME"),
    ],
)
def test_what_cannot_be_compared_is_an_error_with_its_reason(
    compare: Compare, operands: tuple[str, ...], complaint: str
) -> None:
    write("one", "10.0.0.0/8")
    write("bad", "10.0.0.1/8")
    status, out, err = compare(*operands)
    assert (status, out) == (2, "")
    assert complaint in err


class Nodes:
    """A cluster of two nodes, as a source of facts."""

    def gather(self, needs: frozenset[Fact[Any]]) -> Facts:
        if not needs:
            return NO_FACTS
        assert needs == {NODE_ADDRESSES}
        addresses = ("203.0.113.1", "203.0.113.2", "2001:db8::1")
        return NO_FACTS.with_(NODE_ADDRESSES, frozenset(map(parse_address, addresses)))


class NoNodes:
    def gather(self, needs: frozenset[Fact[Any]]) -> Facts:
        if needs:
            raise SourceUnavailable("nobody knows")
        return NO_FACTS


def test_cilium_and_a_document_that_exempts_nodes_decide_alike(
    compare: Compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wiring, "fact_source", lambda settings: Nodes())
    one = write("one", "10.0.0.0/8")
    two = write("two", "10.0.0.0/8", more="exemptNodeIPs: true")
    Path("list.txt").write_text("10.0.0.0/8\n169.254.0.0/16\n")
    assert compare(two, "cilium:list.txt", *NATIVE)[0] == 0
    status, out, _ = compare(one, "cilium:list.txt", *NATIVE, "-o", "json")
    assert status == 1
    assert [each["cidr"] for each in differences(out)] == ["203.0.113.1/32", "203.0.113.2/32"]
    assert differences(out)[0]["rightEntry"] == "address of a node of the cluster"


def test_with_routing_through_a_tunnel_cilium_masquerades_packets_to_nodes(
    compare: Compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wiring, "fact_source", lambda settings: Nodes())
    Path("list.txt").write_text("10.0.0.0/8\n169.254.0.0/16\n")
    tunnelled = write("tunnelled", "10.0.0.0/8", more="profile: {cilium: tunnel}")
    assert compare(tunnelled, "cilium:list.txt", *NONE)[0] == 0
    assert compare("cilium:list.txt", tunnelled, *NONE)[0] == 0
    native = write("native", "10.0.0.0/8", more="profile: cilium")
    assert compare(native, "cilium:list.txt", *NONE)[0] == 0
    status, out, _ = compare(native, "cilium:list.txt", "--routing-mode", "tunnel", "-o", "json")
    assert status == 1
    assert [each["cidr"] for each in differences(out)] == ["203.0.113.1/32", "203.0.113.2/32"]


@pytest.mark.parametrize("profile", ["cilium", "{cilium: native}", "{cilium: tunnel}"])
def test_a_document_of_ciliums_meaning_is_compared_without_a_cluster(
    compare: Compare, monkeypatch: pytest.MonkeyPatch, profile: str
) -> None:
    for variable in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(Path.cwd()))
    Path("doc").write_text(f"profile: {profile}")
    Path("list.txt").write_text("\n".join(CILIUMS_OWN.split()))
    status, out, err = compare("doc", "cilium:list.txt", *NONE)
    assert (status, out) == (0, "doc and cilium:list.txt decide alike about ipv4\n")
    mode = "tunnel" if "tunnel" in profile else "native"
    assert f"its routing-mode is taken for {mode}" in err
    assert ("are kept, and not compared (there are no credentials" in err) is (mode == "native")
    assert ("go through its tunnel, not compared" in err) is (mode == "tunnel")


def test_without_the_nodes_cilium_is_compared_and_it_is_said(
    compare: Compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wiring, "fact_source", lambda settings: NoNodes())
    Path("list.txt").write_text("10.0.0.0/8\n169.254.0.0/16\n")
    status, _, err = compare(write("one", "10.0.0.0/8"), "cilium:list.txt", *NATIVE)
    assert status == 0
    assert "never masquerades packets to the addresses of the cluster's nodes" in err
    assert "(nobody knows)" in err


def test_a_document_may_come_through_a_pipe(
    compare: Compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = write("one", "10.0.0.0/8")
    argv = [sys.executable, "-m", "ipmasq_agent", "compare", "-", one]
    done = subprocess.run(argv, input="nonMasqueradeCIDRs: []", capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("--- standard input\n+++ one\n")


def test_many_ranges_are_cut_short_for_people_only(compare: Compare) -> None:
    cidrs = [f"10.0.{number}.0/25" for number in range(60)]
    one, two = write("one", *cidrs), write("two")
    status, out, _ = compare(one, two)
    assert status == 1
    assert "... and 10 more ipv4 ranges; -o json shows them all" in out
    assert len(differences(compare(one, two, "-o", "json")[1])) == 60


def test_the_limit_of_a_data_plane_does_not_keep_a_document_from_being_compared(
    compare: Compare,
) -> None:
    one = write("one", *(f"10.0.{number}.0/24" for number in range(65)))
    assert compare(one, one)[0] == 0
    own = write("own", "10.0.0.0/8", "11.0.0.0/8", more="cidrLimit: 1")
    status, _, err = compare(one, own)
    assert status == 2
    assert "cidrLimit allows 1" in err


def test_a_hundred_thousand_entries_on_each_side_are_compared_in_seconds(
    compare: Compare,
) -> None:
    prefixes = [f"{10 + (n >> 16)}.{n >> 8 & 255}.{n & 255}.1/32" for n in range(100_000)]
    Path("left.txt").write_text("\n".join(prefixes))
    Path("right.txt").write_text("\n".join(prefixes[1:]))
    status, out, _ = compare("cilium:left.txt", "cilium:right.txt", *NONE, "-o", "json")
    assert status == 1
    assert [each["cidr"] for each in differences(out)] == ["10.0.0.1/32"]
