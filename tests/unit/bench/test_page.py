from __future__ import annotations

import base64
from dataclasses import replace

from ipmasq_agent.bench.page import page as rendered
from ipmasq_agent.bench.report import report
from ipmasq_agent.bench.results import Results
from tests.pages import Seen, asks_for_nothing
from tests.unit.bench.made import FLOWS, LATENCY, made, without


def page(results: Results) -> str:
    """The page, with the names of charts in place of their pictures."""
    said = report(results)
    return rendered(said, {chart.name: chart.name.encode() for chart in said.charts})


def seen(results: Results) -> Seen:
    return Seen(page(results))


def test_the_page_asks_for_nothing_from_elsewhere() -> None:
    asks_for_nothing(page(made(measures=[FLOWS])))


def test_pictures_are_inside_and_told_in_words() -> None:
    results = made(measures=[replace(FLOWS, title='"New" & <fast> flows')])
    charts, images = report(results).charts, seen(results).all("img")
    assert [image["alt"] for image in images] == [chart.alt for chart in charts]
    for image, chart in zip(images, charts, strict=True):
        data = (image["src"] or "").removeprefix("data:image/png;base64,")
        assert base64.b64decode(data) == chart.name.encode()


def test_the_answer_and_its_picture_come_before_all_else() -> None:
    results = made(measures=[FLOWS, LATENCY])
    text = page(results)
    answer = text.index(report(results).conclusions[0].replace(" %", "&nbsp;%"))
    assert answer < text.index("<img") < text.index("What it says") < text.index("All else")
    assert text.index("All else") < text.index(base64.b64encode(b"latency-p99-64").decode())


def test_an_interruption_is_told_before_the_first_picture() -> None:
    text = page(without(made(), after=(4, "ipset")))
    assert text.index("Ctrl-C in round 4 of 5") < text.index("<img")
    assert 'role="note"' in text


def test_one_round_gives_no_answer_but_says_so() -> None:
    text = page(made(rounds=1))
    assert 'class="answer"' not in text
    assert "One round tells nothing apart" in text


def test_what_comes_from_the_machine_is_text_and_never_markup() -> None:
    results = replace(made(measures=[FLOWS]), skipped=["<script>alert(1)</script>"])
    found = seen(results)
    assert not found.all("script")
    assert "<script>alert(1)</script>" in found.text["li"]
    assert "8 x a <fast> one & cool" in found.text["td"]


def test_a_phone_takes_its_own_width_and_tables_scroll_inside_themselves() -> None:
    found = seen(made())
    viewport = next(attrs for attrs in found.all("meta") if attrs.get("name") == "viewport")
    assert viewport["content"] == "width=device-width, initial-scale=1"
    wide = [attrs for attrs in found.all("div") if attrs.get("class") == "wide"]
    assert len(wide) == len(made().measures)
    assert ".wide { overflow-x: auto" in page(made())


def test_a_page_without_any_figure_is_a_page_still() -> None:
    found = Seen(page(made(rounds=0)))
    assert "Nothing was measured." in found.text["p"]
