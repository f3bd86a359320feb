"""All that decides at the postrouting hook, whoever wrote it, beside what is ours.

Of the nat chains at one hook the kernel asks one after the other, lowest priority first,
until one translates the connection; to accept, to return or to match nothing leaves it to
the next (net/netfilter/nf_nat_core.c, nf_nat_inet_fn). A packet that is not tracked meets
none of them. Our eBPF programs come after all, and keep what has the node's address by then.

So two questions are asked of everything but ours: what becomes of a packet that our policy
would masquerade, and of one that it leaves alone. Where the answers are "what ours says" and
"nothing", our policy is in force. What that costs depends on the rules of others only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from ipmasq_agent.planes.interpretation import Decider, Interpretation, Partial, telling
from ipmasq_agent.planes.placement import OurBase
from ipmasq_agent.planes.rules.matching import Question
from ipmasq_agent.planes.rules.rule import Option, Rule
from ipmasq_agent.planes.rules.table import Chain, Table
from ipmasq_agent.planes.rules.walk import TRACKING, VERDICTS, ChainOutcome, Walk
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.decisions import DecisionMap, Entry, Reason, Stated, Verdict
from ipmasq_agent.policy.model import FamilyPolicy
from ipmasq_agent.policy.ranges import intersections

_OURS = Rule("ours", (Option("jump", ("MASQUERADE",)),))
_KEEP, _MASQUERADE = Verdict.NON_MASQUERADE, Verdict.MASQUERADE
_NOBODY = Stated("no rule translates it")
_PROGRAMS = Stated("our programs")
_NOT_YET = Stated("our rules, once they are there")


@dataclass(frozen=True, slots=True)
class BaseChain:
    """A chain that packets enter at a hook, with those that its rules lead to.

    Attributes:
        table: where it stands.
        name: its name.
        priority: lowest first.
        suffix: what follows the name of a chain to tell it from those of other tables.
        path: of the table, as ``OurBase`` has it.
        own: the chain of ours that its rules lead to, or itself; None where nothing is ours.
        unsure: it may come too late to count.
    """

    table: Table
    name: str
    priority: int
    suffix: str = ""
    path: str = ""
    own: str | None = None
    unsure: bool = False


@dataclass(frozen=True, slots=True)
class PostroutingHook:
    """What stands at the hook of one family, apart from what our chain holds.

    Attributes:
        family: whose packets.
        nat: chains that may translate, in order of priority; ours among them.
        tracking: chains that may keep a packet from being tracked, and so from all nat.
        programs: ours are eBPF programs, which come after all chains.
        egress: the devices through which traffic leaves the node.
        asleep: why ours decides nothing; None where it does.
    """

    family: Family
    nat: tuple[BaseChain, ...] = ()
    tracking: tuple[BaseChain, ...] = ()
    programs: bool = False
    egress: tuple[str, ...] = ()
    asleep: str | None = None

    def around_ours(self) -> PostroutingHook:
        """Return it without the chains that have nothing of ours."""
        return replace(self, nat=tuple(base for base in self.nat if base.own), tracking=())

    def without(self, gone: Iterable[OurBase]) -> PostroutingHook:
        """Return it as it will be when what is ours in other data planes has been removed."""
        own = {(place.table, place.chain): place.own for place in gone}
        nat = (_emptied(base, own.get((base.path, base.name))) for base in self.nat)
        return replace(self, nat=tuple(nat))


@dataclass(frozen=True, slots=True)
class Neighbours:
    """What others decide.

    Attributes:
        instead: what becomes of packets that our policy would masquerade.
        beside: what becomes of those that it leaves alone.
        ours: the reason in ``instead`` that stands for our own policy.
        partial: rules for some packets only.
        untracked: rules that leave some packets untracked.
        sources: the rules that translate to an address of their own (see ``Walk``).
        asleep: why ours decides nothing; None where it does.
    """

    instead: DecisionMap
    beside: DecisionMap
    ours: frozenset[Reason]
    partial: tuple[Partial, ...] = ()
    untracked: tuple[Partial, ...] = ()
    sources: dict[Decider, str] = field(default_factory=dict)
    asleep: str | None = None

    def others(self, verdict: Verdict) -> Iterator[Entry[Verdict]]:
        """Yield where others decide about packets of which ours says ``verdict``."""
        if verdict is _MASQUERADE:
            yield from (e for e in self.instead.ranges if e.reason not in self.ours)
        else:
            yield from (e for e in self.beside.ranges if e.verdict is not _KEEP)

    def decide(self, verdict: Verdict, destination: int) -> Entry[Verdict] | None:
        """Return what others decide where ours says ``verdict``; None where ours counts."""
        if verdict is _MASQUERADE:
            found = self.instead.decide(destination)
            return None if found.reason in self.ours else found
        found = self.beside.decide(destination)
        return None if verdict is Verdict.UNKNOWN or found.verdict is _KEEP else found


def neighbours(hook: PostroutingHook, asked: Question) -> Neighbours:
    """Return what others at the hook decide about the packets asked about."""
    instead, found = _decided(hook, asked, stand_in=True)
    beside, without = _decided(hook, asked, stand_in=False)
    return Neighbours(
        instead,
        beside,
        frozenset(found.ours),
        tuple(dict.fromkeys((*found.partial, *without.partial))),
        () if hook.programs else tuple(found.untracked),
        found.sources | without.sources,
        hook.asleep,
    )


@dataclass(slots=True)
class _Found:
    """What the walks through the chains of a hook gave, beside decisions."""

    partial: list[Partial] = field(default_factory=list)
    untracked: list[Partial] = field(default_factory=list)
    sources: dict[Decider, str] = field(default_factory=dict)
    ours: list[Reason] = field(default_factory=list)


def _decided(
    hook: PostroutingHook, asked: Question, *, stand_in: bool
) -> tuple[DecisionMap, _Found]:
    """Return the decisions of all chains, with ours masquerading everything or nothing."""
    family, found = hook.family, _Found()
    untracked = [entry for base in hook.tracking for entry in _untracked(base, asked, found)]
    translated: list[Entry[Verdict]] = []
    left: list[Entry[Verdict]] = []
    for base in hook.nat:
        walk = Walk(_with_ours(base, stand_in=stand_in), base.name, asked, suffix=base.suffix)
        reading = walk.chain(base.name)
        found.sources |= walk.sources
        found.partial += reading.partial
        for first, last, outcome, reason in reading.ranges:
            if outcome in (ChainOutcome.MASQUERADE, ChainOutcome.UNKNOWN):
                translated.append(Entry(first, last, VERDICTS[outcome], reason))
                if isinstance(reason, Decider) and reason.where == base.own:
                    found.ours.append(reason)
            elif base.own is not None and isinstance(reason, Decider):
                left.append(Entry(first, last, _KEEP, reason))
    if stand_in and not hook.programs and not any(base.own for base in hook.nat):
        translated.append(Entry(0, family.last_address, _MASQUERADE, _NOT_YET))
        found.ours.append(_NOT_YET)
    if hook.programs and stand_in:
        netfilter = DecisionMap(family, [*untracked, *translated], _KEEP, _NOBODY)
        translated = [entry for entry in netfilter.ranges if entry.verdict is not _KEEP]
        translated.append(Entry(0, family.last_address, _MASQUERADE, _PROGRAMS))
        untracked = []
        found.ours.append(_PROGRAMS)
    entries = [*untracked, *translated, *left]
    return DecisionMap(family, entries, _KEEP, _NOBODY), found


def _emptied(base: BaseChain, chain: str | None) -> BaseChain:
    if chain is None:
        return base
    chains = {**base.table.chains, chain: Chain(chain, None, ())}
    return replace(base, table=replace(base.table, chains=chains))


def _untracked(base: BaseChain, asked: Question, found: _Found) -> Iterator[Entry[Verdict]]:
    """Yield the destinations that are not tracked, each as one that is left alone."""
    reading = Walk(base.table, base.name, asked, kind=TRACKING, suffix=base.suffix).chain(base.name)
    for first, last, outcome, reason in reading.ranges:
        if outcome is ChainOutcome.MASQUERADE and not base.unsure:
            yield Entry(first, last, _KEEP, reason)
        elif outcome in (ChainOutcome.MASQUERADE, ChainOutcome.UNKNOWN):
            yield Entry(first, last, Verdict.UNKNOWN, reason)
    for exception, first, last in reading.partial:
        if exception.verdict is not _KEEP:
            kept = exception.verdict is _MASQUERADE and not base.unsure
            verdict = _KEEP if kept else Verdict.UNKNOWN
            found.untracked.append(Partial(replace(exception, verdict=verdict), first, last))


def _with_ours(base: BaseChain, *, stand_in: bool) -> Table:
    """Return the table with all or nothing in our chain, and plain jumps to it.

    Where the jumps are not for all packets our guards say so; where there is none it is as
    if one came last, so that a policy which is not there yet can be asked about as well.
    """
    if base.own is None:
        return base.table
    chains = dict(base.table.chains)
    if base.own != base.name:
        jump = Rule(f"-j {base.own}", (Option("jump", (base.own,)),))
        rules = [jump if r.target == base.own else r for r in base.table.rules(base.name)]
        rules += [] if jump in rules else [jump]
        chains[base.name] = Chain(base.name, None, tuple(rules))
    chains[base.own] = Chain(base.own, None, (_OURS,) if stand_in else ())
    return replace(base.table, chains=chains)


def joined(own: Interpretation, others: Neighbours) -> Interpretation:
    """Return what is in force: our policy, but for where others decide.

    For packets that its guards admit.
    """
    policy = own.policy
    if others.asleep is not None:
        nothing = DecisionMap(policy.family, (), _KEEP, Stated(others.asleep))
        policy = FamilyPolicy(nothing)
        own = Interpretation(policy)
    decisions = policy.decisions
    over = [entry for _, entry in overriding(decisions, others)]
    if over:
        decisions = decisions.overlaid(over)
    told = telling(counting(others, over), decisions)
    return Interpretation(replace(policy, decisions=decisions), (*own.exceptions, *told))


def overriding(ours: DecisionMap, others: Neighbours) -> Iterator[tuple[Verdict, Entry[Verdict]]]:
    """Yield what our policy says of some destinations, and what others decide about them."""
    for verdict in (_MASQUERADE, _KEEP):
        entries = list(others.others(verdict))
        spans = [(entry.first, entry.last) for entry in entries]
        for first, last, position, _ in intersections(spans, ours.stretches(verdict)):
            yield verdict, entries[position]._replace(first=first, last=last)


def counting(others: Neighbours, over: Iterable[Entry[Verdict]] = ()) -> Iterator[Partial]:
    """Yield the exceptions that can decide, where ``over`` overrides what is ours.

    To leave some packets alone counts in a chain that would decide otherwise, ours or one
    that overrides it. From any other chain they go on to the next anyway.
    """
    tables = {"", *(_table(e.reason) for e in over if isinstance(e.reason, Decider))}
    for item in others.partial:
        if item.exception.verdict is not _KEEP or _table(item.exception.rule) in tables:
            yield item
    yield from others.untracked


def _table(rule: Decider) -> str:
    return rule.where.partition(" ")[2]
