"""A unified diff is right, short, and does not take for ever."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from ipmasq_agent.answers.unified import unified

LINES = st.lists(st.sampled_from("abcdefghij"), max_size=14)
DISTINCT = st.lists(st.sampled_from("abcdefghijklmnopqrst"), max_size=14, unique=True)
_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")


def patched(before: Sequence[str], diff: Sequence[str]) -> list[str]:
    """What patch(1) makes of it."""
    result: list[str] = []
    taken = 0
    for line in diff[2:]:
        hunk = _HUNK.fullmatch(line)
        if hunk:
            start = int(hunk[1]) - (hunk[2] != "0")
            result += before[taken:start]
            taken = start
            assert len(result) == int(hunk[3]) - (hunk[4] != "0")
        elif line[0] == "+":
            result.append(line[1:])
        else:
            assert before[taken] == line[1:]
            taken += 1
            result += line[1:] if line[0] == " " else ()
    return result + list(before[taken:])


def changed(diff: Sequence[str]) -> int:
    return sum(line[0] in "+-" for line in diff[2:])


@given(LINES, LINES)
def test_a_diff_leads_from_the_lines_before_to_those_after(
    before: list[str], after: list[str]
) -> None:
    diff = unified(before, after, "now", "then")
    assert patched(before, diff) == after
    assert (diff == []) == (before == after)
    assert diff[:2] in ([], ["--- now", "+++ then"])


@given(DISTINCT, DISTINCT)
def test_of_lines_that_never_repeat_a_diff_changes_no_more_than_it_must(
    before: list[str], after: list[str]
) -> None:
    diff = unified(before, after, "now", "then")
    usual = difflib.unified_diff(before, after, "now", "then", lineterm="")
    assert changed(diff) <= changed(list(usual))


@given(DISTINCT, st.data())
def test_one_change_is_shown_as_diff_shows_it(before: list[str], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(before)))
    after = [*before[:place], *data.draw(st.sampled_from([[], ["X"]])), *before[place + 1 :]]
    usual = difflib.unified_diff(before, after, "now", "then", lineterm="")
    assert unified(before, after, "now", "then") == list(usual)


def test_very_many_changes_far_apart_are_found_in_no_time() -> None:
    # difflib needs five minutes for these; the suite's time limit would tell.
    before = [f"add set 10.{n >> 8}.{n & 255}.0/24" for n in range(100_000)]
    after = [line.replace("/24", "/25") if n % 10 == 0 else line for n, line in enumerate(before)]
    assert changed(unified(before, after, "now", "then")) == 20_000
