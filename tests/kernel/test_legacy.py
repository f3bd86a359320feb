"""The legacy backend where it differs: tables that must not be made, and writes that fail."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ipmasq_agent.agent.intent import Intent
from ipmasq_agent.agent.reconcile import clean, reconcile
from ipmasq_agent.config.model import Config, Flags
from ipmasq_agent.errors import HostError
from ipmasq_agent.planes.detect import choose, holders
from ipmasq_agent.planes.iptables.legacy import IptablesLegacyPlane
from ipmasq_agent.planes.iptables.plan import ChainPlan
from ipmasq_agent.planes.iptables.text import rule_of
from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.planes.rules.rule import Option
from ipmasq_agent.planes.rules.table import empty_table
from ipmasq_agent.policy.addresses import Family
from tests import oracle
from tests.kernel.agent import status_of
from tests.kernel.legacy import impostor, legacy_backend, write
from tests.netns import Namespace

CHAIN = "IP-MASQ"
EMPTY = empty_table(Family.IPV4)
TCP, RETURN = Option("protocol", ("tcp",)), Option("jump", ("RETURN",))
MASQUERADE = Option("jump", ("MASQUERADE",))


@pytest.fixture
def backend(in_ns: Namespace) -> Iterator[IptablesLegacyPlane]:
    with legacy_backend() as made:
        yield made


def rules(family: oracle.Family = "ipv4") -> int | None:
    """Return how many rules our chain has, or None where it does not exist."""
    chain = oracle.read_chain("legacy", family, CHAIN)
    return None if chain is None else len(chain)


# -- what comes into being -------------------------------------------------------------------


def test_looking_makes_no_legacy_table(in_ns: Namespace, tmp_path: Path) -> None:
    document = tmp_path / "config"
    document.write_text("nonMasqueradeCIDRs: [10.0.0.0/8]\n")
    config = f"--config={document}"
    for backend in ("auto", "iptables", "iptables-nft", "iptables-legacy"):
        assert status_of("diff", "--enable-ipv6", config, f"--backend={backend}") == 1
        assert status_of("list", f"--backend={backend}") == 0
        assert status_of("status", "--enable-ipv6", config, f"--backend={backend}") == 1
        assert status_of("explain", "10.1.2.3", f"--backend={backend}") == 0
    with legacy_backend() as made:
        for family in Family:
            with made.session(family):
                assert made.read(family).rules(CHAIN) == ()
    assert choose("auto") == ("iptables-nft", "nothing tells; the default")
    assert holders(Placement()) == []
    for family_name in oracle.FAMILIES:
        assert oracle.legacy_tables(family_name) == set()


def test_cleanup_where_there_is_no_legacy_table_makes_none(backend: IptablesLegacyPlane) -> None:
    assert not any(outcome.error for outcome in clean(backend, Family).values())
    for family in oracle.FAMILIES:
        assert oracle.legacy_tables(family) == set()


def test_writing_makes_the_nat_table_of_that_family_alone(backend: IptablesLegacyPlane) -> None:
    write(backend, 1)
    assert oracle.legacy_tables("ipv4") == {"nat"}
    assert oracle.legacy_tables("ipv6") == set()
    write(backend, 1, family=Family.IPV6)
    assert oracle.legacy_tables("ipv6") == {"nat"}
    assert oracle.nft_tables("ipv4") == oracle.nft_tables("ipv6") == set()


def test_both_families_take_turns_in_one_agent(backend: IptablesLegacyPlane) -> None:
    for count in (1, 3, 2):
        for family in Family:
            assert write(backend, *range(count), family=family)
            assert rules("ipv4" if family is Family.IPV4 else "ipv6") == count + 1


# -- writes that fail ------------------------------------------------------------------------


@pytest.mark.parametrize("script", ["kill -9 $$", "cat; exit 1"])
def test_a_program_that_dies_costs_one_pass(
    backend: IptablesLegacyPlane, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str
) -> None:
    write(backend, 1)
    before = oracle.snapshot(counters=True)
    with monkeypatch.context() as with_another:
        impostor(with_another, tmp_path, script)
        with pytest.raises(HostError, match="iptables-legacy-restore --noflush` exited with"):
            write(backend, 1, 2)
    assert oracle.snapshot(counters=True) == before
    assert write(backend, 1, 2)
    assert rules() == 3


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        pytest.param((TCP, MASQUERADE, Option("to-ports", ("70000",))), "70000", id="high"),
        pytest.param((Option("jump", ("NONSENSE",)),), "NONSENSE", id="a target unknown"),
        pytest.param((Option("what", ("1",)), RETURN), "--what", id="of no match"),
        pytest.param((MASQUERADE, Option("to-ports", ("1-2",))), "Need TCP, UDP", id="no protocol"),
    ],
)
def test_a_rule_that_libxtables_refuses_leaves_the_table_as_it_was(
    backend: IptablesLegacyPlane, bad: tuple[Option, ...], why: str
) -> None:
    write(backend, 1)
    before = oracle.snapshot(counters=True)
    good = rule_of((Option("destination", ("192.0.2.1/32",)), RETURN), Family.IPV4)
    change = ChainPlan(CHAIN, EMPTY, insert=(good, rule_of(bad, Family.IPV4), good))
    with pytest.raises(HostError, match=why), backend.session(Family.IPV4):
        backend.apply(Family.IPV4, change)
    assert oracle.snapshot(counters=True) == before
    assert write(backend, 1, 2)
    assert rules() == 3


def test_a_plan_that_fits_the_table_no_more_is_refused_as_a_whole(
    backend: IptablesLegacyPlane,
) -> None:
    write(backend, 1, 2)
    before = oracle.snapshot(counters=True)
    rule = rule_of((Option("destination", ("192.0.2.1/32",)), RETURN), Family.IPV4)
    change = ChainPlan(CHAIN, EMPTY, keep=0, remove=(rule,) * 9)
    with pytest.raises(HostError, match="exited with"), backend.session(Family.IPV4):
        backend.apply(Family.IPV4, change)
    assert oracle.snapshot(counters=True) == before


def test_the_failure_of_one_family_does_not_stop_the_other(
    backend: IptablesLegacyPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = IptablesLegacyPlane.apply

    def broken(self: IptablesLegacyPlane, family: Family, change: ChainPlan) -> None:
        if family is Family.IPV4:
            change = ChainPlan(
                CHAIN, EMPTY, create=True, rewrite=(rule_of((Option("nonsense"),), family),)
            )
        build(self, family, change)

    monkeypatch.setattr(IptablesLegacyPlane, "apply", broken)
    outcomes = reconcile(backend, Intent(Config(Flags(enable_ipv6=True))))
    assert isinstance(outcomes[Family.IPV4].error, HostError)
    assert outcomes[Family.IPV6].change
    assert rules() is None
    assert rules("ipv6") == 2


def test_extensions_that_only_the_rules_of_others_use_are_not_needed(
    backend: IptablesLegacyPlane, in_ns: Namespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Where the container has other extensions than the host that wrote the rules.
    theirs = "-A POSTROUTING -m u32 --u32 0x0=0x1 -m string --string x --algo bm -j RETURN"
    in_ns.run(["iptables-legacy-restore"], stdin=f"*nat\n{theirs}\n{theirs}\nCOMMIT\n")
    before = oracle.save_text("legacy", "ipv4")
    installed = next(Path("/usr/lib").glob("*/xtables"))
    for name in ("libxt_standard.so", "libxt_comment.so", "libxt_addrtype.so"):
        (tmp_path / name).symlink_to(installed / name)
    for name in ("libxt_MASQUERADE.so", "libipt_MASQUERADE.so"):
        if (installed / name).exists():
            (tmp_path / name).symlink_to(installed / name)
    popen = subprocess.Popen

    def with_few_extensions(*words: Any, **options: Any) -> Any:
        if options.get("pass_fds"):
            options["env"] = {**options["env"], "XTABLES_LIBDIR": str(tmp_path)}
        return popen(*words, **options)

    monkeypatch.setattr(subprocess, "Popen", with_few_extensions)
    assert write(backend, 1)
    assert write(backend, 2, 3)
    clean(backend, [Family.IPV4])
    assert oracle.save_text("legacy", "ipv4") == before
