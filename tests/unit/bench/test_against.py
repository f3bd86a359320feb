from __future__ import annotations

from dataclasses import replace

import pytest

from ipmasq_agent.bench.against import Trend, compare, describe
from ipmasq_agent.bench.modes import MODES
from ipmasq_agent.errors import BenchError
from tests.unit.bench.made import FLOWS, LATENCY, LOAD, Levels, made, usual, without


def slower(mode: str, measure: str, factor: float) -> Levels:
    def levels(name: str, of: str, cidrs: int) -> float | None:
        level = usual(name, of, cidrs)
        return level if level is None or (name, of) != (measure, mode) else level * factor

    return levels


def test_the_same_figures_are_no_regression() -> None:
    comparison = compare(made(), made())
    assert not comparison.regressed
    assert not comparison.of(Trend.BETTER)
    assert "Nothing is worse than before" in list(describe(comparison))
    assert not comparison.gone
    assert not comparison.new


def test_a_mode_that_became_slower_is_named_and_no_other() -> None:
    comparison = compare(made(), made(levels=slower("bpf+ct", "flows", 0.8)))
    assert comparison.regressed
    worse = [(one.measure.name, one.where) for one in comparison.of(Trend.WORSE)]
    assert worse == [("flows", f"bpf+ct with {size} CIDRs") for size in ("3", "64", "1,000")]
    lines = list(describe(comparison))
    assert lines[0].startswith("Worse: New UDP flows, bpf+ct with 3 CIDRs: 9")
    assert lines[0].endswith("of none+ct")
    assert "Nothing is worse than before" not in lines


def test_where_less_is_better_more_is_a_regression() -> None:
    comparison = compare(made(), made(levels=slower("ipset", "latency-p99", 1.3)))
    assert [one.where for one in comparison.of(Trend.WORSE)] == ["ipset with 64 CIDRs"]
    assert not comparison.of(Trend.BETTER)


def test_what_became_faster_is_better_and_fails_nothing() -> None:
    comparison = compare(made(), made(levels=slower("bpf+ct", "flows", 1.3)))
    assert not comparison.regressed
    assert len(comparison.of(Trend.BETTER)) == 3


def test_a_machine_twice_as_fast_changes_no_ratio() -> None:
    fast = made(speed=2.0, measures=[FLOWS, LATENCY])
    assert {one.trend for one in compare(made(), fast).findings} == {Trend.SAME}


def test_values_without_a_ratio_are_compared_on_the_same_processor_only() -> None:
    slow = made(levels=slower("ipset", "load", 4.0), measures=[LOAD])
    assert compare(made(measures=[LOAD]), slow).regressed
    elsewhere = replace(slow, machine={**slow.machine, "processor": "2 x another"})
    comparison = compare(made(measures=[LOAD]), elsewhere)
    assert not comparison.regressed
    assert any("not compared: load" in note for note in comparison.notes)


@pytest.mark.parametrize(("factor", "noise"), [(0.97, 0.001), (0.9, 0.05)])
def test_a_small_change_or_one_within_the_noise_is_no_regression(
    factor: float, noise: float
) -> None:
    old = made(noise=noise)
    new = made(noise=noise, levels=slower("ipset", "flows", factor))
    assert not compare(old, new).regressed


def test_intervals_that_only_just_miss_each_other_are_told_and_fail_nothing() -> None:
    levels = slower("ipset", "flows", 0.93)
    comparison = compare(made(noise=0.02), made(noise=0.02, levels=levels))
    (found,) = [
        one
        for one in comparison.findings
        if (one.measure, one.where) == (FLOWS, "ipset with 64 CIDRs")
    ]
    assert not found.before.ties(found.after)
    assert found.trend is Trend.MOVED
    assert not comparison.regressed
    told = [line for line in describe(comparison) if line.startswith("Moved, by no more than")]
    assert any("New UDP flows, ipset with 64 CIDRs" in line for line in told)


@pytest.mark.parametrize("sides", [(1, 5), (5, 2), (2, 2)])
def test_fewer_than_three_rounds_on_either_side_cannot_be_told_apart(
    sides: tuple[int, int],
) -> None:
    new = made(rounds=sides[1], levels=slower("bpf+ct", "flows", 0.1))
    comparison = compare(made(rounds=sides[0]), new)
    assert not comparison.regressed
    assert {one.trend for one in comparison.findings} == {Trend.UNKNOWN}
    lines = list(describe(comparison))
    assert any("it takes three" in line or "takes three rounds" in line for line in lines)
    assert "Nothing is worse than before" not in lines


def test_without_the_limit_ratios_are_to_tracked_no_nat() -> None:
    modes = [mode for mode in MODES if mode.name != "none"]
    slow = made(modes=modes, speed=3.0, levels=slower("bpf+ct", "flows", 0.5), measures=[FLOWS])
    comparison = compare(made(measures=[FLOWS]), slow)
    assert {one.to for one in comparison.findings} == {"none+ct"}
    assert len(comparison.of(Trend.WORSE)) == 3


def test_what_one_side_lacks_is_told() -> None:
    quick = made(sizes=(64,), measures=[FLOWS])
    comparison = compare(made(measures=[FLOWS]), quick)
    assert "flows of ipset with 3 CIDRs" in comparison.gone
    assert compare(quick, made(measures=[FLOWS])).new == comparison.gone
    assert any(line.startswith("No longer measured") for line in describe(comparison))


def test_another_machine_and_an_early_end_are_noted() -> None:
    new = without(made(), after=(4, "ipset"))
    new = replace(new, machine={**new.machine, "kernel": "Linux 7.0"})
    notes = compare(made(), new).notes
    assert any("kernel was Linux 6.18.5 (x86_64), now it is Linux 7.0" in note for note in notes)
    assert any("this benchmark stopped early (Ctrl-C in round 4 of 5)" in note for note in notes)


def test_other_families_or_nothing_in_common_are_refused() -> None:
    with pytest.raises(BenchError, match="ipv4, the other of ipv6"):
        compare(made(), replace(made(), family="ipv6"))
    with pytest.raises(BenchError, match="no figure in common"):
        compare(made(measures=[FLOWS]), made(measures=[LATENCY]))
