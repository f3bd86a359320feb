"""Two lists of lines as a unified diff, in time that grows with their length.

difflib looks for the longest run that two lists share, and again on either side of it:
where every tenth of 16,000 rules changes that takes 8 s, and four times as much for twice
the rules. Lines of rules and sets hardly ever repeat. So those that are there once on each
side are matched, as many as keep their order; lines next to them that are equal follow.
"""

from __future__ import annotations

import difflib
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence

_CONTEXT = 3


def unified(before: Sequence[str], after: Sequence[str], old: str, new: str) -> list[str]:
    """Return the diff with three lines around each change; empty where nothing changes.

    Args:
        before: lines without line ends.
        after: lines without line ends.
        old: what to call the lines before.
        new: what to call those after.
    """
    lines: list[str] = []
    for group in _Matcher(before, after).get_grouped_opcodes(_CONTEXT):
        if not lines:
            lines += (f"--- {old}", f"+++ {new}")
        (_, i1, _, j1, _), (_, _, i2, _, j2) = group[0], group[-1]
        lines.append(f"@@ -{_span(i1, i2)} +{_span(j1, j2)} @@")
        for tag, a1, a2, b1, b2 in group:
            if tag == "equal":
                lines += (f" {line}" for line in before[a1:a2])
            else:
                lines += (f"-{line}" for line in before[a1:a2])
                lines += (f"+{line}" for line in after[b1:b2])
    return lines


def _span(start: int, stop: int) -> str:
    """Return where lines stand, as diff(1) writes it: an empty span by the line before it."""
    if stop - start == 1:
        return str(start + 1)
    return f"{start + (stop > start)},{stop - start}"


class _Matcher(difflib.SequenceMatcher[str]):
    """difflib's grouping of changes, over matches that are found another way."""

    def __init__(self, before: Sequence[str], after: Sequence[str]) -> None:
        super().__init__(None, (), (), autojunk=False)
        self._sides = before, after

    def get_matching_blocks(self) -> list[difflib.Match]:
        """Return the runs of lines that both sides share, in order, and an empty one."""
        before, after = self._sides
        blocks: list[difflib.Match] = []
        i = j = 0  # the first lines that no block has
        for mine, theirs in (*_anchors(before, after), (len(before), len(after))):
            if mine < i:
                continue  # taken already, with the block before it
            start, other = mine, theirs
            while start > i and other > j and before[start - 1] == after[other - 1]:
                start, other = start - 1, other - 1
            stop, end = mine, theirs
            while stop < len(before) and end < len(after) and before[stop] == after[end]:
                stop, end = stop + 1, end + 1
            if stop > start:
                blocks.append(difflib.Match(start, other, stop - start))
                i, j = stop, end
        return [*blocks, difflib.Match(len(before), len(after), 0)]


def _anchors(before: Sequence[str], after: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield positions of lines that are there once on each side, ascending on both.

    As many as there can be: a longest ascending subsequence, by patience sorting.
    """
    counts, others = Counter(before), Counter(after)
    places = {line: place for place, line in enumerate(after)}
    pairs = [
        (place, places[line])
        for place, line in enumerate(before)
        if counts[line] == 1 and others[line] == 1
    ]
    if before[:1] == after[:1] != []:
        yield 0, 0  # what both begin with is theirs, also where it is repeated later
    ends: list[int] = []  # for each length, the lowest position at which a sequence ends
    piles: list[int] = []  # and which pair that is
    previous: list[int] = []
    for number, (_, place) in enumerate(pairs):
        length = bisect_left(ends, place)
        ends[length : length + 1] = [place]
        piles[length : length + 1] = [number]
        previous.append(piles[length - 1] if length else -1)
    number = piles[-1] if piles else -1
    found: list[tuple[int, int]] = []
    while number >= 0:
        found.append(pairs[number])
        number = previous[number]
    yield from reversed(found)
