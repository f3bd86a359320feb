"""The report in words and tables, as ``report.md``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from ipmasq_agent.bench.conclusions import notices, sentences
from ipmasq_agent.bench.results import LIMIT, REFERENCE, Results
from ipmasq_agent.bench.statistics import COVERAGE, ENOUGH, Statistics, summarize
from ipmasq_agent.bench.tables import Table, tables
from ipmasq_agent.bench.wording import in_words, with_cidrs

_SHOWN = 20  # problems; results.json has them all
METHOD = (
    "A pod, a node and the world beyond are network namespaces, joined by veth devices; each "
    "turn has its own. The agent loads the policy, as on a node.",
    "First, each mode shows on packets that it decides as its document says. Then modes take "
    "turns, all of them in each round, so that what slows the machine for a while slows all.",
    f"Ratios are to {REFERENCE} (no NAT, connections tracked, as on a node with kube-proxy) and to "
    f"{LIMIT} (neither) in the same round. For new flows, {REFERENCE} even stands beside each mode "
    "and takes turns with it several times a second.",
    "Each figure is the median of the rounds. Its interval is made of two of the measured values, "
    f"such that it holds the true median with {100 * COVERAGE:.0f} % at least; that takes five "
    "rounds. No distribution is assumed.",
    f"Where intervals overlap, we speak of a tie. Fewer than {in_words(ENOUGH)} rounds tell "
    "nothing apart. A run with lost packets or failed connections gives no figure.",
)
LIMITS = (
    "One machine, whose CPUs sender, node and receiver share, and veth devices instead of a "
    "network: ratios travel to other machines, absolute figures do not.",
    "Figures of two modes are compared in one measure with one number of CIDRs. With many such "
    "comparisons, some that are told apart are so by chance.",
)


def conclusions(results: Results) -> list[str]:
    """Return what was found in about ten sentences, after what to know before."""
    statistics = summarize(results)
    return [*notices(statistics), *sentences(statistics)]


def title(results: Results) -> str:
    """Return what the report is called."""
    family = {"ipv4": "IPv4", "ipv6": "IPv6"}.get(results.family, results.family)
    return f"Ways to masquerade, {family}"


def when(results: Results) -> str:
    """Return when it was measured, for how long, and how often."""
    began = datetime.fromisoformat(results.began)
    done = max((run.round for run in results.runs), default=0)
    kind = "the short form" if results.quick else "complete"
    rounds = f"{done} rounds, {kind}"
    if results.stopped:
        rounds = f"{done} of {results.rounds} rounds, interrupted"
    return f"{began:%Y-%m-%d %H:%M %z}, {results.seconds / 60:.0f} min, {rounds}"


def checked(results: Results) -> list[str]:
    """Return what came of comparing decisions with the document, in sentences."""
    wrong = [one for one in results.equality if one.wrong]
    right = len(results.equality) - len(wrong)
    said = []
    if right:
        destinations = sum(one.destinations for one in results.equality if not one.wrong)
        said.append(
            f"{right} combinations of mode and policy decided as their document says, each about "
            f"destinations on both sides of it, by UDP and TCP ({destinations:,} in all)."
        )
    elif not wrong:
        said.append("No decision was compared.")
    modes = {mode.name: mode for mode in results.modes}
    for one in wrong:
        said += [f"{with_cidrs(modes[one.mode], one.cidrs)}: {text}" for text in one.wrong]
    return said


def problems(results: Results) -> list[str]:
    """Return why runs gave no figure, in sentences."""
    modes = {mode.name: mode for mode in results.modes}
    said = [
        f"Round {run.round}, {with_cidrs(modes[run.mode], run.cidrs)}, {run.measure}: {run.problem}"
        for run in results.runs
        if run.problem is not None
    ]
    more = len(said) - _SHOWN
    return said[:_SHOWN] + ([f"And {more} more; results.json has them all."] if more > 0 else [])


def markdown(results: Results, plots: Sequence[tuple[str, str]]) -> str:
    """Return the report.

    Args:
        results: what was found.
        plots: of each, its alternative text and the name of its file.
    """
    return "\n".join(_lines(summarize(results), plots)) + "\n"


def _lines(statistics: Statistics, plots: Sequence[tuple[str, str]]) -> Iterator[str]:
    results = statistics.results
    yield f"# {title(results)}"
    yield from ("", when(results), "")
    yield from (f"> **{_escaped(notice)}**\n>" for notice in notices(statistics))
    yield from ("", "## What it says", "")
    yield from _items(list(sentences(statistics)) or ["Nothing, for want of figures."])
    for alt, name in plots:
        yield from ("", f"![{_escaped(alt)}]({name})")
    yield from ("", "## Do they decide alike?", "", *_items(checked(results)))
    yield from ("", "## Figures")
    for table in tables(statistics):
        yield from ("", f"### {table.title}", "", *_table(table))
    if failed := problems(results):
        yield from ("", "## Runs without a figure", "", *_items(failed))
    if results.skipped:
        yield from ("", "## Not measured", "", *_items(results.skipped))
    yield from ("", "## The modes", "")
    yield from _table(
        Table("", ("mode", "what it is"), tuple((m.name, m.title) for m in results.modes))
    )
    yield from ("", "## The machine", "")
    yield from _table(Table("", ("what", "which"), tuple(results.machine.items())))
    yield from ("", "## How it is measured", "", *_items(METHOD))
    yield from ("", "## What the figures are good for", "", *_items(LIMITS))


def _items(sentences: Sequence[str]) -> list[str]:
    return [f"- {_escaped(sentence)}" for sentence in sentences]


def _table(table: Table) -> Iterator[str]:
    for row in (table.head, ("---",) * len(table.head), *table.rows):
        yield f"| {' | '.join(_escaped(cell) for cell in row)} |"


def _escaped(text: str) -> str:
    """Return text that markdown takes for letters, on one line."""
    for special in "\\|<>[]*`_":
        text = text.replace(special, f"\\{special}")
    return " ".join(text.split())
