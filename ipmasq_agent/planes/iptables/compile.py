"""A policy as rules: a chain that returns what is kept and masquerades the rest, and its jumps.

Ours in the nat table of a family are that one chain and the jumps to it from POSTROUTING;
all else belongs to others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ipmasq_agent.errors import HostError
from ipmasq_agent.planes.iptables.ownership import SIGNATURE
from ipmasq_agent.planes.iptables.text import rule_of
from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.planes.prefixset import AddressSet, compile_set
from ipmasq_agent.planes.rules.rule import Option, Rule
from ipmasq_agent.policy.addresses import Family, Prefix, prefixes_of_range
from ipmasq_agent.policy.decisions import Verdict
from ipmasq_agent.policy.model import PORT_PROTOCOLS, Action, FamilyPolicy, Guards

Options = tuple[Option, ...]
"""What a rule is made of, in the order in which it is written."""
_RETURN = Option("jump", ("RETURN",))
_NOT_TO_THIS_NODE = Option("dst-type", ("LOCAL",), negated=True)
_RANDOM = Option("mode", ("random",))
_OF_JUMPS = Option("comment", (f"{SIGNATURE}packets that leave this node",))
_OF_THE_REST = Option("comment", (f"{SIGNATURE}everything else is masqueraded",))


@dataclass(frozen=True, slots=True)
class DesiredChain:
    """What our part of the table should hold; ``jumps`` is empty when we should have none.

    Attributes:
        placement: the chain's name, and where the jumps to it stand.
        jumps: the jumps to our chain.
        rules: the rules of our chain.
        address_set: the set that one of them asks; None where each prefix has its rule.
    """

    placement: Placement
    jumps: tuple[Rule, ...]
    rules: tuple[Rule, ...]
    address_set: AddressSet | None = None


def compile_policy(
    policy: FamilyPolicy, placement: Placement, *, set_name: str | None = None
) -> DesiredChain:
    """Return the rules that decide as ``policy`` does.

    With a set, one rule asks it for what is not masqueraded, in place of a rule for each.

    Comments stand on the jumps and on the last rule only: in the legacy backend each
    comment is 256 bytes of kernel memory and a call for every packet that passes it.

    Raises:
        HostError: a device has a name that iptables cannot express.
    """
    jumps = tuple(_jumps(policy.guards, placement.chain, policy.family))
    if set_name is None:
        return DesiredChain(placement, jumps, tuple(_chain(policy)))
    asked = Option("match-set", (set_name, "dst"))
    rules = rule_of((asked, _RETURN), policy.family), *_rest(policy)
    return DesiredChain(placement, jumps, rules, compile_set(policy.decisions, set_name))


def absent(placement: Placement) -> DesiredChain:
    """Return the state in which the table holds nothing of ours."""
    return DesiredChain(placement, (), ())


def _jumps(guards: Guards, chain: str, family: Family) -> Iterator[Rule]:
    """Yield one jump for each source and device that the policy speaks of.

    The guards stand here rather than in the chain, which so keeps to destinations. A
    packet matches one jump at most, as sources are disjoint and it leaves through one
    device.
    """
    local = () if guards.local_destinations else (_NOT_TO_THIS_NODE,)
    jump = Option("jump", (chain,))
    for source in guards.sources or (None,):
        for device in guards.devices or (None,):
            where = () if source is None else _prefix("source", source)
            through = () if device is None else (Option("out-interface", (_named(device),)),)
            yield rule_of((*where, *through, _OF_JUMPS, *local, jump), family)


def _named(device: str) -> str:
    if device.endswith("+"):
        raise HostError(
            f"iptables cannot name the device {device!r} alone: a + at the end stands for all "
            "devices whose names begin so",
            remedy="rename it, leave it out of egressInterfaces, or use --backend nftables; "
            "nothing was written",
        )
    return device


def _prefix(name: str, prefix: Prefix) -> Options:
    return (Option(name, (str(prefix),)),) if prefix.length else ()


def _chain(policy: FamilyPolicy) -> Iterator[Rule]:
    """Yield the rules for the user's entries in the user's order, then for the rest."""
    family, decisions = policy.family, policy.decisions
    for position, (first, last, verdict) in enumerate(decisions.entries.spans()):
        if verdict is Verdict.UNKNOWN:
            reason = decisions.entries[position].reason
            raise ValueError(f"no rule can carry out what is unknown: {reason}")
        if verdict is Verdict.NON_MASQUERADE:
            for prefix in prefixes_of_range(family, first, last):
                # Nearly all rules are of this kind, and what they say is canonical.
                options = (*_prefix("destination", prefix), _RETURN)
                yield Rule(options, options)
        else:
            made = _translating(policy.action, family, first, last)
            yield from (rule_of(options, family) for options in made)
    if decisions.default is Verdict.MASQUERADE:
        yield from _rest(policy)


def _rest(policy: FamilyPolicy) -> Iterator[Rule]:
    """Yield the rules for whatever has come so far, the last of them with a comment."""
    family = policy.family
    *before, last = _translating(policy.action, family, 0, family.last_address)
    yield from (rule_of(options, family) for options in before)
    yield rule_of((_OF_THE_REST, *last), family)


def _translating(action: Action, family: Family, first: int, last: int) -> Iterator[Options]:
    """Yield the rules that masquerade what goes to ``first`` to ``last``, ends included.

    The source that most prefixes would be needed for comes last, for whatever is left:
    a default route and one network beside it so take two rules, and not one for each
    prefix around that network.
    """
    pieces: dict[int | None, list[Prefix]] = {}
    for start, end, address in _pieces(action, first, last):
        pieces.setdefault(address, []).extend(prefixes_of_range(family, start, end))
    rest = max(pieces, key=lambda address: len(pieces[address]))
    for address in pieces:
        if address != rest:
            yield from _to_source(action, family, pieces[address], address)
    yield from _to_source(action, family, prefixes_of_range(family, first, last), rest)


def _pieces(action: Action, first: int, last: int) -> Iterator[tuple[int, int, int | None]]:
    """Yield the parts of a range, each with its source; None for the device's own."""
    at = first
    for fixed in action.fixed:
        start, end = max(first, fixed.first), min(last, fixed.last)
        if start > end:
            continue
        if at < start:
            yield at, start - 1, None
        yield start, end, fixed.address
        at = end + 1
    if at <= last:
        yield at, last, None


def _to_source(
    action: Action, family: Family, prefixes: Iterable[Prefix], address: int | None
) -> Iterator[Options]:
    source = None if address is None else family.show(address)
    for prefix in prefixes:
        for options in target_options(action, source):
            yield *_prefix("destination", prefix), *options


def target_options(action: Action, source: str | None = None) -> Iterator[Options]:
    """Yield the rules that translate: one for each protocol and port range, then the rest.

    A packet meets the ranges one after the other, so each takes its share of what the
    ranges before it left: size / (its own size + the sizes of those after it). Without a
    source it is the address of the egress interface.
    """
    random = (Option("random-fully"),) if action.random_fully else ()
    for protocol in PORT_PROTOCOLS if action.ports else ():
        for position, ports in enumerate(action.ports):
            left = sum(later.size for later in action.ports[position:])
            share: Options = ()
            if left > ports.size:
                share = _RANDOM, Option("probability", (f"{ports.size / left:.11f}",))
            target = _target(source, str(ports))
            yield Option("protocol", (protocol,)), *share, *target, *random
    yield *_target(source, ""), *random


def _target(source: str | None, ports: str) -> Options:
    if source is None:
        to_ports = (Option("to-ports", (ports,)),) if ports else ()
        return Option("jump", ("MASQUERADE",)), *to_ports
    if ports:
        source = f"[{source}]:{ports}" if ":" in source else f"{source}:{ports}"
    return Option("jump", ("SNAT",)), Option("to-source", (source,))
