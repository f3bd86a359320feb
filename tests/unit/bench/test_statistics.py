from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest

from ipmasq_agent.bench.charts import charts
from ipmasq_agent.bench.modes import MODES
from ipmasq_agent.bench.results import Equality
from ipmasq_agent.bench.statistics import Statistics, coverage, summary
from ipmasq_agent.bench.tables import tables
from tests.unit.bench.made import FLOWS, LATENCY, LOAD, MEMORY, made, usual, without


@pytest.mark.parametrize(
    ("count", "low", "high", "covered"),
    [
        (1, 1, 1, 0.0),
        (2, 1, 2, 0.5),
        (3, 1, 3, 0.75),
        (5, 1, 5, 0.9375),
        (7, 1, 7, 0.984375),
        (8, 2, 7, 0.9296875),
        (20, 6, 15, 0.958610534667),
    ],
)
def test_the_interval_is_the_narrowest_pair_of_values_that_covers_enough(
    count: int, low: int, high: int, covered: float
) -> None:
    values = list(range(1, count + 1))
    random.Random(count).shuffle(values)
    found = summary(values)
    assert found is not None
    assert (found.low, found.high, found.count) == (low, high, count)
    assert found.coverage == pytest.approx(covered)
    assert found.median == (1 + count) / 2


@pytest.mark.parametrize(("count", "rank"), [(3, 1), (5, 1), (6, 2), (9, 3)])
def test_coverage_is_how_often_the_median_falls_between_the_values(count: int, rank: int) -> None:
    # Each of the values is below the median or not, alike probably: count them all.
    sides = list(itertools.product((0, 1), repeat=count))
    held = sum(rank <= sum(below) <= count - rank for below in sides)
    assert coverage(count, rank) == pytest.approx(held / len(sides))


def test_nothing_is_summarized_as_nothing() -> None:
    assert summary([]) is None


def test_ratios_are_of_the_same_round_so_a_drifting_machine_does_not_widen_them() -> None:
    statistics = Statistics(made(noise=0))
    value = statistics.value("flows", "nftables", 64)
    ratio = statistics.ratio("flows", "nftables", 64)
    assert value is not None
    assert ratio is not None
    assert value.high / value.low > 1.5
    assert ratio.low == pytest.approx(0.875)
    assert ratio.high == pytest.approx(0.875)


def test_ratios_are_to_no_nat_with_tracking_and_to_the_limit_without() -> None:
    statistics = Statistics(made(noise=0))
    reference = statistics.ratio("flows", "bpf+ct", 64)
    limit = statistics.ratio("flows", "bpf+ct", 64, "none")
    assert reference is not None
    assert limit is not None
    assert reference.median == pytest.approx(0.95)
    assert limit.median == pytest.approx(0.95 / 1.3)


def test_a_failed_run_gives_no_value_but_its_sentence() -> None:
    failed = {(2, "flows", "ipset", 64): "12 packets were lost"}
    statistics = Statistics(made(failed=failed))
    found = statistics.value("flows", "ipset", 64)
    assert found is not None
    assert found.count == 4
    assert statistics.reason("flows", "ipset", 64) == "round 2: 12 packets were lost"


def test_a_round_without_reference_has_no_ratio() -> None:
    failed = {(2, "flows", "none+ct", 0): "12 packets were lost"}
    found = Statistics(made(failed=failed)).ratio("flows", "ipset", 64)
    assert found is not None
    assert found.count == 4


def test_bytes_have_no_ratio_for_they_do_not_depend_on_how_fast_a_machine_is() -> None:
    statistics = Statistics(made())
    assert statistics.ratio("memory", "ipset", 64) is None
    assert statistics.basis("memory") is None
    assert statistics.ranking("memory", 64).summaries["ipset"].median > 1e6


def test_what_no_nat_has_nothing_of_is_ranked_by_value() -> None:
    statistics = Statistics(made())
    assert statistics.basis("load") is None
    assert statistics.ratio("load", "ipset", 64) is None
    assert statistics.ranking("load", 64).summaries["ipset"].count == 5


def test_without_tracked_no_nat_the_ratios_are_to_the_limit_and_without_both_there_are_none() -> (
    None
):
    untracked = [mode for mode in MODES if mode.name != "none+ct"]
    backends = [mode for mode in MODES if mode.backend]
    assert Statistics(made(modes=untracked)).basis("flows") == "none"
    assert Statistics(made(modes=backends)).basis("flows") is None


def test_the_best_and_all_that_overlap_it_are_first() -> None:
    statistics = Statistics(made())
    ranking = statistics.ranking("flows", 64, statistics.contenders())
    assert ranking.order[:3] == ("bpf+ct", "nftables", "ipset")
    assert ranking.first == ("bpf+ct",)
    assert ranking.ties("nftables") == ("ipset",)
    assert ranking.ties("ipset") == ("nftables",)
    assert ranking.ties("bpf+ct") == ()


def test_less_wins_where_less_is_better() -> None:
    ranking = Statistics(made(measures=[LATENCY])).ranking("latency-p99", 64, ["ipset", "bpf+ct"])
    assert ranking.order == ("bpf+ct", "ipset")
    assert ranking.summaries["bpf+ct"].median > 1


def test_a_tie_is_not_carried_from_one_pair_to_the_next() -> None:
    def steps(measure: str, mode: str, cidrs: int) -> float:
        return {"ipset": 0.87, "nftables": 0.885, "bpf+ct": 0.9}.get(mode, 1.0)

    ranking = Statistics(made(levels=steps)).ranking("flows", 64, ["ipset", "nftables", "bpf+ct"])
    assert ranking.first == ("bpf+ct", "nftables")
    assert ranking.ties("nftables") == ("bpf+ct", "ipset")
    assert ranking.ties("ipset") == ("nftables",)


@pytest.mark.parametrize("rounds", [1, 2])
def test_fewer_than_three_rounds_tell_nothing_apart_nor_that_anything_ties(rounds: int) -> None:
    statistics = Statistics(made(rounds=rounds, noise=0))
    ranking = statistics.ranking("flows", 64)
    assert ranking.first == ()
    one = ranking.summaries["bpf+ct"]
    assert not one.ties(one)


def test_a_mode_with_too_few_rounds_neither_leads_nor_ties() -> None:
    failed = {(number, "flows", "bpf+ct", 64): "lost" for number in (1, 2, 3)}
    statistics = Statistics(made(failed=failed))
    ranking = statistics.ranking("flows", 64, statistics.contenders())
    assert "bpf+ct" in ranking.order
    assert ranking.first == ("nftables", "ipset")


def test_scaling_is_within_a_round() -> None:
    statistics = Statistics(made(noise=0))
    flat = statistics.scaling("flows", "nftables", 3, 1000)
    falls = statistics.scaling("flows", "iptables-nft", 3, 1000)
    assert flat is not None
    assert falls is not None
    assert flat.low == pytest.approx(1)
    assert flat.high == pytest.approx(1)
    assert falls.high == pytest.approx(1.03 / 11)


def test_sizes_are_those_that_were_tried_even_where_all_failed() -> None:
    failed = {(number, "flows", "ipset", 1000): "lost" for number in range(1, 6)}
    results = made(measures=[FLOWS], failed=failed, modes=MODES[4:5])
    statistics = Statistics(results)
    assert statistics.sizes("flows") == [3, 64, 1000]
    assert statistics.sizes("flows", "ipset") == [3, 64, 1000]
    assert statistics.value("flows", "ipset", 1000) is None


def test_a_measure_that_is_not_for_a_mode_is_told_from_one_that_it_should_have() -> None:
    def levels(measure: str, mode: str, cidrs: int) -> float | None:
        of_bpf_alone = measure == "latency-p99" and mode != "bpf"
        return None if of_bpf_alone or mode == "ipset" else usual(measure, mode, cidrs)

    results = made(levels=levels)
    statistics = Statistics(results)
    assert statistics.takes_part("latency-p99", "bpf")
    assert not statistics.takes_part("latency-p99", "nftables")
    assert statistics.takes_part("latency-p99", "ipset")  # of which there is nothing else either
    latency = next(one for one in tables(statistics) if one.title.startswith("Latency"))
    assert {row[0] for row in latency.rows} == {"bpf", "ipset"}
    # What no mode with connection tracking has is no plot.
    run = [mode for mode in MODES if mode.name != "ipset"]
    drawn = {chart.name for chart in charts(Statistics(made(levels=levels, modes=run)))}
    assert "flows-64" in drawn
    assert "latency-p99-64" not in drawn


def test_a_missing_value_has_a_reason() -> None:
    failed = {(number, "flows", "ipset", 64): "packets were lost" for number in range(1, 6)}
    statistics = Statistics(made(failed=failed))
    assert statistics.reason("flows", "ipset", 64) == "round 1: packets were lost"
    # Another measure has reasons of its own.
    assert statistics.reason("replies", "ipset", 64) == "not measured"
    unloaded = Statistics(made(failed={(1, "load", "ipset", 64): "it is refused"}))
    assert unloaded.reason("replies", "ipset", 64) == "round 1: it is refused"
    assert statistics.reason("flows", "iptables-nft", 100_000) == "not measured"

    wrong = [Equality("ipset", 3, 10, ("10.0.0.1: expected a, seen b",))]
    unequal = Statistics(replace(made(), equality=wrong))
    assert "decides otherwise" in unequal.reason("flows", "ipset", 3)

    stopped = Statistics(without(made(), after=(1, "iptables-nft")))
    assert stopped.reason("flows", "ipset", 64) == "stopped before"


def test_without_tracked_modes_those_without_tracking_contend() -> None:
    assert "bpf" not in Statistics(made()).contenders()
    only = Statistics(made(modes=[MODES[0], MODES[6]], measures=[FLOWS, MEMORY, LOAD]))
    assert only.contenders() == ("bpf",)
    assert usual("flows", "bpf", 3) == 1.25
