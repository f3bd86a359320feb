"""What a benchmark says: one model of it, which text, markdown and the page all tell."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from ipmasq_agent.bench.charts import Chart, charts
from ipmasq_agent.bench.conclusions import notices, sentences
from ipmasq_agent.bench.results import LIMIT, REFERENCE, Results
from ipmasq_agent.bench.statistics import COVERAGE, ENOUGH, Statistics
from ipmasq_agent.bench.tables import FigureTable, tables
from ipmasq_agent.bench.wording import in_words, with_cidrs

_SHOWN = 20  # problems; results.json has them all
_METHOD = (
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
_LIMITS = (
    "One machine, whose CPUs sender, node and receiver share, and veth devices instead of a "
    "network: ratios travel to other machines, absolute figures do not.",
    "Figures of two modes are compared in one measure with one number of CIDRs. With many such "
    "comparisons, some that are told apart are so by chance.",
)


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a report that has a heading: sentences, or tables."""

    heading: str
    items: tuple[str, ...] = ()
    tables: tuple[FigureTable, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """All that is said, in the order in which it is read.

    Attributes:
        title: what it is called.
        when: when it was measured, for how long, and how often.
        notices: what to know before any figure is read.
        sentences: what the figures say, the most important first.
        charts: what is drawn.
        sections: the evidence, how it was had, and what it is good for.
    """

    title: str
    when: str
    notices: tuple[str, ...]
    sentences: tuple[str, ...]
    charts: tuple[Chart, ...]
    sections: tuple[Section, ...]

    @property
    def conclusions(self) -> tuple[str, ...]:
        """What was found in about ten sentences, after what to know before."""
        return (*self.notices, *self.sentences)


def report(results: Results) -> Report:
    """Return what is to be said of results."""
    statistics = Statistics(results)
    family = {"ipv4": "IPv4", "ipv6": "IPv6"}.get(results.family, results.family)
    modes = tuple((mode.name, mode.title) for mode in results.modes)
    machine = tuple(results.machine.items())
    sections = (
        Section("Do they decide alike?", _checked(results)),
        Section("Figures", tables=tuple(tables(statistics))),
        Section("Runs without a figure", _problems(results)),
        Section("Not measured", tuple(results.skipped)),
        Section("The modes", tables=(FigureTable("", ("mode", "what it is"), modes),)),
        Section("The machine", tables=(FigureTable("", ("what", "which"), machine),)),
        Section("How it is measured", _METHOD),
        Section("What the figures are good for", _LIMITS),
    )
    return Report(
        f"Ways to masquerade, {family}",
        _when(results),
        tuple(notices(statistics)),
        tuple(sentences(statistics)),
        tuple(charts(statistics)),
        tuple(part for part in sections if part.items or part.tables),
    )


def _when(results: Results) -> str:
    """Return when it was measured, for how long, and how often."""
    began = datetime.fromisoformat(results.began)
    done = max((run.round for run in results.runs), default=0)
    kind = "the short form" if results.quick else "complete"
    rounds = f"{done} rounds, {kind}"
    if results.stopped:
        rounds = f"{done} of {results.rounds} rounds, interrupted"
    return f"{began:%Y-%m-%d %H:%M %z}, {results.seconds / 60:.0f} min, {rounds}"


def _checked(results: Results) -> tuple[str, ...]:
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
    return tuple(said)


def _problems(results: Results) -> tuple[str, ...]:
    """Return why runs gave no figure, in sentences."""
    modes = {mode.name: mode for mode in results.modes}
    said = [
        f"Round {run.round}, {with_cidrs(modes[run.mode], run.cidrs)}, {run.measure}: {run.problem}"
        for run in results.runs
        if run.problem is not None
    ]
    more = len(said) - _SHOWN
    rest = [f"And {more} more; results.json has them all."] if more > 0 else []
    return (*said[:_SHOWN], *rest)
