"""Random policies and the parts they are made of, for Hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

from ipmasq_agent.policy.addresses import Family, Prefix, collapsed, prefixes_of_range
from ipmasq_agent.policy.decisions import DecisionMap, Entry, Stated, Verdict, first_match
from ipmasq_agent.policy.model import (
    Action,
    FamilyPolicy,
    FixedSource,
    Guards,
    PortRange,
    joined,
)

FAMILIES = st.sampled_from(list(Family))
VERDICTS = st.sampled_from([Verdict.MASQUERADE, Verdict.NON_MASQUERADE])


@st.composite
def addresses(draw: st.DrawFn, family: Family) -> int:
    """Any address; one time in two near a corner, where ranges meet and mistakes live."""
    last = family.last_address
    if draw(st.booleans()):
        return draw(st.integers(0, last))
    corner = draw(st.sampled_from([0, 10 << family.bits - 8, last // 2 + 1, last]))
    return min(max(corner + draw(st.integers(-3, 3)), 0), last)


@st.composite
def prefixes(draw: st.DrawFn, family: Family) -> Prefix:
    """Any aligned prefix; the whole space and single addresses come often."""
    length = draw(st.sampled_from([0, 1, family.bits]) | st.integers(0, family.bits))
    host_bits = family.bits - length
    return Prefix(family, draw(addresses(family)) >> host_bits << host_bits, length)


@st.composite
def entries(draw: st.DrawFn, family: Family, max_size: int = 12) -> list[Entry[Verdict]]:
    """Ranges in evaluation order, often overlapping."""
    made = []
    for number in range(draw(st.integers(0, max_size))):
        ends = sorted((draw(addresses(family)), draw(addresses(family))))
        if draw(st.booleans()):
            prefix = draw(prefixes(family))
            ends = [prefix.first, prefix.last]
        made.append(Entry(ends[0], ends[1], draw(VERDICTS), Stated(f"entry {number}")))
    return made


@st.composite
def maps(draw: st.DrawFn, family: Family, max_size: int = 12) -> DecisionMap:
    """A decision map with either default."""
    return DecisionMap(family, draw(entries(family, max_size)), draw(VERDICTS))


# Where the bytes of addresses change, and lengths on both sides of whole bytes.
_CORNERS = st.sampled_from([0, 10 << 24, 10 << 24 | 1 << 16, 10 << 24 | 0x1FF00, (1 << 32) - 1])
_LENGTHS = st.sampled_from([0, 1, 7, 8, 9, 15, 16, 17, 22, 23, 24, 25, 30, 31, 32])


@st.composite
def nested_ipv4(draw: st.DrawFn) -> DecisionMap:
    """Prefixes close together of which the innermost decides, whatever the others say."""
    family, made = Family.IPV4, []
    for number in range(draw(st.integers(0, 10))):
        length = draw(_LENGTHS)
        address = min(max(draw(_CORNERS) + draw(st.integers(-600, 600)), 0), family.last_address)
        prefix = Prefix(family, address >> 32 - length << 32 - length, length)
        made.append(Entry(prefix.first, prefix.last, draw(VERDICTS), Stated(f"entry {number}")))
    made.sort(key=lambda entry: entry.last - entry.first)
    return DecisionMap(family, made, draw(VERDICTS))


@st.composite
def port_ranges(draw: st.DrawFn) -> PortRange:
    first, last = sorted((draw(st.integers(1, 65535)), draw(st.integers(1, 65535))))
    return PortRange(first, last)


@st.composite
def policies(draw: st.DrawFn, family: Family) -> FamilyPolicy:
    """A policy of few rules: entries are prefixes, or short ranges that need several."""
    made: list[Entry[Verdict]] = []
    for number in range(draw(st.integers(0, 6))):
        prefix = draw(prefixes(family))
        last = prefix.last
        if prefix.length == family.bits:
            last = min(prefix.first + draw(st.integers(0, 40)), family.last_address)
        made.append(Entry(prefix.first, last, draw(VERDICTS), Stated(f"entry {number}")))
        assert len(list(prefixes_of_range(family, prefix.first, last))) <= 12
    ports = tuple(draw(st.lists(port_ranges(), max_size=4)))
    return FamilyPolicy(
        DecisionMap(family, made, draw(VERDICTS)),
        draw(guards(family)),
        Action(ports, draw(st.booleans()), draw(fixed_sources(family))),
    )


@st.composite
def guards(draw: st.DrawFn, family: Family) -> Guards:
    """Any guards; sources are disjoint, as a policy has them."""
    sources = tuple(p for p in collapsed(draw(st.lists(prefixes(family)))) if p.length)[:3]
    devices = draw(st.sets(st.sampled_from(["eth0", "eth1", "bond0.100", "wg-0"]), max_size=3))
    return Guards(draw(st.booleans()), sources or None, tuple(sorted(devices)) or None)


@st.composite
def fixed_sources(draw: st.DrawFn, family: Family) -> tuple[FixedSource, ...]:
    """A few destination ranges with addresses of their own, or one for all."""
    if draw(st.booleans()):
        return ()
    if draw(st.booleans()):
        return (FixedSource(0, family.last_address, draw(addresses(family))),)
    wanted = draw(st.lists(prefixes(family), max_size=2))
    origin = Stated("route")
    entries: list[Entry[int | None]] = [
        Entry(p.first, p.last, draw(addresses(family)), origin) for p in wanted
    ]
    ranges = first_match(family, entries, None, origin)
    return joined(FixedSource(f, last, a) for f, last, a, _ in ranges if a is not None)


ANY_MAP = FAMILIES.flatmap(maps)
ANY_POLICY = FAMILIES.flatmap(policies)
