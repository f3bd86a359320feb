"""The iptables dialect: a policy as a chain of RETURN rules with a MASQUERADE at its end.

The state is the nat table of one family. Ours in it are the rules of one chain and the
jump to it from POSTROUTING; the rest belongs to others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ipmasq_agent.errors import HostError, KernelReadError
from ipmasq_agent.planes.iptables.ownership import SIGNATURE, refuse_others
from ipmasq_agent.planes.iptables.sets import NO_SET_CHANGE, SetChange, change_set
from ipmasq_agent.planes.iptables.text import parse_rule, quote
from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.planes.prefixset import AddressSet, compile_set
from ipmasq_agent.planes.rules.rule import Rule, find_all
from ipmasq_agent.planes.rules.table import Chain, Table
from ipmasq_agent.policy.addresses import Family, Prefix, prefixes_of_range
from ipmasq_agent.policy.decisions import Verdict
from ipmasq_agent.policy.model import PORT_PROTOCOLS, Action, FamilyPolicy, Guards

POSTROUTING = "POSTROUTING"
# Up to this many rules in the changed stretch are edited in place, so that the rules
# around it keep their counters; past it the chain is written anew, because each edit by
# position makes the restore program count from the top.
EDITED_IN_PLACE = 64


@dataclass(frozen=True, slots=True)
class Desired:
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
) -> Desired:
    """Return the rules that decide as ``policy`` does.

    With a set, one rule asks it for what is not masqueraded, in place of a rule for each.

    Comments stand on the jumps and on the last rule only: in the legacy backend each
    comment is 256 bytes of kernel memory and a call for every packet that passes it.

    Raises:
        HostError: a device has a name that iptables cannot express.
    """
    family = policy.family
    address_set = None
    texts = _chain(policy)
    if set_name is not None:
        address_set = compile_set(policy.decisions, set_name)
        texts = _chain_with_set(policy, address_set.name)
    return Desired(
        placement,
        tuple(parse_rule(text, family) for text in _jumps(policy.guards, placement.chain)),
        tuple(parse_rule(text, family) for text in texts),
        address_set,
    )


def absent(placement: Placement) -> Desired:
    """Return the state in which the table holds nothing of ours."""
    return Desired(placement, (), ())


def _jumps(guards: Guards, chain: str) -> Iterator[str]:
    """Yield one jump for each source and device that the policy speaks of.

    The guards stand here rather than in the chain, which so keeps to destinations. A
    packet matches one jump at most, as sources are disjoint and it leaves through one
    device.
    """
    local = "" if guards.local_destinations else "-m addrtype ! --dst-type LOCAL "
    comment = f"-m comment --comment {quote(f'{SIGNATURE}packets that leave this node')} "
    for source in guards.sources or (None,):
        for device in guards.devices or (None,):
            where = "" if source is None or not source.length else f"-s {source} "
            where += "" if device is None else f"-o {_named(device)} "
            yield f"{where}{comment}{local}-j {chain}"


def _named(device: str) -> str:
    if device.endswith("+"):
        raise HostError(
            f"iptables cannot name the device {device!r} alone: a + at the end stands for all "
            "devices whose names begin so",
            remedy="rename it, leave it out of egressInterfaces, or use --backend nftables; "
            "nothing was written",
        )
    return quote(device)


def _chain(policy: FamilyPolicy) -> Iterator[str]:
    """Yield the rules for the user's entries in the user's order, then for the rest."""
    family, decisions = policy.family, policy.decisions
    for entry in decisions.entries:
        if entry.verdict is Verdict.UNKNOWN:
            raise ValueError(f"no rule can carry out what is unknown: {entry.reason}")
        if entry.verdict is Verdict.NON_MASQUERADE:
            for prefix in prefixes_of_range(family, entry.first, entry.last):
                yield _restricted(prefix, "-j RETURN")
        else:
            yield from _translating(policy.action, family, entry.first, entry.last)
    if decisions.default is Verdict.MASQUERADE:
        yield from _rest(policy)


def _chain_with_set(policy: FamilyPolicy, name: str) -> Iterator[str]:
    yield f"-m set --match-set {name} dst -j RETURN"
    yield from _rest(policy)


def _rest(policy: FamilyPolicy) -> Iterator[str]:
    """Yield the rules for whatever has come so far, the last of them with a comment."""
    comment = quote(f"{SIGNATURE}everything else is masqueraded")
    *before, last = _translating(policy.action, policy.family, 0, policy.family.last_address)
    yield from before
    target = last.rindex("-j ")
    yield f"{last[:target]}-m comment --comment {comment} {last[target:]}"


def _translating(action: Action, family: Family, first: int, last: int) -> Iterator[str]:
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
) -> Iterator[str]:
    source = None if address is None else family.show(address)
    for prefix in prefixes:
        for text in target_rules(action, source):
            yield _restricted(prefix, text)


def _restricted(prefix: Prefix, text: str) -> str:
    return f"-d {prefix} {text}" if prefix.length else text


def target_rules(action: Action, source: str | None = None) -> Iterator[str]:
    """Yield the rules that translate: one for each protocol and port range, then the rest.

    A packet meets the ranges one after the other, so each takes its share of what the
    ranges before it left: size / (its own size + the sizes of those after it).

    Args:
        action: which ports, and how they are chosen.
        source: the address to translate to; None for that of the egress interface.
    """
    random = " --random-fully" if action.random_fully else ""
    for protocol in PORT_PROTOCOLS if action.ports else ():
        for position, ports in enumerate(action.ports):
            left = sum(later.size for later in action.ports[position:])
            share = ""
            if left > ports.size:
                share = f" -m statistic --mode random --probability {ports.size / left:.11f}"
            yield f"-p {protocol}{share} {_target(source, str(ports))}{random}"
    yield f"{_target(source, '')}{random}"


def _target(source: str | None, ports: str) -> str:
    if source is None:
        return f"-j MASQUERADE --to-ports {ports}" if ports else "-j MASQUERADE"
    if not ports:
        return f"-j SNAT --to-source {source}"
    return (
        f"-j SNAT --to-source [{source}]:{ports}"
        if ":" in source
        else (f"-j SNAT --to-source {source}:{ports}")
    )


class Jump(NamedTuple):
    """A rule of POSTROUTING that leads to our chain, and its number among these, from 0."""

    number: int
    rule: Rule


@dataclass(frozen=True, slots=True)
class Plan:
    """What turns the table that was read into the desired one, as a printable value.

    The chain's rules are kept up to ``keep``; from there ``remove`` go and ``insert``
    come. ``rewrite`` holds the whole chain where it is cheaper to write it anew.

    Attributes:
        chain: our chain's name.
        create: the chain does not exist yet.
        delete: the chain is to go, after its rules and the jumps to it.
        keep: how many rules at the top of the chain stay as they are.
        remove: the rules that go, in order, the first of them at position ``keep``.
        insert: the rules that come in their place.
        rewrite: the whole chain, or None where the edits above are applied in place.
        jumps_removed: rules of POSTROUTING that jump to the chain and must not.
        jumps: those to add, in order.
        jump_first: add them before the rules of others rather than after them.
        sets: what becomes of our sets: filled before the rules, dropped after them.
    """

    chain: str
    create: bool = False
    delete: bool = False
    keep: int = 0
    remove: tuple[Rule, ...] = ()
    insert: tuple[Rule, ...] = ()
    rewrite: tuple[Rule, ...] | None = None
    jumps_removed: tuple[Jump, ...] = ()
    jumps: tuple[Rule, ...] = ()
    jump_first: bool = False
    sets: SetChange = NO_SET_CHANGE

    def __bool__(self) -> bool:
        return bool(self.sets) or self.changes_rules

    @property
    def changes_rules(self) -> bool:
        """Whether the table itself is written to."""
        return bool(
            self.create
            or self.delete
            or self.remove
            or self.insert
            or self.jumps_removed
            or self.jumps
        )

    @property
    def counts(self) -> tuple[int, int]:
        """How many lines come and how many go, without writing them down."""
        coming, going = self.sets.counts
        return (
            len(self.jumps) + len(self.insert) + coming,
            len(self.jumps_removed) + len(self.remove) + going,
        )

    @property
    def added(self) -> list[str]:
        """The rules that come, as ``-A CHAIN …`` lines."""
        jumps = [f"-A {POSTROUTING} {rule.text}" for rule in self.jumps]
        rules = [f"-A {self.chain} {rule.text}" for rule in self.insert]
        return jumps + rules + self.sets.added

    @property
    def removed(self) -> list[str]:
        """The rules that go, as ``-A CHAIN …`` lines."""
        jumps = [f"-A {POSTROUTING} {jump.rule.text}" for jump in self.jumps_removed]
        rules = [f"-A {self.chain} {rule.text}" for rule in self.remove]
        return jumps + rules + self.sets.removed


def plan(actual: Table, desired: Desired) -> Plan:
    """Return what must change in ``actual``, which may be nothing.

    Raises:
        KernelReadError: our chain or a jump to it holds what cannot be read, so that a
            plan on top of that would be a guess; or the chain is somebody else's.
    """
    placement = desired.placement
    chain = placement.chain
    _refuse_unreadable(actual, chain)
    if not placement.adopt:
        refuse_others(actual, chain)
    exists = chain in actual.chains
    sets = change_set(actual.sets, desired.address_set)
    if not desired.jumps:
        jumps = find_all(actual.rules(POSTROUTING), chain)
        removed = tuple(Jump(*numbered) for numbered in enumerate(jumps))
        rules = actual.rules(chain)
        return Plan(chain, delete=exists, remove=rules, jumps_removed=removed, sets=sets)
    jumps_removed, jumps_added = _jumps_changed(actual, desired)
    keep, remove, insert = _changed_stretch(actual.rules(chain), desired.rules)
    anew = not exists or len(remove) + len(insert) > EDITED_IN_PLACE
    return Plan(
        chain,
        create=not exists,
        keep=keep,
        remove=remove,
        insert=insert,
        rewrite=desired.rules if anew and (remove or insert) else None,
        jumps_removed=jumps_removed,
        jumps=jumps_added,
        jump_first=placement.jump_first,
        sets=sets,
    )


def _refuse_unreadable(actual: Table, chain: str) -> None:
    for name in (chain, POSTROUTING):
        for position, rule in enumerate(actual.rules(name), start=1):
            if not rule.readable and (name == chain or rule.target == chain):
                raise KernelReadError(
                    f"rule {position} of {name} cannot be read in full "
                    f"(what can be read of it: {rule.text!r})",
                    remedy="it was not written by iptables; see it with `nft list table ip nat` "
                    f"(or ip6), and delete it, or rename our chain with --masq-chain "
                    f"(now {chain}); nothing was written",
                )


def _jumps_changed(actual: Table, desired: Desired) -> tuple[tuple[Jump, ...], tuple[Rule, ...]]:
    """Return the jumps that go and those that come.

    Appended means after whatever was there when we came: rules that others append later
    do not make us move, and of our own only those that differ are touched. First means
    first: where one of ours is not, all are put there again. So they are where one of
    them is doubled, as a rule is deleted by what it says.
    """
    rules = actual.rules(POSTROUTING)
    ours = find_all(rules, desired.placement.chain)
    wanted, there = desired.jumps, set(ours)
    leading = rules[: len(wanted)] == wanted
    anew = len(there) < len(ours) or (desired.placement.jump_first and not leading)
    kept = frozenset[Rule]() if anew else there & set(wanted)
    return (
        tuple(Jump(number, rule) for number, rule in enumerate(ours) if rule not in kept),
        tuple(rule for rule in wanted if rule not in kept),
    )


def _changed_stretch(
    actual: Sequence[Rule], desired: Sequence[Rule]
) -> tuple[int, tuple[Rule, ...], tuple[Rule, ...]]:
    """Return how many rules at the top stay, and what goes and comes after them."""
    shorter = min(len(actual), len(desired))
    head = 0
    while head < shorter and actual[head] == desired[head]:
        head += 1
    tail = 0
    while tail < shorter - head and actual[-1 - tail] == desired[-1 - tail]:
        tail += 1
    return (
        head,
        tuple(actual[head : len(actual) - tail]),
        tuple(desired[head : len(desired) - tail]),
    )


def restore_text(change: Plan) -> str:
    """Return ``change`` as input for ``iptables-restore --noflush``: one transaction.

    A ``:CHAIN`` line makes the chain, or empties it where it exists; without one the
    chain is edited by position. Jumps are deleted by what they say, never by position:
    between our read and this write others may have moved them.
    """
    lines = ["*nat"]
    if change.create or change.rewrite is not None or change.delete:
        lines.append(f":{change.chain} - [0:0]")
    lines += (f"-D {POSTROUTING} {jump.rule.text}" for jump in change.jumps_removed)
    if change.delete:
        lines.append(f"-X {change.chain}")
    elif change.rewrite is not None:
        lines += (f"-A {change.chain} {rule.text}" for rule in change.rewrite)
    else:
        lines += (f"-D {change.chain} {change.keep + 1}" for _ in change.remove)
        lines += (
            f"-I {change.chain} {change.keep + 1 + offset} {rule.text}"
            for offset, rule in enumerate(change.insert)
        )
    for number, rule in enumerate(change.jumps, start=1):
        where = f"-I {POSTROUTING} {number}" if change.jump_first else f"-A {POSTROUTING}"
        lines.append(f"{where} {rule.text}")
    return "\n".join([*lines, "COMMIT", ""])


def describe(table: Table, chain: str) -> list[str]:
    """Return what is ours in a table: jumps and rules as ``-A`` lines, then our sets."""
    jumps = find_all(table.rules(POSTROUTING), chain)
    return [
        *(f"-A {POSTROUTING} {rule.text}" for rule in jumps),
        *(f"-A {chain} {rule.text}" for rule in table.rules(chain)),
        *(line for held in table.sets.values() for line in held.lines()),
    ]


def after(actual: Table, desired: Desired) -> Table:
    """Return the table as it will be once ``plan(actual, desired)`` was applied."""
    change = plan(actual, desired)
    chains = dict(actual.chains)
    hook = chains.get(POSTROUTING, Chain(POSTROUTING, "ACCEPT", ()))
    others = list(hook.rules)
    for jump in change.jumps_removed:
        others.remove(jump.rule)
    place = 0 if change.jump_first else len(others)
    others[place:place] = change.jumps
    chains[POSTROUTING] = Chain(POSTROUTING, hook.policy, tuple(others))
    if not desired.jumps:
        chains.pop(change.chain, None)
    else:
        chains[change.chain] = Chain(change.chain, None, desired.rules)
    wanted = desired.address_set
    return Table(actual.family, chains, {wanted.name: wanted} if wanted else {})
