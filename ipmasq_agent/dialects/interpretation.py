"""What the rules of a nat table decide, read as questions about packets.

The packet that is asked about is what a pod sends out: first of its connection, with no
firewall mark, to a destination that is not the node's own. Rules that run before and
after our chain count as much as ours. A rule that looks at something else of the packet
(its source, its interface, its protocol) decides for some packets only: it is listed as
an exception. A rule that looks at the destination in a way that cannot be read makes the
verdict unknown.
"""

from __future__ import annotations

import enum
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from ipmasq_agent.dialects.iptables import (
    PORT_PROTOCOLS,
    POSTROUTING,
    Placement,
    masquerade_rules,
)
from ipmasq_agent.dialects.rules import Option, Rule, parse_rule, read_prefix
from ipmasq_agent.dialects.tables import Table
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.decisions import DecisionMap, Entry, Origin, Verdict, first_match
from ipmasq_agent.policy.model import Action, FamilyPolicy, Guards, PortRange

# Targets that decide the source address, and those that let the packet go on.
_TRANSLATING = frozenset({"MASQUERADE", "SNAT", "NETMAP"})
_PASSING = frozenset({"LOG", "NFLOG", "MARK", "CONNMARK", "TRACE", "AUDIT", "SET", "ULOG"})
# Matches on anything but the destination address: they narrow a rule to some packets.
_NARROWING = frozenset(
    {"protocol", "in-interface", "out-interface", "fragment", "dport", "sport", "dports", "sports"}
    | {"ports", "mode", "probability", "every", "packet", "src-type", "limit-iface-out", "syn"}
    | {"ctstate", "ctdir", "ctstatus", "icmp-type", "icmpv6-type", "uid-owner", "gid-owner"}
)
_OF_TARGETS = frozenset(
    {"jump", "goto", "to-ports", "random", "random-fully", "persistent", "to-source", "to"}
)


class _Outcome(enum.Enum):
    MASQUERADE = enum.auto()
    KEEP = enum.auto()
    RETURN = enum.auto()
    UNKNOWN = enum.auto()


_VERDICTS = {
    _Outcome.MASQUERADE: Verdict.MASQUERADE,
    _Outcome.KEEP: Verdict.NON_MASQUERADE,
    _Outcome.UNKNOWN: Verdict.UNKNOWN,
}


@dataclass(frozen=True, slots=True)
class RuleException:
    """A rule that decides otherwise than the map, for some packets only."""

    chain: str
    position: int
    rule: Rule
    verdict: Verdict

    def __str__(self) -> str:
        return f"rule {self.position} of {self.chain}: {self.rule.text}"


@dataclass(frozen=True, slots=True)
class Interpretation:
    """What a table decides, and the rules that decide otherwise for some packets."""

    policy: FamilyPolicy
    exceptions: tuple[RuleException, ...] = ()


class _Match(enum.Enum):
    ALWAYS = enum.auto()
    NEVER = enum.auto()
    SOMETIMES = enum.auto()
    UNREADABLE = enum.auto()


def interpret(table: Table, placement: Placement, source: int | None = None) -> Interpretation:
    """Return what ``table`` decides about the packets of pods.

    Args:
        table: as read from a kernel, or as it will be.
        placement: the name of our chain; its masquerade rules tell the action.
        source: ask for packets of this source address only, so that rules which look at
            the source are answered rather than listed.
    """
    reading = _Reading(table, placement.chain, source)
    decided = [e for e in reading.chain(POSTROUTING, ()) if e.verdict is not _Outcome.RETURN]
    # What nothing translates keeps its address because some rule of ours let it go.
    let_go = [
        entry
        for entry in reading.maps.get(placement.chain, ())
        if entry.verdict is _Outcome.RETURN and entry.origin.line is not None
    ]
    decisions = DecisionMap(
        table.family,
        (
            Entry(e.first, e.last, _VERDICTS.get(e.verdict, Verdict.NON_MASQUERADE), e.origin)
            for e in (*decided, *let_go)
        ),
        Verdict.NON_MASQUERADE,
        Origin(f"no rule of {POSTROUTING} translates it"),
    )
    own = [rule for rule in table.rules(POSTROUTING) if rule.target == placement.chain]
    local = bool(own) and all(rule.option("dst-type") is None for rule in own)
    action = _action(table.rules(placement.chain), table.family)
    policy = FamilyPolicy(decisions, Guards(local_destinations=local), action)
    return Interpretation(policy, tuple(_telling(reading.partial, decisions)))


_Partial = tuple[RuleException, int, int]
"""A rule that decides for some packets, and a destination range in which it does."""


def _reached(partial: list[_Partial], deciders: list[Entry[int]]) -> Iterator[_Partial]:
    """Yield the parts of each range that no rule before the exception decides.

    Args:
        partial: exceptions of one chain.
        deciders: the position of the rule that decides for certain, for each destination.
    """
    firsts = [decider.first for decider in deciders]
    for exception, first, last in partial:
        index = bisect_right(firsts, first) - 1
        while index < len(deciders) and deciders[index].first <= last:
            decider = deciders[index]
            if decider.verdict > exception.position:
                yield exception, max(first, decider.first), min(last, decider.last)
            index += 1


def _telling(partial: list[_Partial], decisions: DecisionMap) -> Iterator[RuleException]:
    """Yield the exceptions that really decide otherwise somewhere in their ranges."""
    seen = set()
    for exception, first, last in partial:
        key = (exception.chain, exception.position)
        if key not in seen and any(
            entry.verdict is not exception.verdict for entry in decisions.between(first, last)
        ):
            seen.add(key)
            yield exception


class _Reading:
    """One walk through a table; each chain is read once, however often it is jumped to."""

    def __init__(self, table: Table, own_chain: str, source: int | None) -> None:
        self.table = table
        self.own_chain = own_chain
        self.source = source
        self.maps: dict[str, list[Entry[_Outcome]]] = {}
        self.partial: list[_Partial] = []

    def chain(self, name: str, callers: tuple[str, ...]) -> list[Entry[_Outcome]]:
        """Return the outcome of a chain for each destination; RETURN where it has none."""
        if name not in self.maps:
            entries: list[Entry[_Outcome]] = []
            deciders: list[Entry[int]] = []
            partial: list[_Partial] = []
            rules = self.table.rules(name)
            for position, rule in enumerate(rules, start=1):
                for entry in self._rule(name, position, rule, (*callers, name), partial):
                    entries.append(entry)
                    deciders.append(Entry(entry.first, entry.last, position, entry.origin))
            end = Origin(f"end of {name}")
            self.maps[name] = first_match(self.table.family, entries, _Outcome.RETURN, end)
            if partial:
                reach = first_match(self.table.family, deciders, len(rules) + 1, end)
                self.partial += _reached(partial, reach)
        return self.maps[name]

    def _rule(
        self,
        chain: str,
        position: int,
        rule: Rule,
        callers: tuple[str, ...],
        partial: list[_Partial],
    ) -> Iterator[Entry[_Outcome]]:
        """Yield what a rule decides for certain; what it decides for some goes to ``partial``."""
        matches = _Match.UNREADABLE if not rule.readable else self._matches(rule)
        target = rule.target
        if matches is _Match.NEVER or target is None or target in _PASSING:
            return
        ranges = _destinations(rule, self.table.family) if rule.readable else None
        if ranges is None:
            ranges = ((0, self.table.family.last_address),)
        origin = Origin(rule.text, chain, position)
        for entry in self._outcomes(rule, target, ranges, origin, callers):
            if matches is _Match.ALWAYS:
                yield entry
            elif matches is _Match.UNREADABLE:
                yield Entry(entry.first, entry.last, _Outcome.UNKNOWN, origin)
            elif entry.verdict in _VERDICTS or chain == self.own_chain:
                verdict = _VERDICTS.get(entry.verdict, Verdict.NON_MASQUERADE)
                exception = RuleException(chain, position, rule, verdict)
                partial.append((exception, entry.first, entry.last))

    def _outcomes(
        self,
        rule: Rule,
        target: str,
        ranges: tuple[tuple[int, int], ...],
        origin: Origin,
        callers: tuple[str, ...],
    ) -> Iterator[Entry[_Outcome]]:
        """Yield what the rule's target does to the destinations that the rule matches."""
        if target in self.table.chains and target not in callers:
            goto = rule.option("goto") is not None
            for entry in self.chain(target, callers):
                if entry.verdict is _Outcome.RETURN and not goto:
                    continue
                for first, last in ranges:
                    if entry.first <= last and first <= entry.last:
                        yield entry._replace(
                            first=max(first, entry.first), last=min(last, entry.last)
                        )
            return
        if target in _TRANSLATING:
            outcome = _Outcome.MASQUERADE
        else:
            outcome = {"ACCEPT": _Outcome.KEEP, "RETURN": _Outcome.RETURN}.get(
                target, _Outcome.UNKNOWN
            )
        for first, last in ranges:
            yield Entry(first, last, outcome, origin)

    def _matches(self, rule: Rule) -> _Match:
        """Return whether the rule matches, its destination apart."""
        answers = [self._option(option) for option in rule.meaning]
        for answer in (_Match.NEVER, _Match.UNREADABLE, _Match.SOMETIMES):
            if answer in answers:
                return answer
        return _Match.ALWAYS

    def _option(self, option: Option) -> _Match:
        name, values, negated = option
        if name in _OF_TARGETS or name == "destination":
            return _Match.ALWAYS
        if name == "source":
            if self.source is None:
                return _Match.SOMETIMES
            prefix = read_prefix(values[0], self.table.family)
            if prefix is None:
                return _Match.UNREADABLE
            return _certain((prefix.first <= self.source <= prefix.last) is not negated)
        if name == "dst-type" and values == ("LOCAL",):
            return _certain(negated)  # the packet is not for this node
        if name == "mark":
            return _unmarked(values, negated)
        if name == "match-set":
            return _Match.UNREADABLE if "dst" in values[-1] else _Match.SOMETIMES
        return _Match.SOMETIMES if name in _NARROWING else _Match.UNREADABLE


def _certain(matches: bool) -> _Match:
    return _Match.ALWAYS if matches else _Match.NEVER


def _unmarked(values: tuple[str, ...], negated: bool) -> _Match:
    """Whether ``--mark VALUE[/MASK]`` matches a packet whose mark is 0."""
    try:
        value = int(values[0].partition("/")[0], 0)
    except ValueError:
        return _Match.UNREADABLE
    return _certain((value == 0) is not negated)


def _destinations(rule: Rule, family: Family) -> tuple[tuple[int, int], ...] | None:
    """Return the destination ranges of a rule; None where its ``-d`` cannot be read."""
    option = rule.option("destination")
    if option is None:
        return ((0, family.last_address),)
    prefix = read_prefix(option.values[0], family)
    if prefix is None:
        return None
    if not option.negated:
        return ((prefix.first, prefix.last),)
    below = ((0, prefix.first - 1),) if prefix.first else ()
    above = ((prefix.last + 1, family.last_address),) if prefix.last < family.last_address else ()
    return below + above


def _action(rules: tuple[Rule, ...], family: Family) -> Action:
    """Return the action that the chain's masquerade rules carry out.

    Port ranges count only where every rule is there that makes them whole; the odd rule
    of somebody's own is an exception, not an action.
    """
    masquerading = [rule for rule in rules if rule.target == "MASQUERADE"]
    plain = [rule for rule in masquerading if rule.option("protocol") is None]
    random_fully = bool(plain) and plain[-1].option("random-fully") is not None
    ports = []
    for rule in masquerading:
        protocol, range_ = rule.option("protocol"), rule.option("to-ports")
        if protocol and range_ and protocol.values == PORT_PROTOCOLS[:1]:
            first, _, last = range_.values[0].partition("-")
            ports.append(PortRange(int(first), int(last)))
    restricted = Action(tuple(ports), random_fully)
    whole = [parse_rule(text, family) for text in masquerade_rules(restricted)]
    return restricted if masquerading[-len(whole) :] == whole else Action((), random_fully)
