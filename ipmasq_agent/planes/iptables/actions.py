"""Guards and action of our chain, read back from the jumps to it and from its rules."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from ipmasq_agent.planes.iptables.compile import target_options
from ipmasq_agent.planes.iptables.ownership import ON_JUMPS
from ipmasq_agent.planes.iptables.text import rule_of
from ipmasq_agent.planes.rules.matching import Ranges, destinations
from ipmasq_agent.planes.rules.rule import Option, Rule, read_prefix
from ipmasq_agent.planes.rules.table import Table
from ipmasq_agent.policy.addresses import Family, Prefix
from ipmasq_agent.policy.decisions import Entry, Stated, first_match
from ipmasq_agent.policy.model import PORT_PROTOCOLS, Action, FixedSource, Guards, PortRange, joined

GUARDING = frozenset({"source", "out-interface"})
"""What may stand on a jump to our chain: its guards."""


def guards_of(jumps: list[Rule], family: Family) -> Guards | None:
    """Return the guards that the jumps to our chain express together.

    None where they are not one jump for each source and device: then each jump holds for
    some packets, and is told as the exception that it is.
    """
    sources: set[Prefix | None] = set()
    devices: set[str | None] = set()
    pairs: set[tuple[Prefix | None, str | None]] = set()
    local: set[bool] = set()
    for jump in jumps:
        if not jump.readable or any(option.name not in ON_JUMPS for option in jump.meaning):
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


def _is_open(device: Option) -> bool:
    """Whether ``-o`` names more than the one device."""
    return device.negated or len(device.values) != 1 or device.values[0].endswith("+")


def action_of(rules: Sequence[Rule], family: Family) -> Action:
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
    reason = Stated("rule")
    entries = [
        Entry(first, last, address, reason) for ranges, address in groups for first, last in ranges
    ]
    fixed: list[FixedSource] = []
    if any(address is not None for _, address in groups):
        for first, last, address, _ in first_match(family, entries, None, reason):
            if address is not None:
                fixed.append(FixedSource(first, last, address))
    return replace(action, fixed=joined(fixed))


_PORTS = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?", re.ASCII)


def _ports(translating: list[Rule]) -> tuple[PortRange, ...]:
    """Return the port ranges of the last group: those of its last protocol."""
    ports: list[PortRange] = []
    for rule in reversed(translating[:-1]):
        protocol = rule.option("protocol")
        source = rule.option("to-source")
        text = rule.option("to-ports") or source
        if not (protocol and text and protocol.values == PORT_PROTOCOLS[-1:]):
            break
        found = _PORTS.fullmatch(" ".join(text.values).rpartition(":")[2])
        if found is None:
            break
        first, last = int(found[1]), int(found[2] or found[1])
        if first > last:
            break
        ports.insert(0, PortRange(first, last))
    return tuple(ports)


def _grouped(
    rules: list[Rule], action: Action, family: Family
) -> list[tuple[Ranges, int | None]] | None:
    """Return destinations and source address of each group; None where one is not whole."""
    size = len(list(target_options(action)))
    groups: list[tuple[Ranges, int | None]] = []
    if len(rules) % size:
        return None
    for start in range(0, len(rules), size):
        group = rules[start : start + size]
        source = group[-1].option("to-source")
        address = source.values[0] if source and source.values else None
        whole = [rule_of(options, family).meaning for options in target_options(action, address)]
        if len({rule.option("destination") for rule in group}) != 1:
            return None
        ranges = destinations(group[0], Table(family, {}))
        number = None if address is None else read_prefix(address, family)
        if [_anywhere(rule) for rule in group] != whole or ranges is None:
            return None
        if address is not None and (number is None or number.length < family.bits):
            return None
        groups.append((ranges, number.first if number else None))
    return groups


def _anywhere(rule: Rule) -> tuple[Option, ...]:
    return tuple(option for option in rule.meaning if option.name != "destination")
