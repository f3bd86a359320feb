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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar

from ipmasq_agent.dialects.ipset import AddressSet
from ipmasq_agent.dialects.iptables import (
    PORT_PROTOCOLS,
    POSTROUTING,
    Placement,
    target_rules,
)
from ipmasq_agent.dialects.rules import Option, Rule, find_all, parse_rule, read_prefix
from ipmasq_agent.dialects.tables import Table
from ipmasq_agent.policy.addresses import Family, Prefix
from ipmasq_agent.policy.decisions import (
    DecisionMap,
    Entries,
    Entry,
    Origin,
    Verdict,
    first_match,
)
from ipmasq_agent.policy.model import (
    Action,
    FamilyPolicy,
    FixedSource,
    Guards,
    PortRange,
    joined,
)
from ipmasq_agent.policy.ranges import intersections

# Targets that decide the source address, and those that let the packet go on.
_TRANSLATING = frozenset({"MASQUERADE", "SNAT", "NETMAP"})
_MARKING = frozenset({"MARK", "CONNMARK"})
_PASSING = _MARKING | {"LOG", "NFLOG", "TRACE", "AUDIT", "SET", "ULOG"}
# Matches on anything but the destination address: they narrow a rule to some packets.
_NARROWING = frozenset(
    {"protocol", "in-interface", "out-interface", "fragment", "dport", "sport", "dports", "sports"}
    | {"ports", "mode", "probability", "every", "packet", "src-type", "limit-iface-out", "syn"}
    | {"tcp-flags", "tcp-option", "chunk-types", "icmp-type", "icmpv6-type"}
    | {"ctstate", "ctdir", "ctstatus", "ctproto", "ctorigsrc", "ctorigsrcport"}
)
# Modules whose every option does so; the options of these are named MODULE.OPTION.
_NARROWING_MODULES = frozenset(
    {"connmark", "state", "owner", "limit", "hashlimit", "connlimit", "pkttype", "length", "ttl"}
    | {"hl", "tos", "dscp", "mac", "physdev", "time", "cgroup", "udplite", "dccp", "helper"}
)
_OF_TARGETS = frozenset(
    {"jump", "goto", "to-ports", "random", "random-fully", "persistent", "to-source", "to"}
)
# What may stand on a jump to our chain: its guards.
_GUARDING = frozenset({"source", "out-interface"})
# Chains call chains; the kernel allows 16 levels in nf_tables, and knows no loops.
_DEEPEST = 64


V = TypeVar("V")
_Ranges = tuple[tuple[int, int], ...]


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


_OUTCOMES = {"ACCEPT": _Outcome.KEEP, "RETURN": _Outcome.RETURN}
_OUTCOMES |= dict.fromkeys(_TRANSLATING, _Outcome.MASQUERADE)


@dataclass(frozen=True, slots=True)
class RuleException:
    """A rule that decides otherwise than the map, for some packets only.

    Attributes:
        chain: where the rule stands.
        position: its number in the chain, from 1.
        rule: what it says.
        verdict: what it decides.
        ranges: the destinations, ends included, for which that is not the map's verdict.
    """

    chain: str
    position: int
    rule: Rule
    verdict: Verdict
    ranges: tuple[tuple[int, int], ...] = field(default=(), compare=False)

    def concerns(self, destination: int) -> bool:
        """Whether packets to ``destination`` may be decided otherwise by this rule."""
        return any(first <= destination <= last for first, last in self.ranges)

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
    hook = reading.chain(POSTROUTING, ())
    end = Origin(f"no rule of {POSTROUTING} translates it")
    by_rules = [e for e in (*hook.ranges, *reading.returned) if e.origin.line is not None]
    decided = Entries(
        table.family,
        [entry.first for entry in by_rules],
        [entry.last for entry in by_rules],
        [_VERDICTS.get(entry.verdict, Verdict.NON_MASQUERADE) for entry in by_rules],
        [entry.origin for entry in by_rules],
    )
    decisions = DecisionMap(table.family, decided, Verdict.NON_MASQUERADE, end)
    action = _action(table.rules(placement.chain), table.family)
    policy = FamilyPolicy(decisions, reading.guards, action)
    return Interpretation(policy, tuple(_telling(hook.partial, decisions)))


class _Partial(NamedTuple):
    """A rule that decides for some packets, and a destination range in which it does."""

    exception: RuleException
    first: int
    last: int

    def within(self, first: int, last: int) -> _Partial:
        return self._replace(first=max(self.first, first), last=min(self.last, last))


class _ChainReading(NamedTuple):
    """What a chain does: to each destination for certain, and to some packets; marks set."""

    ranges: list[Entry[_Outcome]]
    partial: list[_Partial]
    marked: bool


def _overlapping(ranges: list[Entry[V]], first: int, last: int) -> Iterator[Entry[V]]:
    """Yield those of the sorted, complete ranges that overlap ``first`` to ``last``."""
    index = bisect_right(ranges, first, key=lambda entry: entry.first) - 1
    while index < len(ranges) and ranges[index].first <= last:
        yield ranges[index]
        index += 1


def _telling(partial: list[_Partial], decisions: DecisionMap) -> Iterator[RuleException]:
    """Yield the exceptions that really decide otherwise, each with the ranges where it does."""
    telling: dict[RuleException, list[tuple[int, int]]] = {}
    for exception, first, last in partial:
        for entry in decisions.between(first, last):
            if entry.verdict is not exception.verdict:
                differs = max(first, entry.first), min(last, entry.last)
                telling.setdefault(exception, []).append(differs)
    for exception, ranges in telling.items():
        yield replace(exception, ranges=tuple(ranges))


class _Reading:
    """One walk through a table; each chain is read once, however often it is jumped to.

    Attributes:
        returned: the destinations that our chain returned, each with the rule that did.
        marked: a rule that was passed may have set the packet's mark.
    """

    def __init__(self, table: Table, own_chain: str, source: int | None) -> None:
        self.table = table
        self.own_chain = own_chain
        self.source = source
        self.marked = False
        self.returned: list[Entry[_Outcome]] = []
        own = find_all(table.rules(POSTROUTING), own_chain)
        guards = _guards(own, table.family)
        self.guards = guards or Guards(
            local_destinations=any(rule.option("dst-type") is None for rule in own)
        )
        # What the guards say of a jump is no exception to anything.
        self._guarded = frozenset(own) if guards else frozenset[Rule]()
        self._read: dict[tuple[str, bool], _ChainReading] = {}

    def chain(self, name: str, callers: tuple[str, ...]) -> _ChainReading:
        """Return what a chain does; its outcome is RETURN where no rule decides."""
        key = (name, self.marked)
        if key not in self._read:
            self._read[key] = self._read_chain(name, (*callers, name))
        self.marked = self._read[key].marked
        return self._read[key]

    def _read_chain(self, name: str, callers: tuple[str, ...]) -> _ChainReading:
        family = self.table.family
        entries: list[Entry[_Outcome]] = []
        positions: list[int] = []  # of the rule that each of the entries comes from
        partial: list[tuple[int, _Partial]] = []
        returning: list[tuple[int, _Partial]] = []
        for position, rule in enumerate(self.table.rules(name), start=1):
            for item in self._rule(name, position, rule, callers):
                if isinstance(item, Entry):
                    entries.append(item)
                    positions.append(position)
                elif item.exception.verdict is Verdict.UNKNOWN and rule.target == "RETURN":
                    returning.append((position, item))
                else:
                    partial.append((position, item))
            last = entries[-1] if entries else None
            if last and last.first == 0 and last.last == family.last_address:
                break  # no packet gets past it
        end = Origin(f"end of {name}")
        ranges = first_match(family, entries, _Outcome.RETURN, end)
        reached: list[_Partial] = []
        if partial or returning:
            deciders = [
                Entry(entry.first, entry.last, position, entry.origin)
                for entry, position in zip(entries, positions, strict=True)
            ]
            reach = first_match(family, deciders, len(self.table.rules(name)) + 1, end)
            reached += _reached(partial, reach)
            # To return early matters only where the rest of the chain would decide.
            reached += (
                item.within(entry.first, entry.last)
                for item in _reached(returning, reach)
                for entry in _overlapping(ranges, item.first, item.last)
                if entry.verdict is not _Outcome.RETURN
            )
        return _ChainReading(ranges, reached, self.marked)

    def _rule(
        self, chain: str, position: int, rule: Rule, callers: tuple[str, ...]
    ) -> Iterator[Entry[_Outcome] | _Partial]:
        """Yield what a rule decides for certain, and what it decides for some packets."""
        everything = ((0, self.table.family.last_address),)
        origin = Origin(rule.text, chain, position)
        if not rule.readable:
            yield Entry(*everything[0], _Outcome.UNKNOWN, origin)
            return
        guarded = chain == POSTROUTING and rule in self._guarded
        matches, target = self._matches(rule, guarded=guarded), rule.target
        if matches is _Match.NEVER or target is None:
            return
        if target in _PASSING:
            self.marked |= target in _MARKING
            return
        ranges = _destinations(rule, self.table)
        if ranges is None:
            ranges = everything
        calls = target in self.table.chains and target not in callers and len(callers) < _DEEPEST
        if calls:
            called = self.chain(target, callers)
            if matches is _Match.ALWAYS and target == self.own_chain:
                self.returned += _clipped(
                    [e for e in called.ranges if e.verdict is _Outcome.RETURN], ranges
                )
            for first, last in ranges:
                for item in called.partial:
                    if item.first <= last and first <= item.last:
                        yield item.within(first, last)
            leaves = rule.option("goto") is not None
            decided = [e for e in called.ranges if leaves or e.verdict is not _Outcome.RETURN]
            outcomes = _clipped(decided, ranges)
        else:
            outcome = _OUTCOMES.get(target, _Outcome.UNKNOWN)
            outcomes = (Entry(first, last, outcome, origin) for first, last in ranges)
        for entry in outcomes:
            if matches is _Match.ALWAYS:
                yield entry
            elif matches is _Match.UNREADABLE:
                yield Entry(entry.first, entry.last, _Outcome.UNKNOWN, origin)
            else:
                verdict = _VERDICTS.get(entry.verdict, Verdict.UNKNOWN)
                if entry.verdict is _Outcome.RETURN and chain in (self.own_chain, POSTROUTING):
                    verdict = Verdict.NON_MASQUERADE
                exception = RuleException(chain, position, rule, verdict)
                yield _Partial(exception, entry.first, entry.last)

    def _matches(self, rule: Rule, *, guarded: bool) -> _Match:
        """Return whether the rule matches, its destination apart, and for a jump its guards.

        All of its options must match. Where one of them holds for some packets only, one
        that cannot be read makes these fewer, and not unknown.
        """
        known = _GUARDING if guarded and self.source is None else _GUARDING - {"source"}
        answers = [
            self._option(option)
            for option in rule.meaning
            if not (guarded and option.name in known)
        ]
        for answer in (_Match.NEVER, _Match.SOMETIMES, _Match.UNREADABLE):
            if answer in answers:
                return answer
        return _Match.ALWAYS

    def _option(self, option: Option) -> _Match:
        name, values, negated = option
        if name in _OF_TARGETS:
            return _Match.ALWAYS
        if name == "destination":
            readable = read_prefix(" ".join(values), self.table.family)
            return _Match.ALWAYS if readable else _Match.UNREADABLE
        if name == "source":
            if self.source is None:
                return _Match.SOMETIMES
            prefix = read_prefix(" ".join(values), self.table.family)
            if prefix is None:
                return _Match.SOMETIMES
            return _certain((prefix.first <= self.source <= prefix.last) is not negated)
        if name == "dst-type" and values == ("LOCAL",):
            return _certain(negated)  # the packet is not for this node
        if name == "mark":
            return _Match.UNREADABLE if self.marked else _unmarked(values, negated)
        if name == "match-set":
            if _own_set(option, self.table) is not None:
                return _Match.ALWAYS  # it is read as a destination
            directions = values[-1].split(",") if values else ["dst"]
            return _Match.UNREADABLE if "dst" in directions else _Match.SOMETIMES
        module = values[0] if name == "match" and values else name.partition(".")[0]
        if module.partition("#")[0] in _NARROWING_MODULES:
            return _Match.SOMETIMES
        return _Match.SOMETIMES if name in _NARROWING else _Match.UNREADABLE


def _certain(matches: bool) -> _Match:
    return _Match.ALWAYS if matches else _Match.NEVER


def _unmarked(values: tuple[str, ...], negated: bool) -> _Match:
    """Whether ``--mark VALUE[/MASK]`` matches a packet whose mark is 0."""
    try:
        value = int(values[0].partition("/")[0], 0)
    except (ValueError, IndexError):
        return _Match.UNREADABLE
    return _certain((value == 0) is not negated)


def _destinations(rule: Rule, table: Table) -> _Ranges | None:
    """Return the destination ranges of a rule, ascending; None where they cannot be read."""
    ranges = _prefix_ranges(rule, table.family)
    asked = rule.option("match-set")
    held = _own_set(asked, table) if asked else None
    if held is None or asked is None or ranges is None:
        return ranges
    matched = held.matched()
    within = _complement(matched, table.family) if asked.negated else matched
    if ranges == ((0, table.family.last_address),):
        return tuple(within)
    return tuple((first, last) for first, last, _, _ in intersections(ranges, within))


def _own_set(option: Option, table: Table) -> AddressSet | None:
    """Return the set that a rule asks about the destination, if its contents are known."""
    if len(option.values) != 2 or option.values[1] != "dst":
        return None
    return table.sets.get(option.values[0])


def _complement(ranges: Iterable[tuple[int, int]], family: Family) -> Iterator[tuple[int, int]]:
    start = 0
    for first, last in ranges:
        if start < first:
            yield start, first - 1
        start = last + 1
    if start <= family.last_address:
        yield start, family.last_address


def _prefix_ranges(rule: Rule, family: Family) -> _Ranges | None:
    option = rule.option("destination")
    if option is None:
        return ((0, family.last_address),)
    prefix = read_prefix(" ".join(option.values), family)
    if prefix is None:
        return None
    if not option.negated:
        return ((prefix.first, prefix.last),)
    return tuple(_complement(((prefix.first, prefix.last),), family))


def _clipped(
    entries: Sequence[Entry[_Outcome]], ranges: Sequence[tuple[int, int]]
) -> Iterator[Entry[_Outcome]]:
    """Yield the parts of the entries that lie within the ranges; both ascend."""
    if len(ranges) == 1 and entries:
        first, last = ranges[0]
        if first <= entries[0].first and entries[-1].last <= last:
            yield from entries
            return
    spans = ((entry.first, entry.last) for entry in entries)
    for first, last, position, _ in intersections(spans, ranges):
        yield entries[position]._replace(first=first, last=last)


def _reached(partial: list[tuple[int, _Partial]], deciders: list[Entry[int]]) -> Iterator[_Partial]:
    """Yield the parts of each range that no rule before the exception decides.

    Args:
        partial: exceptions of one chain, each with the position in it at which they act.
        deciders: the position of the rule that decides for certain, for each destination.
    """
    for position, item in partial:
        for decider in _overlapping(deciders, item.first, item.last):
            if decider.verdict >= position:
                yield item.within(decider.first, decider.last)


def _guards(jumps: list[Rule], family: Family) -> Guards | None:
    """Return the guards that the jumps to our chain express together.

    None where they are not one jump for each source and device: then each jump holds for
    some packets, and is told as the exception that it is.
    """
    sources: set[Prefix | None] = set()
    devices: set[str | None] = set()
    pairs: set[tuple[Prefix | None, str | None]] = set()
    local: set[bool] = set()
    for jump in jumps:
        if not jump.readable or any(option.name not in _ON_JUMPS for option in jump.meaning):
            return None
        source, device = jump.option("source"), jump.option("out-interface")
        prefix = read_prefix(" ".join(source.values), family) if source else None
        name = device.values[0] if device and device.values else None
        if (source and (source.negated or prefix is None)) or (device and _is_open(device)):
            return None
        local.add(jump.option("dst-type") is None)
        sources.add(prefix)
        devices.add(name)
        pairs.add((prefix, name))
    if len(pairs) < len(sources) * len(devices) or len(local) != 1:
        return None
    return Guards(
        local.pop(),
        None if None in sources else tuple(sorted(p for p in sources if p is not None)),
        None if None in devices else tuple(sorted(d for d in devices if d is not None)),
    )


_ON_JUMPS = _GUARDING | {"dst-type", "jump"}


def _is_open(device: Option) -> bool:
    """Whether ``-o`` names more than the one device."""
    return device.negated or len(device.values) != 1 or device.values[0].endswith("+")


def _action(rules: tuple[Rule, ...], family: Family) -> Action:
    """Return the action that the chain's translating rules carry out.

    They come in groups, one for each destination and source address. Ports count only
    where every group has every rule that makes them whole; the odd rule of somebody's own
    is an exception, not an action.
    """
    translating = [rule for rule in rules if rule.target in ("MASQUERADE", "SNAT")]
    plain = [rule for rule in translating if rule.option("protocol") is None]
    random_fully = bool(plain) and plain[-1].option("random-fully") is not None
    action = Action(_ports(translating), random_fully)
    groups = _grouped(translating, action, family)
    if groups is None:
        action = Action((), random_fully)
        groups = _grouped(plain, action, family) or []
    origin = Origin("rule")
    entries = [
        Entry(first, last, address, origin) for ranges, address in groups for first, last in ranges
    ]
    fixed: list[FixedSource] = []
    if any(address is not None for _, address in groups):
        for first, last, address, _ in first_match(family, entries, None, origin):
            if address is not None:
                fixed.append(FixedSource(first, last, address))
    return replace(action, fixed=joined(fixed))


def _ports(translating: list[Rule]) -> tuple[PortRange, ...]:
    """Return the port ranges of the last group: those of its last protocol."""
    ports: list[PortRange] = []
    for rule in reversed(translating[:-1]):
        protocol = rule.option("protocol")
        source = rule.option("to-source")
        text = rule.option("to-ports") or source
        if not (protocol and text and protocol.values == PORT_PROTOCOLS[-1:]):
            break
        first, _, last = text.values[0].rpartition(":")[2].partition("-")
        if not (first.isdigit() and (last or first).isdigit()):
            break
        ports.insert(0, PortRange(int(first), int(last or first)))
    return tuple(ports)


def _grouped(
    rules: list[Rule], action: Action, family: Family
) -> list[tuple[_Ranges, int | None]] | None:
    """Return destinations and source address of each group; None where one is not whole."""
    size = len(list(target_rules(action)))
    groups: list[tuple[_Ranges, int | None]] = []
    if len(rules) % size:
        return None
    for start in range(0, len(rules), size):
        group = rules[start : start + size]
        source = group[-1].option("to-source")
        address = source.values[0] if source and source.values else None
        whole = [parse_rule(text, family).meaning for text in target_rules(action, address)]
        if len({rule.option("destination") for rule in group}) != 1:
            return None
        ranges = _prefix_ranges(group[0], family)
        number = None if address is None else read_prefix(address, family)
        if [_anywhere(rule) for rule in group] != whole or ranges is None:
            return None
        if address is not None and (number is None or number.length < family.bits):
            return None
        groups.append((ranges, number.first if number else None))
    return groups


def _anywhere(rule: Rule) -> tuple[Option, ...]:
    return tuple(option for option in rule.meaning if option.name != "destination")
