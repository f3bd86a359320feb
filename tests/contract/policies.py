"""Policies to hold backends against: a few by name, and long seeded walks from one to the next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random

from ipmasq_agent.policy.addresses import Family, Prefix, collapsed
from ipmasq_agent.policy.decisions import DecisionMap, Entry, Stated, Verdict, entry_of_prefix
from ipmasq_agent.policy.model import (
    Action,
    FamilyPolicy,
    FixedSource,
    Guards,
    joined,
    parse_port_ranges,
)

PORTS = ("", "1024-29999", "1024-29999,32768-65535", "40000", "1-9,20-29,30-65535")
# More rules than are edited in place (EDITED_IN_PLACE), so that the chain is written anew.
MANY = 90
_CHANGES = (
    *("insert", "insert", "insert", "delete", "replace", "swap", "append", "few"),
    *("many", "many", "random", "random", "ports", "local", "default"),
    *("sources", "devices", "fixed"),
)


def prefix(family: Family, number: int) -> Prefix:
    """Return the prefix of that number: 10.0.1.0/24, fd00:0:1::/48 and so on."""
    host_bits = 8 if family is Family.IPV4 else 80
    start = 10 << 24 if family is Family.IPV4 else 0xFD << 120
    return Prefix(family, start + (number << host_bits), family.bits - host_bits)


def entry(family: Family, number: int, verdict: Verdict = Verdict.NON_MASQUERADE) -> Entry[Verdict]:
    return entry_of_prefix(prefix(family, number), verdict, Stated(f"entry {number}"))


def policy(
    family: Family,
    entries: Sequence[Entry[Verdict] | int] = (),
    *,
    default: Verdict = Verdict.MASQUERADE,
    ports: str = "",
    random_fully: bool = True,
    local: bool = False,
    sources: Sequence[int] = (),
    devices: Sequence[str] = (),
    fixed: Sequence[int] = (),
) -> FamilyPolicy:
    """Return a policy; an entry given as a number is that prefix, not masqueraded.

    Sources are given as such numbers too; what goes to a prefix in ``fixed`` gets the
    source address of that number, and everything else does where the number is -1.
    """
    made = [entry(family, item) if isinstance(item, int) else item for item in entries]
    guarding = collapsed(prefix(family, number) for number in sources)
    return FamilyPolicy(
        DecisionMap(family, made, default),
        Guards(local, guarding or None, tuple(sorted(devices)) or None),
        Action(parse_port_ranges(ports), random_fully, _fixed(family, fixed)),
    )


def _fixed(family: Family, numbers: Sequence[int]) -> tuple[FixedSource, ...]:
    address = prefix(family, 77).first + 1
    if -1 in numbers:
        return (FixedSource(0, family.last_address, address),)
    prefixes = sorted(prefix(family, number) for number in set(numbers))
    return joined(FixedSource(p.first, p.last, address + p.first % 2) for p in prefixes)


@dataclass(frozen=True)
class _Step:
    entries: tuple[Entry[Verdict], ...] = ()
    default: Verdict = Verdict.MASQUERADE
    ports: str = ""
    random_fully: bool = True
    local: bool = False
    sources: tuple[int, ...] = ()
    devices: tuple[str, ...] = ()
    fixed: tuple[int, ...] = ()


def walk(family: Family, seed: int, steps: int) -> Iterator[FamilyPolicy]:
    """Yield policies, each a small or a large change away from the one before."""
    random = Random(seed)
    now = _Step(tuple(_entry(family, random) for _ in range(5)))
    for _ in range(steps):
        yield policy(
            family,
            now.entries,
            default=now.default,
            ports=now.ports,
            random_fully=now.random_fully,
            local=now.local,
            sources=now.sources,
            devices=now.devices,
            fixed=now.fixed,
        )
        now = _changed(now, family, random)


def _entry(family: Family, random: Random) -> Entry[Verdict]:
    number = random.randrange(1 << 16)
    length = random.choice([1, 8, 20, 24, 31, family.bits])
    if random.random() < 0.1:
        # A range that no single prefix covers: several rules for one entry.
        first = prefix(family, number).first + 1
        return Entry(first, first + random.randrange(1, 12), _verdict(random), Stated("range"))
    host_bits = family.bits - length
    first = prefix(family, number).first >> host_bits << host_bits
    return entry_of_prefix(Prefix(family, first, length), _verdict(random), Stated(f"{number}"))


def _verdict(random: Random) -> Verdict:
    return Verdict.MASQUERADE if random.random() < 0.2 else Verdict.NON_MASQUERADE


def _changed(now: _Step, family: Family, random: Random) -> _Step:
    entries = list(now.entries)
    place = random.randrange(len(entries) + 1)
    what = random.choice(_CHANGES)
    if what == "insert":
        entries.insert(place, _entry(family, random))
    elif what == "delete":
        del entries[place : place + random.randrange(1, 4)]
    elif what == "replace":
        entries[place : place + 2] = [_entry(family, random)]
    elif what == "swap":
        entries[place:] = reversed(entries[place:])
    elif what == "append":
        entries += [_entry(family, random) for _ in range(3)]
    elif what == "random":
        return replace(now, random_fully=not now.random_fully)
    elif what == "ports":
        return replace(now, ports=random.choice(PORTS))
    elif what == "local":
        return replace(now, local=not now.local)
    elif what == "sources":
        return replace(now, sources=tuple(random.sample(range(9), random.randrange(4))))
    elif what == "devices":
        names = ["eth0", "eth1", "bond0.7"]
        return replace(now, devices=tuple(random.sample(names, random.randrange(4))))
    elif what == "fixed":
        fixed = random.choice([(), (-1,), (3,), (4, 5, 9)])
        return replace(now, fixed=fixed)
    elif what == "default":
        verdicts = [Verdict.MASQUERADE, Verdict.NON_MASQUERADE]
        return replace(now, default=random.choice(verdicts))
    elif what == "many":
        entries = [_entry(family, random) for _ in range(MANY)]
    else:
        entries = entries[:3]
    return replace(now, entries=tuple(entries))
