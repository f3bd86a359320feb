"""Would packets to these destinations be masqueraded, and who says so?"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from ipmasq_agent.planes.interpretation import Decider, Interpretation, RuleException
from ipmasq_agent.planes.rules.matching import question
from ipmasq_agent.planes.rules.neighbours import (
    Neighbours,
    PostroutingHook,
    counting,
    joined,
    neighbours,
)
from ipmasq_agent.policy.addresses import Family, Prefix, parse_address, range_text
from ipmasq_agent.policy.decisions import Origin, Reason, Stated, Verdict
from ipmasq_agent.policy.facts import WayOut
from ipmasq_agent.policy.flows import Flow
from ipmasq_agent.policy.model import FamilyPolicy

UNKNOWN = "unknown"

_MASQUERADE = Verdict.MASQUERADE
_NO_DOCUMENT = "no document to compare with"
_SOURCES = 4096  # whose answers are remembered
_SHOWN = 5  # sources or devices in one sentence


@dataclass(frozen=True, slots=True)
class Explanation:
    """The answer for a range of destinations, ends included; see ``as_data`` for its shape."""

    family: Family
    first: int
    last: int
    asked_source: str | None
    verdict: Verdict
    rule: Reason
    translated_to: str | None
    overridden: bool
    expected: Verdict | None
    entry: Reason | None
    route: WayOut
    exceptions: tuple[str, ...]
    unmeant: str

    @property
    def destination(self) -> str:
        """The address, or the range of those that it is the answer for."""
        return range_text(self.family, self.first, self.last)

    @property
    def said(self) -> tuple[object, ...]:
        """The answer without the destinations."""
        told = self.verdict, self.rule, self.reason, self.source, self.route.device
        return (*told, self.exceptions, self.overridden)

    @property
    def source(self) -> str | None:
        """The source address that the receiver sees; None for "the pod's own"."""
        if self.verdict is Verdict.MASQUERADE:
            return self.translated_to
        return self.asked_source

    @property
    def reason(self) -> str:
        """Why: the user's own entry with its line, or what stands in for it."""
        if self.entry is None:
            return self.unmeant
        if self.overridden and self.expected is not self.verdict:
            return (
                f"somebody else's rule decides; the document says {self.expected} "
                f"because of {self.entry}"
            )
        if self.expected is not self.verdict:
            return (
                f"the kernel is not in step: the document says {self.expected} "
                f"because of {self.entry}; run `ipmasq-agent diff`"
            )
        return str(self.entry)

    def as_data(self) -> dict[str, Any]:
        """Return the contract of ``explain -o json``, with keys of our own after it."""
        return {
            "destination": self.destination,
            "source": self.source,
            "verdict": self.verdict,
            "reason": self.reason,
            "rule": str(self.rule),
            "from": self.asked_source,
            "device": self.route.device,
            "document": self.entry.document if isinstance(self.entry, Origin) else None,
            "line": self.entry.line if isinstance(self.entry, Origin) else None,
            "exceptions": list(self.exceptions),
            "overridden": self.overridden,
        }

    def as_text(self) -> str:
        """Return the answer for people."""
        seen = self.source or "the pod's own address"
        if self.verdict is _MASQUERADE and self.translated_to is None:
            if self.route.device is None:
                seen = "unknown: the node has no route to it"
            elif self.overridden and self.route.address is not None:
                seen = "unknown: that rule has several addresses to choose from"
            else:
                seen = "unknown: the node has no address that it could get"
        through = f" (through {self.route.device})" if self.route.device else ""
        lines = [
            f"{self.destination}: {self.verdict}",
            f"  arrives from  {seen}{through}",
            f"  decided by    {self.rule}",
        ]
        if self.reason != str(self.rule):
            word = "because of" if self.reason == str(self.entry) else "because"
            lines.append(f"  {word:12}  {self.reason}")
        lines += (f"  except where  {exception}" for exception in self.exceptions)
        return "\n".join(lines)


class Ruling:
    """All that decides about the connections of a family, before the change or after it.

    It remembers what decides about some sources, so that very many connections can be asked about.

    Args:
        interpret: what is ours decides, for any source or for one.
        hook: what stands beside it.
    """

    def __init__(
        self, interpret: Callable[[int | None], Interpretation], hook: PostroutingHook
    ) -> None:
        self._hook = hook
        self._whole = interpret(None).located
        self._of_source = lru_cache(_SOURCES)(lambda source: interpret(source).located)
        self.others: Callable[[int | None, str | None], Neighbours] = lru_cache(_SOURCES)(
            lambda source, device: neighbours(hook, question(source, device))
        )
        """Tells what all others at the hook decide for a source and a device."""

    def like(self, other: Ruling) -> bool:
        """Whether both differ in destinations alone: those who agree about one agree of it."""
        mine, its = self._whole, other._whole
        looks_at_more = mine.exceptions or its.exceptions
        return (
            not looks_at_more
            and self._hook == other._hook
            and mine.policy.guards == its.policy.guards
        )

    def wanted(self, destination: int) -> tuple[Verdict, int | None]:
        """Return what our own policy says of a destination, and the source that it fixes."""
        policy = self._whole.policy
        fixed = (f.address for f in policy.action.fixed if f.first <= destination <= f.last)
        return policy.decisions.decide(destination).verdict, next(fixed, None)

    def fate(self, source: int, destination: int, route: WayOut) -> Fate:
        """Return what becomes of a new connection that is routed so, and what decides it."""
        others = self.others(source, route.device)
        return fate(self.ours(source).policy, others, destination, source, route)

    def leaves_as(self, flow: Flow, route: WayOut) -> str:
        """Return the source address with which a new connection like ``flow`` would leave."""
        source = flow.source.address
        own = flow.family.show(source)
        if route.local:
            return own
        found = self.fate(source, flow.reached.address, route)
        if found.verdict is Verdict.NON_MASQUERADE:
            return own
        translated = found.translated_to if found.verdict is Verdict.MASQUERADE else None
        return translated or UNKNOWN

    def doubts(self, source: int, destination: int, route: WayOut) -> Iterator[RuleException]:
        """Yield the rules that decide about such a connection if more of it fits."""
        if route.local:
            return
        yield from (e for e in self.ours(source).exceptions if e.concerns(destination))
        for exception, first, last in counting(self.others(source, route.device)):
            if first <= destination <= last:
                yield exception

    @cached_property
    def by_mark(self) -> tuple[Decider, ...]:
        """The rules of others that look at a packet's mark, which is taken to have none."""
        return tuple(
            Decider(chain.name + base.suffix, position, rule.text)
            for base in self._hook.nat
            for chain in base.table.chains.values()
            if chain.name != base.own
            for position, rule in enumerate(chain.rules, start=1)
            if rule.option("mark") is not None
        )

    def ours(self, source: int | None) -> Interpretation:
        """Return what our rules decide for a source."""
        return self._of_source(source) if self._whole.exceptions else self._whole


def explain(
    ruling: Ruling,
    destinations: tuple[int, int],
    source: str | None,
    route: WayOut,
    wanted: FamilyPolicy | None,
    unmeant: str = _NO_DOCUMENT,
) -> Iterator[Explanation]:
    """Yield the answers for destinations that the node sends one way, in order.

    Args:
        ruling: what decides about them.
        destinations: the first and the last.
        source: that is asked about, as text, or None for any.
        route: where the node sends the packets.
        wanted: the policy of the document, or None where there is none to compare with.
        unmeant: why there is none.
    """
    first, last = destinations
    address = parse_address(source)[1] if source is not None else None
    kernel, others = ruling.ours(address), ruling.others(address, route.device)
    policy, exceptions = kernel.policy, joined(kernel, others).exceptions
    maps = policy.decisions, *((wanted.decisions,) if wanted else ()), others.instead, others.beside
    spans = [span for exception in exceptions for span in exception.ranges]
    spans += [(one.first, one.last) for one in policy.action.fixed]
    # The addresses at which the answer may become another.
    edges = {e.first for decisions in maps for e in decisions.between(first, last)}
    edges |= {edge for start, end in spans for edge in (start, end + 1)}
    starts = sorted({first, *(edge for edge in edges if first < edge <= last)})

    def answer(start: int, end: int) -> Explanation:
        found = fate(policy, others, start, address, route)
        expected, entry = decide(wanted, start, address, route) if wanted else (None, None)
        but = [str(e) for e in exceptions if e.concerns(start)]
        guarding = policy.guards.sources
        if not found.elsewhere and found.verdict is _MASQUERADE and guarding and source is None:
            but.append(f"it does not come from {_shown(guarding)}")
        span, told = (policy.family, start, end, source), tuple(but)
        return Explanation(*span, *found, expected, entry, route, told, unmeant)

    yield from merged(map(answer, starts, (*(edge - 1 for edge in starts[1:]), last)))


def merged(answers: Iterable[Explanation]) -> Iterator[Explanation]:
    """Yield the answers, in order, with those of neighbours that say the same made into one."""
    before: Explanation | None = None
    for answer in answers:
        if before is None:
            before = answer
        elif before.last + 1 == answer.first and before.said == answer.said:
            before = replace(before, last=answer.last)
        else:
            yield before
            before = answer
    if before is not None:
        yield before


def together(asked: str, answers: Sequence[Explanation]) -> dict[str, Any]:
    """Return several answers to one question as data: what they share, and each of them.

    The verdict is ``differs`` where it is not the same for all.
    """
    each = [answer.as_data() for answer in answers]
    shared = {
        key: each[0][key] if all(one[key] == each[0][key] for one in each) else None
        for key in ("source", "verdict", "reason", "rule")
    }
    shared["verdict"] = shared["verdict"] or "differs"
    return {"destination": asked, **shared, "answers": each}


class Fate(NamedTuple):
    """What becomes of a packet's source.

    Attributes:
        verdict: whether it is translated.
        rule: what decides.
        translated_to: the address, as text, that masqueraded packets get; None where it
            cannot be told.
        elsewhere: somebody else decides, or ours is asleep.
    """

    verdict: Verdict
    rule: Reason
    translated_to: str | None
    elsewhere: bool


def fate(
    policy: FamilyPolicy,
    others: Neighbours,
    destination: int,
    source: int | None,
    route: WayOut,
) -> Fate:
    """Return what becomes of a packet; ``policy`` is our own."""
    if others.asleep is not None:
        policy = joined(Interpretation(policy), others).policy
    verdict, rule = decide(policy, destination, source, route)
    elsewhere = None if route.local else others.decide(verdict, destination)
    if elsewhere is not None:
        verdict, rule = elsewhere.verdict, elsewhere.reason
    ours = policy if elsewhere is None else None
    address = _translated(ours, others, rule, destination, route)
    return Fate(verdict, rule, address, (elsewhere or others.asleep) is not None)


def _translated(
    ours: FamilyPolicy | None,
    others: Neighbours,
    rule: Reason,
    destination: int,
    route: WayOut,
) -> str | None:
    """Return the address that masqueraded packets get; None where it cannot be told."""
    if ours is not None:
        fixed = (f.address for f in ours.action.fixed if f.first <= destination <= f.last)
        address = next(fixed, None)
        return route.address if address is None else ours.family.show(address)
    text = others.sources.get(rule) if isinstance(rule, Decider) else None
    if text is None:
        return route.address
    for candidate in (text, text.rpartition(":")[0].strip("[]")):  # it may go on with ports
        with contextlib.suppress(ValueError):
            return str(ipaddress.ip_address(candidate))
    return None


def decide(
    policy: FamilyPolicy, destination: int, source: int | None, route: WayOut
) -> tuple[Verdict, Reason]:
    """Return what a policy decides and why, its guards included.

    Args:
        policy: the policy.
        destination: of the packet.
        source: of the packet; None for any.
        route: where the node sends it; without a device it is not asked which one.
    """
    decided, guards = policy.decisions.decide(destination), policy.guards
    if decided.verdict is not Verdict.NON_MASQUERADE:
        left_alone = None
        if route.local and not guards.local_destinations:
            left_alone = "the destination is an address of this node, whose packets are left alone"
        elif guards.devices and route.device and route.device not in guards.devices:
            left_alone = (
                f"it leaves through {route.device}, and only what leaves through "
                f"{_shown(guards.devices)} is masqueraded"
            )
        elif guards.sources and source is not None and not _within(source, guards.sources):
            left_alone = f"only what comes from {_shown(guards.sources)} is masqueraded"
        if left_alone:
            return Verdict.NON_MASQUERADE, Stated(left_alone)
    return decided.verdict, decided.reason


def _within(address: int, prefixes: Sequence[Prefix]) -> bool:
    return any(prefix.holds(address) for prefix in prefixes)


def _shown(items: Sequence[object]) -> str:
    return ", ".join(map(str, items[:_SHOWN])) + (", ..." if len(items) > _SHOWN else "")
