"""Which backend a node uses, told by kubelet's marks; and a move from one to the other."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from ipmasq_agent.errors import AgentError, KernelReadError
from ipmasq_agent.planes import detect
from ipmasq_agent.planes.detect import choose, holders
from ipmasq_agent.planes.iptables.presence import legacy_table_exists
from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.policy.addresses import Family
from tests import oracle
from tests.kernel.running import Running, write
from tests.kernel.test_agent import ONE, TWO, chain
from tests.netns import Namespace
from tests.waiting import wait_until

NEW_MARK, OLD_MARK = "KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"
PROGRAMS = {"ipv4": "iptables", "ipv6": "ip6tables"}
DEFAULT = ("iptables-nft", "nothing tells; the default")


def mangle(variant: oracle.Variant, *words: str, family: oracle.Family = "ipv4") -> None:
    subprocess.run([f"{PROGRAMS[family]}-{variant}", "-t", "mangle", *words], check=True)


def mark(variant: oracle.Variant, name: str = NEW_MARK, family: oracle.Family = "ipv4") -> None:
    """Make a chain as kubelet does at its start."""
    mangle(variant, "-N", name, family=family)


@pytest.mark.parametrize("requested", ["auto", "iptables"])
@pytest.mark.parametrize("name", [NEW_MARK, OLD_MARK])
@pytest.mark.parametrize("family", oracle.FAMILIES)
@pytest.mark.parametrize("variant", oracle.VARIANTS)
def test_either_mark_of_either_family_tells(
    in_ns: Namespace, variant: oracle.Variant, family: oracle.Family, name: str, requested: str
) -> None:
    mark(variant, name, family)
    assert choose(requested) == (
        f"iptables-{variant}",
        f"{name} is in the mangle table of iptables-{variant} ({family})",
    )


def test_where_both_have_marks_it_is_nft(in_ns: Namespace) -> None:
    mark("legacy")
    mark("nft", OLD_MARK, "ipv6")
    assert choose("auto") == (
        "iptables-nft",
        f"{OLD_MARK} is in the mangle table of iptables-nft (ipv6)",
    )


def test_where_nothing_tells_it_is_nft_and_looking_makes_nothing(in_ns: Namespace) -> None:
    before = oracle.snapshot(handles=True)
    assert choose("auto") == DEFAULT
    assert oracle.snapshot(handles=True) == before
    for family in oracle.FAMILIES:
        assert oracle.legacy_tables(family) == oracle.nft_tables(family) == set()


def test_other_chains_and_other_tables_tell_nothing(in_ns: Namespace) -> None:
    for variant in oracle.VARIANTS:
        mark(variant, f"{NEW_MARK}-NOT")
        mark(variant, "MY-KUBE-KUBELET-CANARY")
        subprocess.run([f"iptables-{variant}", "-t", "nat", "-N", NEW_MARK], check=True)
        mangle(variant, "-A", "FORWARD", "-m", "comment", "--comment", f":{NEW_MARK} - [0:0]")
    assert choose("auto") == DEFAULT


def test_a_native_nft_table_of_the_mark_s_name_does_not_hide_it(in_ns: Namespace) -> None:
    subprocess.run(["nft", "add table inet mangle; add chain inet mangle X"], check=True)
    mark("legacy")
    assert choose("auto")[0] == "iptables-legacy"


@pytest.mark.parametrize("requested", ["iptables-nft", "iptables-legacy"])
def test_a_backend_asked_for_is_taken_whatever_the_marks_say(
    in_ns: Namespace, requested: str
) -> None:
    mark("nft")
    mark("legacy")
    assert choose(requested) == (requested, "asked for by --backend")


def _unreadable(*_: object) -> set[str]:
    raise KernelReadError("cannot be read")


def test_a_table_that_cannot_be_read_does_not_hide_a_mark_in_another(
    in_ns: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark("legacy", family="ipv6")
    monkeypatch.setattr(detect, "chain_info", _unreadable)

    def unreadable_ipv4(family: Family, table: str) -> bool:
        return bool(_unreadable()) if family is Family.IPV4 else legacy_table_exists(family, table)

    monkeypatch.setattr(detect, "legacy_table_exists", unreadable_ipv4)
    assert choose("auto")[0] == "iptables-legacy"


def test_a_failed_look_is_never_taken_for_a_node_without_marks(
    in_ns: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A legacy node whose one look fails must not be moved to nf_tables, and cleaned.
    mark("legacy")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(AgentError, match="iptables-legacy-save is not installed"):
        choose("auto")


def test_those_who_may_hold_rules_are_those_with_a_nat_table(in_ns: Namespace) -> None:
    mark("nft")
    mark("legacy")
    assert holders(Placement()) == []
    subprocess.run(["ip6tables-legacy", "-t", "nat", "-N", "X"], check=True)
    assert holders(Placement()) == ["iptables-legacy"]
    subprocess.run(["iptables-nft", "-t", "nat", "-N", "X"], check=True)
    assert holders(Placement()) == ["iptables-legacy", "iptables-nft"]


# -- the agent at a node that changes its mind -----------------------------------------------


def chain_in_force(variant: oracle.Variant) -> bool:
    """Whether our chain is there and POSTROUTING leads to it."""
    table = oracle.read_table(variant, "ipv4")
    hook = table.get("POSTROUTING", oracle.Chain("-", ())).rules
    return bool(table.get("IP-MASQ")) and any(rule.target == "IP-MASQ" for rule in hook)


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "config"
    path.write_text("resyncInterval: 1s\n" + ONE)
    return path


def test_a_running_agent_follows_the_node_to_the_other_backend_and_back(
    run: Callable[..., Running], in_ns: Namespace, document: Path
) -> None:
    subprocess.run(["iptables-nft", "-t", "nat", "-N", "THEIRS"], check=True)
    mark("nft")
    agent = run("run", f"--config={document}", "--enable-ipv6")
    agent.wait_ready()
    assert chain_in_force("nft")
    assert oracle.legacy_tables("ipv4") == set()

    mark("legacy")
    mangle("nft", "-X", NEW_MARK)
    _moves(agent, "nft", "legacy")
    assert NEW_MARK in agent.status()["modeReason"]

    write(document, "resyncInterval: 1s\n" + TWO)
    wait_until(lambda: "10.10.1.0/24" in (chain("legacy") or ()), "a change after the move")

    mark("nft")
    _moves(agent, "legacy", "nft")
    assert "10.10.1.0/24" in (chain("nft") or ())
    assert "THEIRS" in oracle.read_table("nft", "ipv4")


def _is_absent(variant: oracle.Variant, family: oracle.Family) -> bool:
    return chain(variant, family) is None


def _moves(agent: Running, old: oracle.Variant, new: oracle.Variant) -> None:
    """Wait until the agent has moved; at no moment may there be rules in neither."""

    def moved() -> bool:
        # The new one is looked at last: where the old has lost its rules, it has them.
        gone = not chain_in_force(old)
        assert not gone or chain_in_force(new)
        return gone

    wait_until(moved, f"the move from {old} to {new}")
    wait_until(lambda: agent.status()["mode"] == f"iptables-{new}", "the status says so")
    wait_until(agent.ready, "ready")
    for family in oracle.FAMILIES:
        wait_until(partial(_is_absent, old, family), f"{family} of {old} is clean")
        assert chain(new, family) is not None
        hook = oracle.read_table(old, family).get("POSTROUTING", oracle.Chain("-", ()))
        assert hook.rules == ()


def test_the_other_backend_is_cleaned_of_what_a_killed_agent_left_in_it(
    run: Callable[..., Running], in_ns: Namespace, document: Path
) -> None:
    first = run("run", f"--config={document}", "--backend=iptables-legacy", "--enable-ipv6")
    first.wait_ready()
    assert first.stop(signal.SIGKILL) == -signal.SIGKILL
    assert chain_in_force("legacy")
    mark("nft")
    second = run("run", f"--config={document}", "--enable-ipv6")
    second.wait_ready()
    for family in oracle.FAMILIES:
        wait_until(partial(_is_absent, "legacy", family), f"{family}: what was left is gone")
    assert chain_in_force("nft")
    assert not chain_in_force("legacy")


def test_an_agent_on_an_nft_node_leaves_a_legacy_table_of_others_alone(
    run: Callable[..., Running], in_ns: Namespace, document: Path
) -> None:
    # Others have a legacy table there: a reason to look, none to write.
    subprocess.run(["iptables-legacy", "-t", "nat", "-N", "THEIRS"], check=True)
    before = oracle.read_table("legacy", "ipv4")
    mark("nft")
    agent = run("run", f"--config={document}", "--enable-ipv6", "--cleanup-on-exit")
    agent.wait_ready()
    started = agent.status()["passes"]
    wait_until(lambda: agent.status()["passes"] > started + 2, "some resyncs")
    assert agent.stop() == 0
    assert oracle.read_table("legacy", "ipv4") == before
    assert oracle.legacy_tables("ipv4") == {"nat"}
    assert oracle.legacy_tables("ipv6") == set()


def test_an_agent_that_cannot_tell_the_backend_keeps_what_is_there_and_says_so(
    run: Callable[..., Running], in_ns: Namespace, document: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark("legacy")
    before = oracle.snapshot()
    monkeypatch.setenv("PATH", os.fspath(document.parent))
    agent = run("run", f"--config={document}")
    wait_until(lambda: "pass failed" in agent.log.read_text(), "the complaint")
    assert agent.get("/readyz")[0] == 503
    monkeypatch.undo()
    assert oracle.snapshot() == before
