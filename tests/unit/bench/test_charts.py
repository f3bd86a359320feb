from __future__ import annotations

import io
import itertools
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from ipmasq_agent.bench import drawing
from ipmasq_agent.bench.charts import Bar, Chart, bars, charts, points
from ipmasq_agent.bench.drawing import colour, draw, spread
from ipmasq_agent.bench.modes import MODES
from ipmasq_agent.bench.statistics import Statistics
from ipmasq_agent.bench.wording import NO_NAT, Scale
from ipmasq_agent.errors import MissingTool
from tests.unit.bench.made import FLOWS, LATENCY, LOAD, MEMORY, made, usual, without

BY_NAME = {mode.name: mode for mode in MODES}
OF_NO_NAT = Scale(FLOWS, "none+ct")


def rows(**how: Any) -> dict[str, Bar]:
    return {bar.mode: bar for bar in bars(Statistics(made(**how)), OF_NO_NAT, 64)}


def test_bars_say_first_where_one_is_and_tie_where_intervals_overlap_and_nowhere_else() -> None:
    notes = {mode: row.note for mode, row in rows().items()}
    assert notes == {
        "bpf+ct": "first",
        "nftables": "tie with ipset",
        "ipset": "tie with nftables",
        "iptables-legacy": "",
        "iptables-nft": "",
        "none": "without conntrack",
        "bpf": "without conntrack",
    }


def test_bars_that_all_overlap_tie_for_first() -> None:
    found = rows(levels=lambda *_: 0.8)
    assert {found[mode].note for mode in found if found[mode].note != "without conntrack"} == {
        "tie for first"
    }


def test_one_round_makes_no_first_and_no_tie() -> None:
    found = rows(rounds=1)
    assert found["bpf+ct"].note == "one round tells nothing apart"
    assert not any("tie " in row.note or "first" in row.note for row in found.values())


def test_a_mode_whose_runs_failed_has_a_row_with_the_reason_and_no_bar() -> None:
    failed = {(number, "flows", "ipset", 64): "9 packets were lost" for number in range(1, 6)}
    row = rows(failed=failed)["ipset"]
    assert (row.found, row.value, row.note) == (None, "no figure", "round 1: 9 packets were lost")


def test_lines_have_gaps_where_figures_are_missing_and_leave_out_what_they_are_held_against() -> (
    None
):
    failed = {(number, "flows", "ipset", 64): "lost" for number in range(1, 6)}
    found = points(Statistics(made(failed=failed)), OF_NO_NAT)
    assert sorted(found["ipset"]) == [3, 1000]
    assert "none+ct" not in found
    assert found["none"][3] == found["none"][1000]


def test_names_beside_lines_keep_their_distance_and_their_order() -> None:
    placed = spread([0.0, 0.01, 0.5, 0.99, 0.995], 0.1)
    assert placed == sorted(placed)
    gaps = [after - before for before, after in itertools.pairwise(placed)]
    assert min(gaps) == pytest.approx(0.1)
    assert placed[-1] == 1.0
    assert placed[2] == 0.5


@pytest.fixture(scope="module")
def drawn() -> dict[str, Chart]:
    return {one.name: one for one in charts(Statistics(made(measures=[FLOWS, LATENCY, LOAD])))}


def test_headlines_come_first_then_a_plot_a_measure_and_lines_where_there_are_sizes(
    drawn: dict[str, Chart],
) -> None:
    assert list(drawn) == [
        "flows-64",
        "latency-p99-64",
        "load-64",
        "flows-by-cidrs",
        "load-by-cidrs",
    ]
    assert [chart.name for chart in drawn.values() if chart.headline] == [
        "flows-64",
        "flows-by-cidrs",
    ]


def test_plots_are_narrow_pictures_in_the_colours_of_their_modes(drawn: dict[str, Chart]) -> None:
    for name, chart in drawn.items():
        picture = Image.open(io.BytesIO(draw(chart))).convert("RGB")
        assert picture.format is None or picture.format == "PNG"
        assert 700 <= picture.width <= 900
        colours = {colour for _, colour in picture.getcolors(1 << 24) or []}
        for mode in ("ipset", "nftables", "iptables-nft"):
            wanted = colour(BY_NAME[mode]).lstrip("#")
            assert tuple(bytes.fromhex(wanted)) in colours, f"{mode} is not in {name}"


def test_what_is_held_against_looks_otherwise_than_what_is_without_conntrack() -> None:
    assert len(set(NO_NAT.values())) == len(NO_NAT)
    # On, off: dots, where the lines of what does without connection tracking have dashes.
    on, off = drawing._DOTTED["linestyle"][1]
    assert on < off


def test_what_a_picture_shows_is_told_in_words_too(drawn: dict[str, Chart]) -> None:
    alt = drawn["flows-64"].alt
    assert "nftables: 87.1 % (86.2 to 89.3 %), tie with ipset" in alt
    assert "64 CIDRs; share of no NAT with conntrack; longer is better" in alt
    assert "times that of no NAT with conntrack; shorter is better" in drawn["latency-p99-64"].alt
    assert "iptables-nft: 7.24 % with 1,000 CIDRs" in drawn["flows-by-cidrs"].alt


def test_no_line_is_drawn_through_what_was_not_measured() -> None:
    def across(failed: dict[tuple[int, str, str, int], str]) -> int:
        """Return over how many pixels there is something in the colour of ipset."""
        results = made(measures=[FLOWS], modes=[MODES[1], MODES[4]], failed=failed)
        *_, chart = charts(Statistics(results))
        picture = Image.open(io.BytesIO(draw(chart))).convert("RGB")
        pixels = picture.load()
        assert pixels is not None
        wanted = tuple(bytes.fromhex(colour(BY_NAME["ipset"]).lstrip("#")))
        return sum(
            any(pixels[x, y] == wanted for y in range(picture.height)) for x in range(picture.width)
        )

    assert across({(number, "flows", "ipset", 64): "lost" for number in range(1, 6)}) < 120
    assert across({}) > 350


def test_nothing_is_drawn_beyond_the_edge_whatever_the_title() -> None:
    long = replace(FLOWS, title="Time that passes until a change of the whole policy holds")
    (chart,) = charts(Statistics(made(sizes=(64,), measures=[long])))
    picture = Image.open(io.BytesIO(draw(chart))).convert("L")
    edges = [picture.crop((0, 0, 6, picture.height))]
    edges.append(picture.crop((picture.width - 6, 0, picture.width, picture.height)))
    assert all(edge.getextrema() == (255, 255) for edge in edges)


@pytest.mark.parametrize(
    "results",
    [
        made(rounds=0),
        without(made(measures=[FLOWS, MEMORY]), after=(1, "iptables-nft")),
        made(measures=[FLOWS], modes=MODES[4:5], rounds=2),
        made(measures=[MEMORY], levels=lambda *_: -1.0),
        made(measures=[FLOWS], levels=lambda m, mode, c: 0.0 if c else usual(m, mode, c)),
    ],
    ids=["nothing", "stopped", "one mode", "negative", "zero"],
)
def test_whatever_there_is_can_be_drawn(results: Any) -> None:
    for chart in charts(Statistics(results)):
        assert draw(chart).startswith(b"\x89PNG")


def test_without_matplotlib_the_remedy_says_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingTool, match="bench needs matplotlib") as failed:
        draw(next(charts(Statistics(made(measures=[FLOWS])))))
    assert failed.value.remedy is not None
    assert failed.value.remedy.startswith("`make bench`, in a clone")


def test_matplotlib_is_not_imported_until_something_is_drawn() -> None:
    script = "import sys, ipmasq_agent.bench.folder; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
