"""Random policies and the parts they are made of, for Hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

from ipmasq_agent.policy.addresses import Family, Prefix, prefixes_of_range
from ipmasq_agent.policy.decisions import DecisionMap, Entry, Origin, Verdict
from ipmasq_agent.policy.model import Action, FamilyPolicy, Guards, PortRange

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
        made.append(Entry(ends[0], ends[1], draw(VERDICTS), Origin(f"entry {number}")))
    return made


@st.composite
def maps(draw: st.DrawFn, family: Family, max_size: int = 12) -> DecisionMap:
    """A decision map with either default."""
    return DecisionMap(family, draw(entries(family, max_size)), draw(VERDICTS))


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
        made.append(Entry(prefix.first, last, draw(VERDICTS), Origin(f"entry {number}")))
        assert len(list(prefixes_of_range(family, prefix.first, last))) <= 12
    return FamilyPolicy(
        DecisionMap(family, made, draw(VERDICTS)),
        Guards(local_destinations=draw(st.booleans())),
        Action(tuple(draw(st.lists(port_ranges(), max_size=4))), draw(st.booleans())),
    )


ANY_MAP = FAMILIES.flatmap(maps)
ANY_POLICY = FAMILIES.flatmap(policies)
