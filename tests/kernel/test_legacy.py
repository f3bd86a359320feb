"""The legacy backend where it differs: workers that may die, and tables that must not be made."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ipmasq_agent.agent.intent import Intent
from ipmasq_agent.agent.reconcile import clean, reconcile
from ipmasq_agent.config.model import Config, Flags
from ipmasq_agent.errors import HostError
from ipmasq_agent.host.patience import Patience
from ipmasq_agent.planes.detect import choose, holders
from ipmasq_agent.planes.iptables import legacy, legacy_worker
from ipmasq_agent.planes.iptables.legacy import IptablesLegacyPlane
from ipmasq_agent.planes.iptables.plan import ChainPlan
from ipmasq_agent.planes.iptables.text import rule_of
from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.planes.rules.rule import Option
from ipmasq_agent.planes.rules.table import empty_table
from ipmasq_agent.policy.addresses import Family
from tests import oracle
from tests.kernel.agent import status_of
from tests.kernel.legacy import (
    is_alive,
    legacy_backend,
    only_worker,
    workers_of,
    write,
)
from tests.netns import Namespace
from tests.waiting import wait_until

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
    assert workers_of(os.getpid()) == []


def test_cleanup_where_there_is_no_legacy_table_makes_none(backend: IptablesLegacyPlane) -> None:
    assert not any(outcome.error for outcome in clean(backend, Family).values())
    for family in oracle.FAMILIES:
        assert oracle.legacy_tables(family) == set()
    assert workers_of(os.getpid()) == []


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
    assert len(workers_of(os.getpid())) == 2


def test_a_pass_with_nothing_to_change_starts_no_worker(backend: IptablesLegacyPlane) -> None:
    write(backend, 1, 2)
    with legacy_backend() as next_agent:
        assert not write(next_agent, 1, 2)
        assert workers_of(os.getpid()) == [only_worker()]


# -- workers that die or refuse --------------------------------------------------------------


def test_a_worker_killed_between_passes_costs_one_pass(backend: IptablesLegacyPlane) -> None:
    write(backend, 1)
    before = oracle.snapshot(counters=True)
    first = only_worker()
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: not is_alive(first), "the worker's end")
    with pytest.raises(HostError, match="the table is as it was; the next pass starts a new"):
        write(backend, 1, 2)
    assert oracle.snapshot(counters=True) == before
    assert write(backend, 1, 2)
    assert rules() == 3
    assert only_worker() != first


def test_a_worker_killed_in_the_middle_of_its_work_costs_one_pass(
    backend: IptablesLegacyPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(backend, 1)
    before = oracle.snapshot(counters=True)
    first = only_worker()
    os.kill(first, signal.SIGSTOP)
    receive = legacy._Worker._receive

    def killed_before_it_answers(worker: Any, patience: Patience) -> dict[str, object]:
        # The order is on its way; it is killed before it has carried it out.
        os.kill(first, signal.SIGKILL)
        return receive(worker, patience)

    monkeypatch.setattr(legacy._Worker, "_receive", killed_before_it_answers)
    with pytest.raises(HostError, match=f"ipv4 ended with status {-signal.SIGKILL}"):
        write(backend, 1, 2)
    monkeypatch.undo()
    assert oracle.snapshot(counters=True) == before
    assert write(backend, 1, 2)


@pytest.mark.parametrize("count", [pytest.param(2, id="short"), pytest.param(3000, id="long")])
def test_a_worker_that_does_not_take_or_answer_an_order_is_ended(
    backend: IptablesLegacyPlane, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    write(backend, 1)
    first = only_worker()
    os.kill(first, signal.SIGSTOP)
    monkeypatch.setattr(legacy, "_PATIENCE", 0.05)
    with pytest.raises(HostError, match="gave no answer within"):
        write(backend, *range(count))  # 3,000 rules are more than a pipe holds
    assert not is_alive(first)
    assert rules() == 2
    monkeypatch.undo()
    assert write(backend, 1, 2)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        pytest.param((TCP, MASQUERADE, Option("to-ports", ("70000",))), "70000", id="high"),
        pytest.param((Option("jump", ("NONSENSE",)),), "NONSENSE", id="a target unknown"),
        pytest.param((Option("what", ("1",)), RETURN), "before any", id="of no match"),
        pytest.param((MASQUERADE, Option("to-ports", ("1-2",))), "1-2", id="no protocol"),
    ],
)
def test_a_rule_that_libxtables_refuses_leaves_the_table_as_it_was(
    backend: IptablesLegacyPlane, bad: tuple[Option, ...], why: str
) -> None:
    write(backend, 1)
    before = oracle.snapshot(counters=True)
    good = rule_of((Option("destination", ("192.0.2.1/32",)), RETURN), Family.IPV4)
    change = ChainPlan(CHAIN, EMPTY, insert=(good, rule_of(bad, Family.IPV4), good))
    with pytest.raises(HostError, match="worker for ipv4") as refused, backend.session(Family.IPV4):
        backend.apply(Family.IPV4, change)
    assert why in str(refused.value)
    assert oracle.snapshot(counters=True) == before
    assert write(backend, 1, 2)
    assert rules() == 3


def test_a_plan_that_fits_the_table_no_more_is_refused_as_a_whole(
    backend: IptablesLegacyPlane,
) -> None:
    write(backend, 1, 2)
    before = oracle.snapshot(counters=True)
    rule = rule_of((Option("destination", ("192.0.2.1/32",)), RETURN), Family.IPV4)
    for change in (
        ChainPlan(CHAIN, EMPTY, keep=0, remove=(rule,) * 9),
        ChainPlan(CHAIN, EMPTY, create=True, rewrite=(rule,)),
    ):
        with pytest.raises(HostError, match="refused"), backend.session(Family.IPV4):
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
    assert outcomes[Family.IPV6].changed
    assert rules() is None
    assert rules("ipv6") == 2


def test_a_worker_that_cannot_be_started_is_an_error_like_any_other(
    backend: IptablesLegacyPlane, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(HostError, match="cannot be started"):
        write(backend, 1)
    monkeypatch.undo()
    assert write(backend, 1)


def test_a_library_that_is_missing_is_named_in_one_line_with_what_to_install(
    backend: IptablesLegacyPlane, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "iptc.py").write_text("raise OSError('libip4tc.so.2: cannot open')\n")
    with monkeypatch.context() as without:
        without.syspath_prepend(str(tmp_path))  # a worker has the agent's path
        with pytest.raises(HostError, match=r"libip4tc\.so\.2: cannot open; install ") as refused:
            write(backend, 1)
    assert "Traceback" not in str(refused.value)
    assert "XTABLES_LIBDIR" in str(refused.value)
    assert oracle.legacy_tables("ipv4") == set()
    assert write(backend, 1)


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
        if "pass_fds" in options:
            options["env"] = {**options["env"], "XTABLES_LIBDIR": str(tmp_path)}
        return popen(*words, **options)

    monkeypatch.setattr(subprocess, "Popen", with_few_extensions)
    assert write(backend, 1)
    assert write(backend, 2, 3)
    clean(backend, [Family.IPV4])
    assert oracle.save_text("legacy", "ipv4") == before


# -- how workers end -------------------------------------------------------------------------


def test_closing_the_backend_ends_its_workers(in_ns: Namespace) -> None:
    with legacy_backend() as made:
        for family in Family:
            write(made, 1, family=family)
        pids = workers_of(os.getpid())
        assert len(pids) == 2
    assert not any(is_alive(pid) for pid in pids)


def test_a_worker_ends_when_its_input_ends_and_ignores_what_ctrl_c_sends(
    backend: IptablesLegacyPlane,
) -> None:
    write(backend, 1)
    pid = only_worker()
    ignored = int(
        next(
            line.split()[1]
            for line in Path(f"/proc/{pid}/status").read_text().splitlines()
            if line.startswith("SigIgn")
        ),
        16,
    )
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        assert ignored & 1 << number - 1
        os.kill(pid, number)
    assert write(backend, 1, 2)
    assert only_worker() == pid
    worker = backend._workers[Family.IPV4]
    worker._socket.shutdown(socket.SHUT_WR)
    assert worker._process.wait(20) == 0


def test_no_worker_outlives_an_agent_that_was_killed(in_ns: Namespace) -> None:
    program = (
        "import os, sys\n"
        "from tests.kernel.legacy import legacy_backend, workers_of, write\n"
        "with legacy_backend() as backend:\n"
        "    write(backend, 1)\n"
        "    print(*workers_of(os.getpid()), flush=True)\n"
        "    sys.stdin.read()\n"
    )
    agent = in_ns.popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert agent.stdout is not None
    pid = int(agent.stdout.readline())
    assert is_alive(pid)
    agent.kill()
    wait_until(lambda: not is_alive(pid), "the worker's end")
    assert rules() == 2


def test_a_worker_whose_agent_died_before_it_began_leaves_at_once(in_ns: Namespace) -> None:
    done = subprocess.run(
        [sys.executable, "-m", legacy_worker.__name__, "ipv4"],
        input="{}\n",
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
        env={**os.environ, "IPMASQ_AGENT_PID": "1"},
    )
    assert done.stdout == ""
    assert oracle.legacy_tables("ipv4") == set()
