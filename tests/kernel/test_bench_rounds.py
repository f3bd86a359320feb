"""The benchmark as a whole, as short as it can be: turns, failures, Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipmasq_agent.bench.modes import MODES, Effort, Turn
from ipmasq_agent.bench.results import Results
from ipmasq_agent.bench.rounds import Benchmark
from ipmasq_agent.bench.workload import Stage
from ipmasq_agent.errors import BenchError
from ipmasq_agent.policy.addresses import Family

AGENT = (sys.executable, "-m", "ipmasq_agent")
BY_NAME = {mode.name: mode for mode in MODES}
SHORT = Effort(2, (3,), (), flows=2000, packets=2000, seconds=1)
WHOLE = Effort(1, (3,), (3,), flows=2000, packets=2000, seconds=1)


@pytest.fixture(autouse=True)
def _state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Rigs keep their state here, and leave nothing of it."""
    state = tmp_path / "state"
    state.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(state))
    # Other tests run beside this one: the machine never becomes quiet.
    monkeypatch.setattr("ipmasq_agent.bench.machine.QUIETENING", 0.0)
    monkeypatch.setattr("ipmasq_agent.bench.workloads.latency._MOST_REQUESTS", 0.0)
    yield
    assert list(state.iterdir()) == []


def measure(
    *names: str, effort: Effort = SHORT, agent: tuple[str, ...] = AGENT, stop_at: int | None = None
) -> tuple[Results, list[str]]:
    told: list[str] = []

    def progress(what: str, done: float) -> None:
        assert 0 <= done <= 1
        told.append(what)
        if len(told) == stop_at:
            raise KeyboardInterrupt

    modes = [BY_NAME[name] for name in names]
    return Benchmark(modes, effort, Family.IPV4, agent, progress).measure(), told


def test_modes_take_turns_after_they_have_shown_that_they_are_right() -> None:
    results, told = measure("none+ct", "nftables")
    assert [what.split(":")[0] for what in told[2:]] == [
        *(["round 1 of 2"] * 2),
        *(["round 2 of 2"] * 2),
    ]
    assert [(one.mode, one.cidrs, one.wrong) for one in results.equality] == [
        ("none+ct", 0, ()),
        ("nftables", 3, ()),
    ]
    turns = [(run.round, run.mode) for run in results.runs if run.measure == "flows"]
    assert turns == [(n, mode) for n in (1, 2) for mode in ("none+ct", "nftables")]
    # So few flows may take less CPU time than the kernel counts in.
    assert {run.problem for run in results.runs} == {None}
    assert all(run.value for run in results.runs if run.measure != "flows-cpu")
    assert all(run.value is not None for run in results.runs)
    assert {run.measure for run in results.runs} == {"flows", "flows-cpu", "connections", "load"}
    assert [measure.name for measure in results.measures] == [
        *("flows", "flows-cpu", "connections", "load")
    ]
    assert results.stopped is None
    assert results.machine["kernel"].startswith("Linux")


def test_everything_is_measured_where_it_is_asked_for() -> None:
    results, _ = measure("none", "bpf", effort=WHOLE)
    found = {(run.mode, run.measure): run for run in results.runs}
    names = [measure.name for measure in results.measures]
    assert names == [
        *("flows", "flows-cpu", "program"),
        *("path-new", "path-full", "path-kept", "path-out", "path-back", "connections"),
        *("packets", "stream", "streams", "stream-cpu"),
        *("latency-p50", "latency-p99", "memory", "load", "change"),
    ]
    assert {name for mode, name in found if mode == "bpf"} == set(names)
    ours = {"load", "change", "program", *(name for name in names if name.startswith("path-"))}
    assert {name for mode, name in found if mode == "none"} == set(names) - ours
    assert [run.problem for run in results.runs if run.problem] == []


def test_ctrl_c_keeps_what_was_measured() -> None:
    results, told = measure("none", "nftables", stop_at=4)
    assert told[-1] == "round 1 of 2: nftables, 3 CIDRs"
    assert results.stopped == "Ctrl-C in round 1 of 2"
    assert {run.mode for run in results.runs} == {"none"}
    assert len(results.equality) == 2


def program(directory: Path, *lines: str) -> tuple[str, ...]:
    """An agent of which only some is true."""
    script = directory / "agent"
    script.write_text("\n".join(("#!/bin/sh", *lines)) + "\n")
    script.chmod(0o755)
    return (str(script),)


def test_a_mode_that_decides_wrongly_gets_no_figures(tmp_path: Path) -> None:
    real = f'"{sys.executable}" -m ipmasq_agent "$@" || exit'
    remove = "iptables-nft -t nat -D IP-MASQ 3"
    results, _ = measure("none", "iptables-nft", agent=program(tmp_path, real, remove))
    right, wrong = results.equality
    assert right.wrong == ()
    assert wrong.mode == "iptables-nft"
    assert all("seen" in one for one in wrong.wrong)
    assert wrong.wrong
    assert {run.mode for run in results.runs} == {"none"}


def test_a_mode_that_is_not_to_be_had_is_skipped_with_the_reason(tmp_path: Path) -> None:
    refusing = program(tmp_path, "echo there are no sets here >&2", "exit 2")
    results, _ = measure("none", "ipset", agent=refusing)
    assert {run.mode for run in results.runs} == {"none"}
    (why,) = results.skipped
    assert why.startswith("ipset, 3 CIDRs: it cannot be loaded here")
    assert "there are no sets here" in why


def test_a_turn_that_fails_says_so_and_the_others_go_on(tmp_path: Path) -> None:
    count = tmp_path / "count"
    once = f'[ -e "{count}" ] && {{ echo enough >&2; exit 2; }}; touch "{count}"'
    real = f'exec "{sys.executable}" -m ipmasq_agent "$@"'
    results, _ = measure("none", "nftables", agent=program(tmp_path, once, real))
    failed = [run for run in results.runs if run.problem]
    # What failed is the load of the policy, and without it nothing else is measured.
    assert [(run.round, run.mode, run.measure, run.value) for run in failed] == [
        (1, "nftables", "load", None),
        (2, "nftables", "load", None),
    ]
    assert all("enough" in (run.problem or "") for run in failed)
    assert len([run for run in results.runs if run.mode == "none"]) == 6


def test_a_workload_that_fails_is_named_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, "echo out of order >&2", "exit 1")
    (tmp_path / "agent").rename(tmp_path / "iperf3")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    results, _ = measure("iptables-nft", effort=WHOLE)
    failed = {run.measure: run.problem or "" for run in results.runs if run.problem}
    assert set(failed) == {"stream", "streams", "stream-cpu"}
    assert all("iperf3 -s -1` does not serve: out of order" in said for said in failed.values())
    given = [run.measure for run in results.runs if run.value is not None]
    assert {"flows", "packets", "latency-p99", "connections", "change"} <= set(given)
    # None of our programs runs in a node of iptables.
    assert "program" not in {run.measure for run in results.runs}


def test_a_turn_without_a_rig_has_no_figure_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built = Benchmark._stage

    def refuse(benchmark: Benchmark, turn: Turn) -> contextlib.AbstractContextManager[Stage]:
        if turn.mode.name == "none":
            raise BenchError("no network namespace can be made here")
        return built(benchmark, turn)

    monkeypatch.setattr(Benchmark, "_stage", refuse)
    results, _ = measure("none", "nftables")
    failed = {(run.mode, run.measure) for run in results.runs if run.problem}
    assert failed == {("none", name) for name in ("flows", "flows-cpu", "connections")}
    assert {run.mode for run in results.runs if run.value} == {"nftables"}
