"""Would packets to these destinations be masqueraded, and who says so?"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any, NamedTuple

from ipmasq_agent.planes.interpretation import Decider, Interpretation
from ipmasq_agent.planes.rules.neighbours import Neighbours, joined
from ipmasq_agent.policy.addresses import Family, Prefix, parse_address, range_text
from ipmasq_agent.policy.decisions import Origin, Reason, Stated, Verdict
from ipmasq_agent.policy.model import FamilyPolicy

_NO_DOCUMENT = "no document to compare with"
_SHOWN = 5  # sources or devices in one sentence


@dataclass(frozen=True, slots=True)
class EgressPath:
    """Where the node would send the packet.

    Attributes:
        device: through which it leaves; None where there is no route.
        address: what MASQUERADE would take from that device, as text; None without one.
        local: the destination is the node itself, which no rule of ours speaks of.
    """

    device: str | None = None
    address: str | None = None
    local: bool = False


@dataclass(frozen=True, slots=True)
class Explanation:
    """The answer for a range of destinations, ends included; see ``as_data`` for its shape."""

    family: Family
    first: int
    last: int
    asked_source: str | None
    verdict: Verdict
    rule: Reason
    entry: Reason | None
    expected: Verdict | None
    route: EgressPath
    exceptions: tuple[str, ...] = ()
    translated_to: str | None = None
    overridden: bool = False
    unmeant: str = _NO_DOCUMENT

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
        if self.verdict is Verdict.MASQUERADE and self.translated_to is None:
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


@dataclass(frozen=True, slots=True)
class Asked:
    """What answers a question about destinations that the node sends one way.

    Attributes:
        family: of the destinations.
        source: the source that the question is about, as text, or None for any.
        kernel: what our rules in the kernel decide for that source.
        others: what all others at the hook decide, for that source and the route's device.
        wanted: the policy of the document, or None where there is none to compare with.
        route: where the node sends the packets.
        unmeant: why there is no policy of the document.
    """

    family: Family
    source: str | None
    kernel: Interpretation
    others: Neighbours
    wanted: FamilyPolicy | None
    route: EgressPath
    unmeant: str = _NO_DOCUMENT

    def explain(self, first: int, last: int) -> Iterator[Explanation]:
        """Yield the answers for the destinations from ``first`` to ``last``, in order."""
        in_force = joined(self.kernel, self.others)
        edges = sorted({first, *self._edges(first, last, in_force)})
        ends = [edge - 1 for edge in edges[1:]]
        yield from merged(map(self._explanation, edges, (*ends, last), repeat(in_force)))

    def _edges(self, first: int, last: int, in_force: Interpretation) -> Iterator[int]:
        """Yield the addresses within a range at which the answer may become another."""
        if first == last:
            return
        policies = (self.kernel.policy, *((self.wanted,) if self.wanted else ()))
        for decisions in (
            *(p.decisions for p in policies),
            self.others.instead,
            self.others.beside,
        ):
            yield from (e.first for e in decisions.between(first, last) if e.first > first)
        spans = [span for exception in in_force.exceptions for span in exception.ranges]
        spans += [(one.first, one.last) for one in self.kernel.policy.action.fixed]
        for start, end in spans:
            yield from (edge for edge in (start, end + 1) if first < edge <= last)

    def _explanation(self, first: int, last: int, in_force: Interpretation) -> Explanation:
        source = parse_address(self.source)[1] if self.source is not None else None
        kernel, others, route = self.kernel, self.others, self.route
        verdict, rule, translated_to, elsewhere = fate(kernel.policy, others, first, source, route)
        wanted = self.wanted
        expected, entry = decide(wanted, first, source, route) if wanted else (None, None)
        exceptions = [str(e) for e in in_force.exceptions if e.concerns(first)]
        guarding = kernel.policy.guards.sources
        if not elsewhere and verdict is Verdict.MASQUERADE and guarding and source is None:
            exceptions.append(f"it does not come from {_shown(guarding)}")
        return Explanation(
            family=self.family,
            first=first,
            last=last,
            asked_source=self.source,
            verdict=verdict,
            rule=rule,
            entry=entry,
            expected=expected,
            route=route,
            exceptions=tuple(exceptions),
            translated_to=translated_to,
            overridden=elsewhere or others.asleep is not None,
            unmeant=self.unmeant,
        )


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
        elsewhere: somebody else decides.
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
    route: EgressPath,
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
    return Fate(verdict, rule, address, elsewhere is not None)


def _translated(
    ours: FamilyPolicy | None,
    others: Neighbours,
    rule: Reason,
    destination: int,
    route: EgressPath,
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
    policy: FamilyPolicy, destination: int, source: int | None, route: EgressPath
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
