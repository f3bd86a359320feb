"""Durations mean and look what they do in Go (documentation and tests of its time package)."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipmasq_agent.config.durations import parse_duration, show_duration

SECOND = 1_000_000_000
MINUTE, HOUR = 60 * SECOND, 3600 * SECOND


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("0", 0),
        ("-0", 0),
        ("+0", 0),
        ("0s", 0),
        ("5s", 5 * SECOND),
        ("30s", 30 * SECOND),
        ("1478s", 1478 * SECOND),
        ("-5s", -5 * SECOND),
        ("+5s", 5 * SECOND),
        ("5.0s", 5 * SECOND),
        ("5.6s", 5_600_000_000),
        ("5.s", 5 * SECOND),
        (".5s", SECOND // 2),
        ("1.004s", 1_004_000_000),
        ("100.00100s", 100_001_000_000),
        ("1.5h", 90 * MINUTE),
        ("10ns", 10),
        ("11us", 11_000),
        ("12µs", 12_000),
        ("12\N{GREEK SMALL LETTER MU}s", 12_000),
        ("13ms", 13_000_000),
        ("1h5m", 65 * MINUTE),
        ("3h30m", 210 * MINUTE),
        ("4m10.5s", 250_500_000_000),
        ("-2m3.4s", -123_400_000_000),
        ("1h2m3s4ms5us6ns", HOUR + 2 * MINUTE + 3 * SECOND + 4_005_006),
        ("39h9m14.425s", 39 * HOUR + 9 * MINUTE + 14_425_000_000),
        ("52763797000ns", 52_763_797_000),
        ("1s1s", 2 * SECOND),
        ("0.3333333333333333333h", 20 * MINUTE),
        ("0.100000000000000000000h", 6 * MINUTE),
        ("0.9223372036854775807s", 922_337_203),
        ("9007199254740993ns", (1 << 53) + 1),
        ("9223372036854775807ns", (1 << 63) - 1),
        ("9223372036s854ms775us807ns", (1 << 63) - 1),
        ("-9223372036854775808ns", -(1 << 63)),
        ("0000000000000000000000000000001s", SECOND),
    ],
)
def test_go_durations_are_read(text: str, nanoseconds: int) -> None:
    assert parse_duration(text) == nanoseconds


@pytest.mark.parametrize(
    "text",
    [
        *("", "3", "-", "+", "s", ".", "-.", ".s", "+.s", "1d", "5 s", " 5s", "5s ", "5S"),
        *("--5s", "+-5s", "1h 5m", "1e3s", "1,5s", "1.5.5s", "5mx", "1m5", "0x5s", "-1:00"),
        *("9223372036854775808ns", "9223372036854775.808us", "-9223372036854775809ns"),
        *("3000000h", "\N{FULLWIDTH DIGIT ONE}s", "9" * 5_000 + "s", "60" * 5_000, "1s1s1sx"),
    ],
)
def test_what_go_refuses_is_refused_in_words(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a duration like|is longer than"):
        parse_duration(text)


def test_a_bare_number_gets_the_unit_that_was_meant() -> None:
    with pytest.raises(ValueError, match="did you mean 60s"):
        parse_duration("60")


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0s"),
        (1, "1ns"),
        (1_100, "1.1µs"),
        (2_200_000, "2.2ms"),
        (3_300_000_000, "3.3s"),
        (60 * SECOND, "1m0s"),
        (245_000_000_000, "4m5s"),
        (245_001_000_000, "4m5.001s"),
        (18_367_001_000_000, "5h6m7.001s"),
        (480_000_000_001, "8m0.000000001s"),
        (HOUR, "1h0m0s"),
        (-1_500_000_000, "-1.5s"),
        ((1 << 63) - 1, "2562047h47m16.854775807s"),
        (-(1 << 63), "-2562047h47m16.854775808s"),
    ],
)
def test_durations_are_shown_as_go_shows_them(nanoseconds: int, text: str) -> None:
    assert show_duration(nanoseconds) == text


@given(st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(-(10**10), 10**10))
def test_a_duration_that_is_shown_reads_back(nanoseconds: int) -> None:
    # A fraction of a second has at most nine digits: exact in Go's floating point too.
    assert parse_duration(show_duration(nanoseconds)) == nanoseconds


@given(st.text(alphabet="0123456789.+-nuµmsh ", max_size=30) | st.text(max_size=10))
def test_any_text_is_a_duration_or_a_refusal(text: str) -> None:
    try:
        said = str(parse_duration(text))
    except ValueError as refusal:
        said = str(refusal)
    assert re.match(r"-?\d+$|is ", said)
