"""What the maps of the eBPF data plane say, and which devices ask them, as values.

Destinations are in one trie whose values are verdicts, so exceptions are entries like any
other and the longest prefix decides. The programs masquerade what leaves through devices
that have them: where a policy names no devices, those are meant through which traffic
leaves the node.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from ipmasq_agent.planes.prefixset import AddressSet, parts
from ipmasq_agent.policy.addresses import Family, Prefix, prefixes_of_range
from ipmasq_agent.policy.decisions import Verdict
from ipmasq_agent.policy.facts import EgressDevice
from ipmasq_agent.policy.model import FixedSource, PortRange

DECISIONS = "decisions"


@dataclass(frozen=True, slots=True)
class BpfRules:
    """What the maps of one family say.

    Attributes:
        keep: the destinations that keep their source, and exceptions from them.
        sources: only packets from these; None for any.
        devices: only packets through these; None for those that lead out of the node.
        ports: source ports to use.
        random_fully: do not try the pod's own port first.
        fixed: destinations with a source address of their own.
        local_destinations: also what the node sends to itself, through its loopback.
        agree: nobody left an edit unfinished, and the bitmap, by which IPv4 is decided, says
            the same as the trie of decisions.
    """

    keep: AddressSet
    sources: tuple[Prefix, ...] | None = None
    devices: tuple[str, ...] | None = None
    ports: tuple[PortRange, ...] = ()
    random_fully: bool = True
    fixed: tuple[FixedSource, ...] = ()
    local_destinations: bool = False
    agree: bool = True

    @property
    def family(self) -> Family:
        """Whose packets are meant."""
        return self.keep.family

    def lines(self) -> Iterator[str]:
        """Yield what is said, one fact a line."""
        name = self.family.value
        for code in self.keep.elements:
            yield decision_line(self.family, code)
        for prefix in self.sources or ():
            yield f"{name} sources {prefix}"
        for device in self.devices or ():
            yield f"{name} devices {device}"
        for first, last, address in self.fixed:
            for prefix in prefixes_of_range(self.family, first, last):
                yield f"{name} fixed {prefix} {self.family.show(address)}"
        words = [f"{name} settings masquerade"]
        words += ["random-fully"] * self.random_fully
        words += ["ports", ",".join(map(str, self.ports))] if self.ports else []
        words += ["local-destinations"] * self.local_destinations
        yield " ".join(words)
        if not self.agree:
            yield f"{name} decisions other than written"


@dataclass(frozen=True, slots=True)
class DevicePrograms:
    """What of ours is on a device.

    Attributes:
        device: as the programs know it; its source is that of the family alone.
        complete: both programs are there, in the version that we would load.
    """

    device: EgressDevice
    complete: bool


@dataclass(frozen=True, slots=True)
class BpfState:
    """What the kernel holds for one family, and what the host has that it depends on.

    Attributes:
        rules: None where no policy is in force.
        hooks: device of the policy in force → what is on it; a name for each ifindex that
            is gone.
        beside: other device that the programs know → what is on it. Nothing is masqueraded
            there, and what is masqueraded elsewhere may come back, or have begun there.
        own: addresses that the programs take for the node's.
        present: device → what the host says of it, of the family alone.
        leading_out: the devices through which traffic leaves the node.
        addresses: that the node has.
        remains: something of ours is there that is not in force: to be cleaned up.
        damaged: maps or programs, or pins of theirs, are missing: to be made again.
    """

    family: Family
    rules: BpfRules | None = None
    hooks: Mapping[str, DevicePrograms] = field(default_factory=dict)
    beside: Mapping[str, DevicePrograms] = field(default_factory=dict)
    own: frozenset[int] = frozenset()
    present: Mapping[str, EgressDevice] = field(default_factory=dict)
    leading_out: tuple[str, ...] = ()
    addresses: frozenset[int] = frozenset()
    remains: bool = False
    damaged: bool = False

    def wanted(self, rules: BpfRules | None) -> dict[str, EgressDevice]:
        """Return the devices through which rules masquerade."""
        if rules is None:
            return {}
        names = self.leading_out if rules.devices is None else rules.devices
        return {name: self.present[name] for name in names if name in self.present}

    def device_lines(self) -> dict[str, str]:
        """Return device → what of ours is on it, as a line; that of a device that is gone too."""
        hooks = ((name, hook, "") for name, hook in sorted(self.hooks.items()))
        beside = ((name, hook, " for replies") for name, hook in sorted(self.beside.items()))
        return {
            name: _device_line(self.family, name, hook.device) + purpose
            for name, hook, purpose in (*hooks, *beside)
            if hook.complete or name not in self.present
        }

    def wanted_beside(self, rules: BpfRules | None) -> dict[str, EgressDevice]:
        """Return the other devices that need the programs.

        Replies may come in through any that leads out, and what had the programs once may
        have flows that began there.
        """
        if rules is None:
            return {}
        names = {*self.leading_out, *self.hooks, *self.beside} - self.wanted(rules).keys()
        return {name: self.present[name] for name in sorted(names) if name in self.present}


def describe(state: BpfState) -> list[str]:
    """Return what is in force, one fact a line."""
    if state.rules is None:
        return []
    return [
        *state.rules.lines(),
        *state.device_lines().values(),
        *address_lines(state.family, state.own),
    ]


def decision_line(family: Family, code: int) -> str:
    """Return an element of the trie of decisions as a line."""
    first, length, exception = parts(code)
    verdict = Verdict.MASQUERADE if exception else Verdict.NON_MASQUERADE
    return f"{family.value} decisions {Prefix(family, first, length)} {verdict}"


def address_lines(family: Family, addresses: Iterable[int]) -> list[str]:
    """Return addresses that are taken for the node's, one a line."""
    return [f"{family.value} addresses {family.show(one)}" for one in sorted(addresses)]


def _device_line(family: Family, name: str, device: EgressDevice) -> str:
    address = device.sources.get(family)
    source = "no address" if address is None else family.show(address)
    return f"{family.value} programs {name} source {source}"
