from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ipmasq_agent.bench import results as files
from ipmasq_agent.bench.folder import write_folder
from ipmasq_agent.bench.markdown import markdown as rendered
from ipmasq_agent.bench.modes import MODES
from ipmasq_agent.bench.report import report
from ipmasq_agent.bench.results import Equality, Results
from ipmasq_agent.errors import BenchError, MissingTool
from tests.unit.bench.made import FLOWS, LATENCY, LOAD, Levels, made, usual, without


def levels(**of_mode: float) -> Levels:
    def found(measure: str, mode: str, cidrs: int) -> float:
        return of_mode.get(mode.replace("+", "_").replace("-", "_"), 1.0)

    return found


def conclusions(results: Results) -> list[str]:
    return list(report(results).conclusions)


def markdown(results: Results, *, plots: bool = False) -> str:
    return rendered(report(results), plots=plots)


def said(results: Results) -> str:
    return "\n".join(conclusions(results))


def test_one_winner_is_first_and_the_worst_last() -> None:
    first = conclusions(made())[0]
    assert first == (
        "With 64 CIDRs, bpf+ct is first in new UDP flows: 95.5 % of a node without NAT "
        "(93.1 to 96.4 %); iptables-nft is last with 48.5 %."
    )


def test_overlapping_leaders_tie_for_first_and_nobody_is_called_first() -> None:
    tied = made(
        levels=levels(bpf_ct=0.9, nftables=0.89, ipset=0.7, iptables_legacy=0.6, iptables_nft=0.5)
    )
    first = conclusions(tied)[0]
    assert "bpf+ct and nftables tie for first in new UDP flows: 88.6 to 90.5 % of" in first
    assert "is first in new UDP flows" not in said(tied)


def test_all_alike_tie_and_nobody_is_last() -> None:
    first = conclusions(made(levels=levels()))[0]
    assert "all five tie in new UDP flows" in first
    assert "last" not in first


def test_the_last_ones_tie_where_they_overlap() -> None:
    modes = [mode for mode in MODES if "iptables" not in mode.name]
    first = conclusions(made(modes=modes, measures=[FLOWS]))[0]
    assert re.search(r"; (ipset and nftables|nftables and ipset) tie for last with 8\d", first)


def test_a_chain_falls_and_sets_stay_only_where_intervals_say_so() -> None:
    text = said(made(measures=[FLOWS]))
    assert "fall as the policy grows" in text
    fall = (
        r"with iptables-nft from 7\d\.\d % with 3 CIDRs to 48\.5 % with 64 and 7\.\d+ % with 1,000"
    )
    assert re.search(fall, text)
    assert "within 10 % from 3 to 1,000 CIDRs with ipset, nftables and bpf+ct." in text
    noisy = said(made(measures=[FLOWS], noise=0.2))
    assert "the same within" not in noisy


def test_a_mode_that_falls_a_little_is_neither_steady_nor_falling_as_far_as_one_can_tell() -> None:
    def little(measure: str, mode: str, cidrs: int) -> float:
        return 0.9 if cidrs == 1000 else 1.0

    text = said(made(measures=[FLOWS], levels=little, noise=0.03))
    assert "fall as the policy grows" not in text
    assert "the same within" not in text


@pytest.mark.parametrize("rounds", [1, 2])
def test_too_few_rounds_make_no_statement_at_all(rounds: int) -> None:
    number = {1: "One round tells", 2: "Two rounds tell"}[rounds]
    assert conclusions(made(rounds=rounds)) == [f"{number} nothing apart, it takes three."]


def test_all_else_is_told_in_one_sentence_with_its_ties() -> None:
    (sentence,) = [line for line in conclusions(made()) if line.startswith("In all else")]
    assert "all five tie in throughput of one TCP stream" in sentence
    assert "bpf+ct is first in latency, 99th percentile" in sentence


def test_what_could_be_without_conntrack_is_told_apart_from_the_ranking() -> None:
    text = said(made(measures=[FLOWS]))
    assert "Without conntrack, bpf reaches 125 %" in text
    assert "bpf is first" not in text


def test_there_are_about_ten_sentences() -> None:
    assert 8 <= len(conclusions(made())) <= 12


def test_an_interruption_failures_and_wrong_decisions_come_before_any_figure() -> None:
    stopped = without(
        made(failed={(1, "flows", "ipset", 64): "12 packets were lost"}), after=(4, "bpf")
    )
    wrong = Equality("nftables", 3, 10, ("10.0.0.1: expected 192.0.2.1, seen 172.20.0.10",))
    results = replace(stopped, quick=True, equality=[*stopped.equality, wrong])
    lines = conclusions(results)
    assert lines[0] == (
        "nftables with 3 CIDRs decides otherwise than its document says: it was not measured."
    )
    assert lines[1].startswith("Stopped early (Ctrl-C in round 4 of 5)")
    assert re.match(r"1 of \d+ runs failed", lines[2])
    assert "short form" in lines[3]
    text = markdown(results)
    assert "4 of 5 rounds, interrupted" in text
    assert "nftables with 3 CIDRs: 10.0.0.1: expected 192.0.2.1, seen 172.20.0.10" in text
    assert "Round 1, ipset with 64 CIDRs, flows: 12 packets were lost" in text


def test_what_else_kept_the_machine_busy_comes_before_any_tie() -> None:
    results = replace(made(), disturbed=["the load was 14.0 on 2 CPUs when it began"])
    assert conclusions(results)[0] == (
        "Other work was in the way, which can make ties and orders: the load was 14.0 on 2 CPUs "
        "when it began."
    )
    assert conclusions(results)[1:] == conclusions(made())


def test_nothing_measured_says_so() -> None:
    assert conclusions(made(rounds=0)) == ["Nothing was measured."]
    assert "Nothing was measured" in markdown(made(rounds=0))


def cells(text: str, mode: str, cidrs: str) -> list[str]:
    (line,) = [one for one in text.splitlines() if one.startswith(f"| {mode} | {cidrs} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_tables_have_median_interval_ratios_ties_and_coverage() -> None:
    text = markdown(made(measures=[FLOWS]))
    assert cells(text, "nftables", "64") == [
        "nftables",
        "64",
        "563,000 flows/s",
        "424,000 to 700,000 flows/s",
        "87.1 % (86.2 to 89.3 %)",
        "67.3 % (67.3 to 67.3 %)",
        "ipset",
        "5 of 5 (94 %)",
    ]
    assert cells(text, "bpf+ct", "64")[6] == "-"


def test_a_missing_figure_is_a_dash_with_its_reason() -> None:
    failed = {(number, "flows", "ipset", 64): "9 packets | were lost" for number in range(1, 6)}
    row = markdown(made(measures=[FLOWS], failed=failed))
    assert "| ipset | 64 | - | round 1: 9 packets \\| were lost | - | - | - | 0 of 5 |" in row


def test_columns_without_figures_are_left_out() -> None:
    text = markdown(made(measures=[LOAD]))
    assert "| mode | CIDRs | median | interval | tie with | rounds (coverage) |" in text
    assert "| none |" not in text.partition("## The modes")[0]


def test_the_report_describes_machine_modes_method_limits_and_what_was_skipped() -> None:
    results = replace(made(measures=[FLOWS]), skipped=["ipset: it cannot be loaded here"])
    text = markdown(results, plots=True)
    for part in (
        "![New UDP flows. 64 CIDRs; share of no NAT with conntrack; longer is better. bpf+ct: "
        "95.5 %",
        "](flows-64.png)",
        "- ipset: it cannot be loaded here",
        "| kernel | Linux 6.18.5 (x86\\_64) |",
        "| ipset | iptables-nft with an ipset |",
        "8 x a \\<fast\\> one",
        "ratios travel to other machines, absolute figures do not",
        "20 combinations of mode and policy decided as their document says",
        "2026-05-04 12:30 +0200, 13 min, 5 rounds, complete",
    ):
        assert part in text


def test_the_folder_has_all_and_its_results_can_be_read_back(tmp_path: Path) -> None:
    results = made(measures=[FLOWS, LATENCY], sizes=(64,))
    written = write_folder(results, tmp_path / "a" / "b")
    assert [path.name for path in written] == [
        "results.json",
        "report.md",
        "flows-64.png",
        "latency-p99-64.png",
        "report.html",
    ]
    assert all(path.stat().st_size > 1000 for path in written)
    assert conclusions(files.read(written[0])) == conclusions(results)
    for name in re.findall(r"\]\((.*\.png)\)", written[1].read_text()):
        assert (written[1].parent / name).exists()


def test_results_are_kept_where_nothing_can_be_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingTool):
        write_folder(made(measures=[FLOWS]), tmp_path)
    assert (tmp_path / "results.json").exists()
    assert (tmp_path / "report.md").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BenchError, match=r"cannot write to .*file"):
        write_folder(made(rounds=0), tmp_path / "file")


def test_the_usual_levels_are_what_these_tests_rely_on() -> None:
    assert usual("flows", "bpf+ct", 64) == 0.95
