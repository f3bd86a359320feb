"""The eBPF dialect: a policy as tries of prefixes that programs in tc look up.

Destinations are in one trie whose values are verdicts, so exceptions are entries like any
other and the longest prefix decides. There are two generations of everything: a policy
that differs in much is filled into the one not in force, and one number switches to it.

The programs masquerade what leaves through devices that have them. So a table here is what
the maps say and which devices ask them; where a policy names no devices, those are meant
through which traffic leaves the node.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import overload

from ipmasq_agent.errors import HostError
from ipmasq_agent.planes.bpf.layout import MAX_PORT_RANGES
from ipmasq_agent.planes.interpretation import Decider, Interpretation
from ipmasq_agent.planes.prefixset import AddressSet, Step, compile_set, difference, in_place, parts
from ipmasq_agent.policy.addresses import Family, Prefix, prefixes_of_range
from ipmasq_agent.policy.decisions import DecisionMap, Entries, Stated, Verdict
from ipmasq_agent.policy.model import Action, FamilyPolicy, FixedSource, Guards, PortRange, joined

DECISIONS = "decisions"
TRIE = "the trie of decisions"
_VERDICTS = (Verdict.NON_MASQUERADE, Verdict.MASQUERADE)  # of a prefix, of an exception


@dataclass(frozen=True, slots=True)
class Rules:
    """What the maps of one family say.

    Attributes:
        keep: the destinations that keep their source, and exceptions from them.
        sources: only packets from these; None for any.
        devices: only packets through these; None for those that lead out of the node.
        ports: source ports to use.
        fixed: destinations with a source address of their own.
        local_destinations: also what the node sends to itself, through its loopback.
    """

    keep: AddressSet
    sources: tuple[Prefix, ...] | None = None
    devices: tuple[str, ...] | None = None
    ports: tuple[PortRange, ...] = ()
    random_fully: bool = True
    fixed: tuple[FixedSource, ...] = ()
    local_destinations: bool = False

    @property
    def family(self) -> Family:
        """Whose packets are meant."""
        return self.keep.family

    def lines(self) -> Iterator[str]:
        """Yield what is said, one fact a line."""
        name = self.family.value
        for code in self.keep.elements:
            yield _element_line(self.family, code)
        for prefix in self.sources or ():
            yield f"{name} sources {prefix}"
        for device in self.devices or ():
            yield f"{name} devices {device}"
        for first, last, address in self.fixed:
            for prefix in prefixes_of_range(self.family, first, last):
                yield f"{name} fixed {prefix} {self.family.show(address)}"
        yield self.settings_line()

    def settings_line(self) -> str:
        """Return what is no list."""
        words = [f"{self.family.value} settings masquerade"]
        words += ["random-fully"] * self.random_fully
        words += ["ports", ",".join(map(str, self.ports))] if self.ports else []
        words += ["local-destinations"] * self.local_destinations
        return " ".join(words)


def _element_line(family: Family, code: int) -> str:
    first, length, exception = parts(code)
    verdict = Verdict.MASQUERADE if exception else Verdict.NON_MASQUERADE
    return f"{family.value} decisions {family.show(first)}/{length} {verdict}"


@dataclass(frozen=True, slots=True)
class Device:
    """A network device of this host.

    Attributes:
        number: its ifindex.
        source: the address that packets leaving through it get; None where it has none.
        link_header: bytes before the IP header in its packets.
        loopback: all that leaves here is for the node itself.
    """

    number: int
    source: int | None
    link_header: int = 14
    loopback: bool = False


@dataclass(frozen=True, slots=True)
class Hook:
    """A device on which something of ours is.

    Attributes:
        device: as the programs know it.
        egress: it is a device of the policy in force.
        complete: both programs are there, in the version that we would load.
    """

    device: Device
    egress: bool
    complete: bool


@dataclass(frozen=True, slots=True)
class Table:
    """What the kernel holds for one family, and what the host has that it depends on.

    Attributes:
        rules: None where no policy is in force.
        hooks: device → what of ours is on it; a name for each ifindex that is gone.
        present: device → what the host says of it.
        leading_out: the devices through which traffic leaves the node.
        remains: something of ours is there that is not in force: to be cleaned up.
    """

    family: Family
    rules: Rules | None = None
    hooks: Mapping[str, Hook] = field(default_factory=dict)
    present: Mapping[str, Device] = field(default_factory=dict)
    leading_out: tuple[str, ...] = ()
    remains: bool = False

    def wanted(self, rules: Rules | None) -> dict[str, Device]:
        """Return the devices on which rules need the programs."""
        if rules is None:
            return {}
        names = self.leading_out if rules.devices is None else rules.devices
        return {name: self.present[name] for name in names if name in self.present}


@dataclass(frozen=True, slots=True)
class Desired:
    """What one family is to hold; no rules for nothing of ours."""

    family: Family
    rules: Rules | None = None


def compile_policy(policy: FamilyPolicy) -> Desired:
    """Return what the maps must say to decide as ``policy`` does.

    Raises:
        ValueError: a verdict is unknown.
        HostError: there are more port ranges than the maps have room for.
    """
    action, guards = policy.action, policy.guards
    if len(action.ports) > MAX_PORT_RANGES:
        raise HostError(
            f"the eBPF data plane takes up to {MAX_PORT_RANGES} port ranges, "
            f"not {len(action.ports)}",
            remedy="join some of --to-ports, or choose another --backend",
        )
    return Desired(
        policy.family,
        Rules(
            compile_set(policy.decisions, DECISIONS),
            guards.sources,
            guards.devices,
            action.ports,
            action.random_fully,
            action.fixed,
            guards.local_destinations,
        ),
    )


# -- changes ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Plan:
    """What leads from one table to another.

    Attributes:
        actual: as it was read.
        desired: as it is to be.
        steps: edits of the trie of decisions in place; None where the rules are filled
            into the generation not in force, or go.
        attach: devices that get the programs, or get them anew.
        detach: devices that lose them, once the rules no longer ask for them.
        update: devices whose address or part in the policy changes.
    """

    actual: Table
    desired: Desired
    steps: tuple[Step, ...] | None = None
    attach: tuple[str, ...] = ()
    detach: tuple[str, ...] = ()
    update: tuple[str, ...] = ()

    @property
    def switches(self) -> bool:
        """Whether other rules come into force."""
        return self.steps is None and self.actual.rules != self.desired.rules

    def __bool__(self) -> bool:
        leaves = self.desired.rules is None and self.actual.remains
        return bool(
            self.steps or self.switches or self.attach or self.detach or self.update or leaves
        )

    @property
    def counts(self) -> tuple[int, int]:
        """How many lines come and how many go."""
        old, new = self.actual.rules, self.desired.rules
        hooks = len(self.attach) + len(self.update), len(self.detach) + len(self.update)
        if old is None or new is None or not _same_but_keep(old, new):
            return len(self.added), len(self.removed)
        going, coming = difference(old.keep.elements, new.keep.elements)
        return len(coming) + hooks[0], len(going) + hooks[1]

    @property
    def added(self) -> list[str]:
        """What comes."""
        return self._lines(self.desired.rules, self.actual.rules, coming=True)

    @property
    def removed(self) -> list[str]:
        """What goes."""
        lines = self._lines(self.actual.rules, self.desired.rules, coming=False)
        if not lines and self and not self.added:
            lines.append(f"{self.actual.family.value} maps and programs that are not in force")
        return lines

    def _lines(self, mine: Rules | None, other: Rules | None, *, coming: bool) -> list[str]:
        lines: list[str] = []
        if mine is not None and other is not None and _same_but_keep(mine, other):
            _, came = difference(other.keep.elements, mine.keep.elements)
            lines += (_element_line(mine.family, code) for code in sorted(came))
        elif mine is not None:
            before = set(other.lines()) if other is not None else set()
            lines += (line for line in mine.lines() if line not in before)
        family = self.actual.family
        wanted = self.actual.wanted(self.desired.rules)
        if coming:
            for name in (*self.attach, *self.update):
                lines.append(_hook_line(family, name, wanted[name]))
        else:
            for name in (*self.detach, *self.update):
                lines.append(_hook_line(family, name, self.actual.hooks[name].device))
        return lines


def _hook_line(family: Family, name: str, device: Device) -> str:
    source = "no address" if device.source is None else family.show(device.source)
    return f"{family.value} programs {name} source {source}"


def _same_but_keep(old: Rules, new: Rules) -> bool:
    """Whether two sets of rules differ in the trie of decisions at most."""
    return replace(old, keep=new.keep) == new


def plan(actual: Table, desired: Desired) -> Plan:
    """Return the change from one to the other."""
    wanted = actual.wanted(desired.rules)
    steps: tuple[Step, ...] | None = None
    old, new = actual.rules, desired.rules
    if old is not None and new is not None and _same_but_keep(old, new):
        if old.keep.elements == new.keep.elements:
            steps = ()
        else:
            edits = in_place(replace(old.keep, capacity=1 << 32), new.keep)
            steps = None if edits is None else tuple(edits)
    hooks = actual.hooks
    attach = [n for n in wanted if n not in hooks or not hooks[n].complete]
    update = [
        name
        for name, device in wanted.items()
        if name not in attach and (hooks[name].device != device or not hooks[name].egress)
    ]
    detach = [name for name in hooks if name not in wanted]
    return Plan(actual, desired, steps, tuple(attach), tuple(detach), tuple(update))


def after(actual: Table, desired: Desired) -> Table:
    """Return the table once the change was made."""
    hooks = {
        name: Hook(device, egress=True, complete=True)
        for name, device in actual.wanted(desired.rules).items()
    }
    return replace(actual, rules=desired.rules, hooks=hooks, remains=False)


def describe(table: Table) -> list[str]:
    """Return what is in force, one fact a line."""
    if table.rules is None:
        return []
    hooks = (_hook_line(table.family, name, h.device) for name, h in sorted(table.hooks.items()))
    return [*table.rules.lines(), *hooks]


# -- interpretation -----------------------------------------------------------------------


class _Deciders(Sequence[Decider]):
    """The prefixes of the trie that decide about ranges, made on access."""

    def __init__(self, family: Family, elements: Sequence[int]) -> None:
        self._family = family
        self._elements = elements

    @overload
    def __getitem__(self, index: int) -> Decider: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Decider]: ...

    def __getitem__(self, index: int | slice) -> Decider | Sequence[Decider]:
        if isinstance(index, slice):
            return [self[n] for n in range(len(self))[index]]
        first, length, _ = parts(self._elements[index])
        prefix = Prefix(self._family, first, length)
        return Decider(TRIE, None, str(prefix), prefix)

    def __len__(self) -> int:
        return len(self._elements)


def interpret(table: Table, source: int | None = None) -> Interpretation:
    """Return what the programs decide with these maps.

    A device without both programs takes part in nothing, whatever the maps say of it.
    """
    family, rules = table.family, table.rules
    working = tuple(sorted(n for n, hook in table.hooks.items() if hook.egress and hook.complete))
    wanted = table.wanted(rules)
    idle = None
    if rules is None:
        idle = "no policy is in force in the maps"
    elif not working:
        idle = "no device has the programs"
    if rules is None or idle is not None:
        nobody = DecisionMap(family, (), Verdict.NON_MASQUERADE, Stated(idle or ""))
        return Interpretation(FamilyPolicy(nobody))
    devices = rules.devices
    if not set(wanted) <= set(working):
        devices = working
    if source is not None and not _admits(rules, source):
        outside = Stated("its source is not in the trie of sources")
        kept = DecisionMap(family, (), Verdict.NON_MASQUERADE, outside)
        return Interpretation(FamilyPolicy(kept))
    decisions = _decisions(rules.keep)
    guards = Guards(rules.local_destinations, rules.sources, devices)
    action = Action(rules.ports, rules.random_fully, joined(rules.fixed))
    return Interpretation(FamilyPolicy(decisions, guards, action))


def _admits(rules: Rules, source: int) -> bool:
    if rules.sources is None:
        return True
    return any(prefix.first <= source <= prefix.last for prefix in rules.sources)


def _decisions(keep: AddressSet) -> DecisionMap:
    family = keep.family
    firsts, lasts, elements = tuple(zip(*keep.decided(), strict=True)) or ((), (), ())
    verdicts = (_VERDICTS[parts(code).nomatch] for code in elements)
    entries = Entries(family, firsts, lasts, verdicts, _Deciders(family, elements))
    rest = Stated(f"no prefix in {TRIE} keeps it")
    return DecisionMap(family, entries, Verdict.MASQUERADE, rest)
