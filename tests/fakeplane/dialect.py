"""The pure half: a policy as lines of text, and such lines as a policy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ipmasq_agent.planes.interpretation import Decider, Interpretation
from ipmasq_agent.planes.plane import Dialect
from ipmasq_agent.policy.addresses import Family, Prefix
from ipmasq_agent.policy.decisions import DecisionMap, Entry, Verdict
from ipmasq_agent.policy.model import Action, FamilyPolicy, FixedSource, Guards, PortRange


@dataclass(frozen=True)
class Lines:
    """What the file of one family holds, and is to hold; no lines for nothing of ours."""

    family: Family
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class LineChange:
    """What leads from one content to another."""

    actual: Lines
    result: Lines

    def __bool__(self) -> bool:
        return self.actual != self.result

    @property
    def counts(self) -> tuple[int, int]:
        """How many lines come and how many go."""
        return len(self.added), len(self.removed)

    @property
    def added(self) -> list[str]:
        """The lines that come."""
        return sorted({*self.result.lines} - {*self.actual.lines})

    @property
    def removed(self) -> list[str]:
        """The lines that go."""
        return sorted({*self.actual.lines} - {*self.result.lines})


def compile_policy(policy: FamilyPolicy) -> Lines:
    """Return the lines that say what a policy decides."""
    return Lines(policy.family, tuple(_lines(policy)))


def _lines(policy: FamilyPolicy) -> Iterator[str]:
    guards, action = policy.guards, policy.action
    yield "random-fully" if action.random_fully else "own port first"
    if guards.local_destinations:
        yield "local"
    for first, last in policy.decisions.stretches(Verdict.NON_MASQUERADE):
        yield f"keep {first} {last}"
    for prefix in guards.sources or ():
        yield f"source {prefix.first} {prefix.length}"
    for device in guards.devices or ():
        yield f"device {device}"
    for ports in action.ports:
        yield f"ports {ports.first} {ports.last}"
    for fixed in action.fixed:
        yield f"fixed {fixed.first} {fixed.last} {fixed.address}"


def interpret(state: Lines, source: int | None = None) -> Interpretation:
    """Return what the lines decide."""
    family = state.family
    said: dict[str, list[list[str]]] = {}
    for line in state.lines:
        word, *values = line.split()
        said.setdefault(word, []).append(values)

    def numbers(word: str) -> list[list[int]]:
        return [[int(value) for value in values] for values in said.get(word, ())]

    sources = [Prefix(family, first, length) for first, length in numbers("source")]
    meant = not sources or source is None or any(p.first <= source <= p.last for p in sources)
    if not state.lines or not meant:
        return Interpretation(FamilyPolicy(DecisionMap(family, (), Verdict.NON_MASQUERADE)))
    kept = [
        Entry(first, last, Verdict.NON_MASQUERADE, Decider("the file", None, f"keep {first}"))
        for first, last in numbers("keep")
    ]
    guards = Guards("local" in said, tuple(sources) or None, _devices(said))
    action = Action(
        tuple(PortRange(first, last) for first, last in numbers("ports")),
        "random-fully" in said,
        tuple(FixedSource(*values) for values in numbers("fixed")),
    )
    return Interpretation(FamilyPolicy(DecisionMap(family, kept), guards, action))


def _devices(said: dict[str, list[list[str]]]) -> tuple[str, ...] | None:
    return tuple(values[0] for values in said.get("device", ())) or None


DIALECT: Dialect[Lines, Lines, LineChange] = Dialect(
    compile=compile_policy,
    absent=Lines,
    plan=LineChange,
    describe=lambda state: list(state.lines),
    interpret=interpret,
)
