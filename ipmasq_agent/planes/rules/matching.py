"""What one rule says of the packets that are asked about.

The packet is what a pod sends out: first of its connection, with no firewall mark, to a
destination that is not the node's own. A rule that looks at something else of it holds for
some packets; one that looks at the destination in a way that cannot be read is unreadable.
"""

from __future__ import annotations

import enum
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass

from ipmasq_agent.planes.prefixset import AddressSet
from ipmasq_agent.planes.rules.rule import Option, Rule, read_prefix
from ipmasq_agent.planes.rules.table import Table
from ipmasq_agent.policy.addresses import Family, Prefix, parse_address
from ipmasq_agent.policy.ranges import intersections

Ranges = tuple[tuple[int, int], ...]

# Matches on anything but the destination address: they narrow a rule to some packets.
_NARROWING = frozenset(
    {"protocol", "fragment", "dport", "sport", "dports", "sports", "narrowing"}
    | {"ports", "mode", "probability", "every", "packet", "src-type", "limit-iface-out", "syn"}
    | {"tcp-flags", "tcp-option", "chunk-types", "icmp-type", "icmpv6-type"}
    | {"ctdir", "ctstatus", "ctproto", "ctorigsrc", "ctorigsrcport"}
)
# Modules whose every option does so; the options of these are named MODULE.OPTION.
_NARROWING_MODULES = frozenset(
    {"connmark", "state", "owner", "limit", "hashlimit", "connlimit", "pkttype", "length", "ttl"}
    | {"hl", "tos", "dscp", "mac", "physdev", "time", "cgroup", "udplite", "dccp", "helper"}
    | {"tcp", "udp", "sctp", "icmp", "icmp6", "multiport", "statistic", "rpfilter", "esp", "ah"}
)
_OF_TARGETS = frozenset(
    {"jump", "goto", "to-ports", "random", "random-fully", "persistent", "to-source", "to"}
    | {"marks", "notrack", "zone", "zone-orig", "zone-reply", "ctevents", "expevents"}
)
_NEW_NEVER_IS = frozenset({"ESTABLISHED", "INVALID", "UNTRACKED"})


class Match(enum.Enum):
    """Whether a rule matches the packets asked about, their destination apart."""

    ALWAYS = enum.auto()
    NEVER = enum.auto()
    SOMETIMES = enum.auto()
    UNREADABLE = enum.auto()


@dataclass(frozen=True, slots=True)
class Question:
    """Which packets are asked about.

    Attributes:
        sources: where they come from, as ranges with their ends included; None for anywhere.
        devices: through which they leave; None for any.
        others: they may leave through other devices as well.
    """

    sources: Ranges | None = None
    devices: tuple[str, ...] | None = None
    others: bool = False


ANY = Question()


def question(source: int | None, device: str | None = None) -> Question:
    """Return the question about packets of one source, through one device; None for any."""
    return Question(
        None if source is None else ((source, source),), None if device is None else (device,)
    )


def option_matches(option: Option, table: Table, asked: Question, *, marked: bool) -> Match:
    """Return whether packets, perhaps ``marked`` by rules before, have what an option asks for."""
    name, values, negated = option
    if name in _OF_TARGETS or name == "dst-range":
        return Match.ALWAYS
    if name == "destination":
        readable = read_prefix(" ".join(values), table.family)
        return Match.ALWAYS if readable else Match.UNREADABLE
    if name in ("source", "src-range"):
        return _from(_spans(option, table.family), asked, negated=negated)
    if name == "out-interface":
        return _through(values, asked, negated=negated)
    if name == "in-interface":
        return Match.SOMETIMES
    if name == "nfproto":
        return certain((values == (table.family.value,)) is not negated)
    if name == "dst-type" and values == ("LOCAL",):
        return certain(negated)  # the packet is not for this node
    if name == "ctstate":
        return _of_state(values, negated=negated)
    if name == "mark":
        return Match.UNREADABLE if marked else _unmarked(values, negated=negated)
    if name == "match-set":
        return _in_set(option, table, asked)
    module = values[0] if name == "match" and values else name.partition(".")[0]
    if module.partition("#")[0] in _NARROWING_MODULES:
        return Match.SOMETIMES
    return Match.SOMETIMES if name in _NARROWING else Match.UNREADABLE


def certain(matches: bool) -> Match:
    """Return the match of what is known."""
    return Match.ALWAYS if matches else Match.NEVER


def _spans(option: Option, family: Family) -> Ranges | None:
    """Return the ranges that ``-s`` or a range of sources names; None where it is unreadable."""
    if option.name == "src-range":
        return _ends(option, family)
    prefix = read_prefix(" ".join(option.values), family)
    return None if prefix is None else ((prefix.first, prefix.last),)


def _ends(option: Option, family: Family) -> Ranges:
    """Return the range in ``FIRST-LAST``; none where the option holds nothing."""
    found = []
    for value in option.values:
        first, _, last = value.partition("-")
        found.append((parse_address(first)[1], parse_address(last)[1]))
    return tuple(found)


def _from(spans: Ranges | None, asked: Question, *, negated: bool) -> Match:
    if asked.sources is None or spans is None:
        return Match.SOMETIMES
    if not any(True for _ in intersections(asked.sources, spans)):
        return certain(negated)
    within = all(
        any(first <= low and high <= last for first, last in spans) for low, high in asked.sources
    )
    return certain(not negated) if within else Match.SOMETIMES


def _through(names: Sequence[str], asked: Question, *, negated: bool) -> Match:
    if not asked.devices:
        return Match.SOMETIMES
    found = [any(_names(name, device) for name in names) for device in asked.devices]
    if all(found) is any(found) and (all(found) is not negated or not asked.others):
        return certain(all(found) is not negated)
    return Match.SOMETIMES


def _names(pattern: str, device: str) -> bool:
    return device.startswith(pattern[:-1]) if pattern.endswith("+") else device == pattern


def _of_state(values: Sequence[str], *, negated: bool) -> Match:
    """Whether ``--ctstate`` holds for the first packet of a connection."""
    states = {state for value in values for state in value.split(",")}
    if "NEW" in states:
        return certain(not negated)
    return certain(negated) if states <= _NEW_NEVER_IS else Match.SOMETIMES


def _unmarked(values: tuple[str, ...], *, negated: bool) -> Match:
    """Whether ``--mark VALUE[/MASK]`` matches a packet whose mark is 0."""
    try:
        value = int(values[0].partition("/")[0], 0)
    except (ValueError, IndexError):
        return Match.UNREADABLE
    return certain((value == 0) is not negated)


def _in_set(option: Option, table: Table, asked: Question) -> Match:
    if _own_set(option, table) is not None:
        return Match.ALWAYS  # it is read as a destination
    sides = option.values[-1].split(",") if option.values else ["dst"]
    if len(sides) > 1:
        return Match.SOMETIMES  # it looks at more than the destination
    if "dst" in sides:
        return Match.UNREADABLE
    held = table.sets.get(option.values[0]) if sides == ["src"] else None
    spans = None if held is None else tuple(held.matched())
    return _from(spans, asked, negated=option.negated)


def destinations(rule: Rule, table: Table) -> Ranges | None:
    """Return the destination ranges of a rule, ascending; None where they cannot be read."""
    everything: Ranges = ((0, table.family.last_address),)
    ranges = everything
    for option in rule.meaning:
        within = _within(option, table)
        if within is None:
            return None
        if within == everything:
            continue
        if ranges == everything:
            ranges = within
        else:
            ranges = tuple((a, b) for a, b, _, _ in intersections(ranges, within))
    return ranges


def destination_of(rule: Rule, family: Family) -> Prefix | None:
    """Return the prefix of destinations that a rule speaks of; None where it is not one."""
    option = rule.option("destination")
    if option is None and _ABOUT_DESTINATIONS.isdisjoint(each.name for each in rule.meaning):
        return Prefix(family, 0, 0)
    if option is None or option.negated:
        return None
    return read_prefix(" ".join(option.values), family)


_ABOUT_DESTINATIONS = frozenset({"destination", "dst-range", "match-set"})


def _within(option: Option, table: Table) -> Ranges | None:
    """Return the destinations that an option admits; all of them where it asks for none."""
    family = table.family
    if option.name not in _ABOUT_DESTINATIONS:
        return ((0, family.last_address),)
    if option.name == "destination":
        prefix = read_prefix(" ".join(option.values), family)
        if prefix is None:
            return None
        spans: Iterable[tuple[int, int]] = ((prefix.first, prefix.last),)
    elif option.name == "dst-range":
        spans = _ends(option, family)
    else:
        held = _own_set(option, table)
        if held is None:
            return ((0, family.last_address),)
        spans = held.matched()
    return tuple(complement(spans, family) if option.negated else spans)


def _own_set(option: Option, table: Table) -> AddressSet | None:
    """Return the set that a rule asks about the destination, if its contents are known."""
    if len(option.values) != 2 or option.values[1] != "dst":
        return None
    return table.sets.get(option.values[0])


def complement(ranges: Iterable[tuple[int, int]], family: Family) -> Iterator[tuple[int, int]]:
    """Yield what lies between ascending ranges."""
    start = 0
    for first, last in ranges:
        if start < first:
            yield start, first - 1
        start = last + 1
    if start <= family.last_address:
        yield start, family.last_address


def matches_of(
    rule: Rule, table: Table, asked: Question, *, marked: bool, but: Container[str] = ()
) -> Match:
    """Return whether a rule matches, its destination apart.

    All of its options must match. Where one of them holds for some packets only, one that
    cannot be read makes these fewer, and not unknown.
    """
    answers = [
        option_matches(option, table, asked, marked=marked)
        for option in rule.meaning
        if option.name not in but
    ]
    for answer in (Match.NEVER, Match.SOMETIMES, Match.UNREADABLE):
        if answer in answers:
            return answer
    return Match.ALWAYS
