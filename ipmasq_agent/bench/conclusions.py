"""What the figures say, in about ten sentences, for who reads no table.

A sentence is made only where the intervals carry it: who is first is apart from the others,
what falls or stays does so with its whole interval.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ipmasq_agent.bench.results import REFERENCE
from ipmasq_agent.bench.statistics import HEADLINES, Ranking, Statistics
from ipmasq_agent.bench.wording import Scale, in_words, inside, listed, too_few, with_cidrs

_STEADY = 0.1  # by this share may what is steady change, from the fewest CIDRs to the most
_STEPS = 2  # of a fall, the last


def notices(statistics: Statistics) -> Iterator[str]:
    """Yield what to know before any figure is read."""
    results = statistics.results
    for one in results.equality:
        if one.wrong:
            mode = with_cidrs(statistics.modes[one.mode], one.cidrs)
            yield f"{mode} decides otherwise than its document says: it was not measured."
    if results.stopped:
        yield f"Stopped early ({results.stopped}): the figures are of what was measured until then."
    if results.disturbed:
        yield (
            f"Other work was in the way, which can make ties and orders: "
            f"{'; '.join(results.disturbed)}."
        )
    failed = sum(run.problem is not None for run in results.runs)
    if failed:
        yield f"{failed} of {len(results.runs)} runs failed; such a run gives no figure."
    if results.quick:
        yield "This is the short form, with few measures and short runs."
    rounds = max((run.round for run in results.runs), default=0)
    if not rounds:
        yield "Nothing was measured."
    elif not any(
        statistics.ranking(name, cidrs).first
        for name in statistics.measures
        for cidrs in statistics.sizes(name) or [0]
    ):
        yield f"{too_few(rounds).capitalize()}."


def sentences(statistics: Statistics) -> Iterator[str]:
    """Yield what the figures say, the most important first; nothing where they say nothing."""
    headlines = [name for name in HEADLINES if statistics.sizes(name)]
    for name in headlines:
        yield from _standing(statistics, name, statistics.headline_size(name))
    for name in headlines:
        if (most := statistics.sizes(name)[-1]) != statistics.headline_size(name):
            yield from _standing(statistics, name, most)
    for name in headlines:
        yield from _falling(statistics, name)
        yield from _steady(statistics, name)
    yield from _others(statistics)
    for name in headlines:
        yield from _untracked(statistics, name)


def _standing(statistics: Statistics, name: str, cidrs: int | None) -> Iterator[str]:
    """Yield who is first, and who is last where that is told apart."""
    ranking = statistics.ranking(name, cidrs or 0, statistics.contenders())
    scale = Scale(statistics.measures[name], ranking.to)
    if not ranking.first:
        return

    def reached(modes: Sequence[str]) -> str:
        medians = [ranking.summaries[mode].median for mode in modes]
        return scale.figure(*([min(medians), max(medians)] if len(modes) > 1 else medians))

    said = f"With {cidrs:,} CIDRs, {_who(ranking)} in {inside(scale.measure.title)}: "
    said += reached(ranking.first) + scale.against()
    if len(ranking.first) == 1:
        said += f" ({scale.interval(ranking.summaries[ranking.first[0]])})"
    if not set(ranking.first) & set(ranking.last):
        verb = "tie for last" if len(ranking.last) > 1 else "is last"
        said += f"; {listed(ranking.last)} {verb} with {reached(ranking.last)}"
    yield f"{said}."


def _falling(statistics: Statistics, name: str) -> Iterator[str]:
    """Yield the modes that lose speed as the policy grows, and how much."""
    scale = Scale(statistics.measures[name], statistics.basis(name))
    falls = []
    for mode in statistics.contenders():
        sizes = statistics.sizes(name, mode)
        if not _changes(statistics, name, mode, worse=True):
            continue
        found = {size: statistics.ranking(name, size).summaries.get(mode) for size in sizes}
        told_at = [f"{scale.median(one)} with {size:,}" for size, one in found.items() if one]
        steps = told_at[1:][-_STEPS:]
        falls.append(f"with {mode} from {told_at[0]} CIDRs to {listed(steps)}")
    if falls:
        verb = "fall" if scale.measure.more_is_better else "rise"
        against = f", in shares{scale.against()}" if scale.to else ""
        yield f"{scale.measure.title} {verb} as the policy grows{against}: {'; '.join(falls)}."


def _steady(statistics: Statistics, name: str) -> Iterator[str]:
    """Yield the modes for which the size of the policy makes no difference."""
    modes = [m for m in statistics.contenders() if _changes(statistics, name, m, worse=False)]
    by_range: dict[tuple[int, int], list[str]] = {}
    for mode in modes:
        sizes = statistics.sizes(name, mode)
        by_range.setdefault((sizes[0], sizes[-1]), []).append(mode)
    for (few, many), steady in by_range.items():
        yield (
            f"{statistics.measures[name].title}: the same within {100 * _STEADY:.0f} % from "
            f"{few:,} to {many:,} CIDRs with {listed(steady)}."
        )


def _changes(statistics: Statistics, name: str, mode: str, *, worse: bool) -> bool:
    """Return whether all of the interval says that a mode gets worse, or that it stays."""
    sizes = statistics.sizes(name, mode)
    if len(sizes) < 2:
        return False
    found = statistics.scaling(name, mode, sizes[0], sizes[-1])
    if found is None or not found.enough:
        return False
    if not worse:
        return found.low >= 1 - _STEADY and found.high <= 1 + _STEADY
    if statistics.measures[name].more_is_better:
        return found.high < 1 - _STEADY
    return found.low > 1 + _STEADY


def _others(statistics: Statistics) -> Iterator[str]:
    """Yield who is first in all else, in one sentence for each number of CIDRs."""
    by_size: dict[int, dict[str, list[str]]] = {}
    for name, measure in statistics.measures.items():
        cidrs = statistics.headline_size(name)
        if name in HEADLINES or cidrs is None:
            continue
        ranking = statistics.ranking(name, cidrs, statistics.contenders())
        if ranking.first and len(ranking.order) > 1:
            who = _who(ranking)
            by_size.setdefault(cidrs, {}).setdefault(who, []).append(inside(measure.title))
    for cidrs, by_first in by_size.items():
        said = "; ".join(f"{who} in {listed(titles)}" for who, titles in by_first.items())
        yield f"In all else, {cidrs:,} CIDRs: {said}."


def _untracked(statistics: Statistics, name: str) -> Iterator[str]:
    """Yield what modes reach that do without connection tracking, where it may be done without."""
    scale, cidrs = Scale(statistics.measures[name], REFERENCE), statistics.headline_size(name) or 0
    if statistics.basis(name) != REFERENCE:
        return
    for mode in statistics.modes.values():
        found = statistics.ratio(name, mode.name, cidrs)
        if mode.backend and not mode.tracking and found and found.enough:
            yield (
                f"Without conntrack, {mode.name} reaches {scale.median(found)}{scale.against()} "
                f"that has it, in {inside(scale.measure.title)} with {cidrs:,} CIDRs "
                f"({scale.interval(found)})."
            )


def _who(ranking: Ranking) -> str:
    first, count = ranking.first, len(ranking.order)
    if count == 1:
        return f"{first[0]} is alone"
    if len(first) == 1:
        return f"{first[0]} is first"
    if len(first) == count:
        return "both tie" if count == 2 else f"all {in_words(count)} tie"
    return f"{listed(first)} tie for first"
