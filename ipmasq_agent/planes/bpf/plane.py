"""Our own eBPF programs in tc: what Cilium's masquerading does, with any policy.

Maps, programs and links are pinned, so that flows and translation outlive the agent.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from ipmasq_agent.host.devices import EgressDevice, egress_devices, list_devices
from ipmasq_agent.netlink.ct import Connection, introduce
from ipmasq_agent.planes.bpf import layout
from ipmasq_agent.planes.bpf import state as dialect
from ipmasq_agent.planes.bpf.hooks import Hooks
from ipmasq_agent.planes.bpf.layout import Flag, FlowState, Settings
from ipmasq_agent.planes.bpf.maps import Maps
from ipmasq_agent.planes.bpf.state import Desired, Device, Hook, Plan, Rules, Table
from ipmasq_agent.planes.interpretation import Interpretation
from ipmasq_agent.planes.plane import Plane
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.facts import HOOKS, LINKS
from ipmasq_agent.policy.model import Capabilities, FamilyPolicy

V = TypeVar("V")
_BOTH = (1 << layout.GENERATIONS) - 1
_UNKNOWN = layout.Device((None, None), (0, 0), 0)
# Tries of more prefixes are given back at once when another policy is in force; smaller
# ones with the next policy, since to remove one is to wait for the kernel.
_LIGHT = 4096
_STAMP_BITS = 63
_WITH_PORTS = frozenset({socket.IPPROTO_TCP, socket.IPPROTO_UDP})
_MASK = {family: number for number, family in enumerate(layout.FAMILIES)}


class BpfPlane(Plane[Table, Desired, Plan]):
    """Programs at the egress and ingress of devices, and the maps that they share.

    Args:
        pins: the directory, on a bpf file system, of this node's maps and programs.
        flows: how many flows the table holds where it is made anew; None for what the
            machine's memory suggests.
    """

    name = place = "bpf"
    glances = True  # links of tcx go without a word
    needs = frozenset({LINKS, HOOKS})

    def __init__(self, pins: Path, flows: int | None = None) -> None:
        self._pins = pins
        self._hooks = Hooks(pins, flows)
        self._known: dict[Family, tuple[int, Rules]] = {}

    def capabilities(self, family: Family) -> Capabilities:
        """Return what the programs can do on any kernel."""
        return Capabilities()

    def compile(self, policy: FamilyPolicy) -> Desired:
        """Return what the maps must say."""
        return dialect.compile_policy(policy)

    def absent(self, family: Family) -> Desired:
        """Return the state in which nothing of ours is there."""
        return Desired(family)

    def plan(self, actual: Table, desired: Desired) -> Plan:
        """Return the change from one to the other."""
        return dialect.plan(actual, desired)

    def after(self, actual: Table, desired: Desired) -> Table:
        """Return the table once the change was made."""
        return dialect.after(actual, desired)

    def describe(self, state: Table) -> list[str]:
        """Return what is in force, one fact a line."""
        return dialect.describe(state)

    def interpret(self, state: Table, source: int | None = None) -> Interpretation:
        """Return what programs and maps decide."""
        return dialect.interpret(state, source)

    # -- reading ----------------------------------------------------------------------------

    def read(self, family: Family) -> Table:
        """Return what the maps hold, with every prefix."""
        self._known.pop(family, None)
        return self._read(family)

    def recall(self, family: Family) -> Table:
        """Return what the maps hold; prefixes from memory where their stamp is ours."""
        return self._read(family)

    def read_at(self, family: Family, destination: int) -> Table:
        """Return what the maps hold about one destination."""
        return self._read(family, destination)

    def _read(self, family: Family, destination: int | None = None) -> Table:
        devices = list_devices()
        present = {name: _device(family, found) for name, found in devices.items()}
        table = Table(family, present=present, leading_out=egress_devices())
        if not self._hooks.exist():
            return replace(table, remains=self._pins.exists() or self._hooks.strays())
        with Maps(self._pins) as maps:
            number = maps.generation(family)
            slots = [layout.slot(family, n) for n in range(layout.GENERATIONS)]
            settings = maps.settings(slots[number])
            hooks = self._read_hooks(maps, family, number, devices)
            in_force = bool(settings.flags & Flag.MANAGED)
            remains = not in_force and (
                any(maps.settings(slot).flags for slot in slots) or not _any_in_force(maps)
            )
            table = replace(table, hooks=hooks, remains=remains)
            if not in_force:
                return table
            rules = self._rules(maps, slots[number], settings, table, destination)
        return replace(table, rules=rules)

    def _rules(
        self, maps: Maps, slot: int, settings: Settings, table: Table, destination: int | None
    ) -> Rules:
        family, devices = table.family, [n for n, hook in table.hooks.items() if hook.egress]
        if destination is not None:
            return maps.rules_at(family, slot, settings, devices, destination)
        stamp, known = self._known.get(family, (None, None))
        if known is None or stamp != settings.stamp:
            known = maps.rules(family, slot, settings, devices)
            self._known[family] = settings.stamp, known
        named = tuple(sorted(devices)) if settings.flags & Flag.ONLY_DEVICES else None
        return replace(known, devices=named)

    def _read_hooks(
        self, maps: Maps, family: Family, generation: int, devices: dict[str, EgressDevice]
    ) -> dict[str, Hook]:
        names = {found.number: name for name, found in devices.items()}
        hooks = {}
        for number, held in maps.devices().items():
            if not held.egress[_MASK[family]] >> generation & 1:
                continue
            device = Device(number, held.sources[_MASK[family]], *held[2:])
            gone = number not in names
            complete = not gone and self._hooks.complete(number)
            hooks[names.get(number, f"#{number}")] = Hook(device, True, complete)
        return hooks

    # -- writing ----------------------------------------------------------------------------

    def apply(self, family: Family, change: Plan) -> None:
        """Carry out ``change``: what is new is prepared, then one number switches to it."""
        if change.desired.rules is None:
            self._leave(family)
            return
        rules = change.desired.rules
        if not self._hooks.exist():
            self._hooks.remove()  # what decided by another policy
            self._hooks.load()
        elif change.attach:
            self._hooks.load()
        with Maps(self._pins) as maps:
            old = maps.generation(family)
            new = 1 - old if change.switches else old
            stamp = secrets.randbits(_STAMP_BITS)
            if change.switches:
                maps.fill(layout.slot(family, new), rules, stamp)
            wanted = change.actual.wanted(rules)
            devices = {device.number: device for device in wanted.values()}
            self._tell(maps, family, devices, 1 << new)
            for name in change.attach:
                self._hooks.attach(wanted[name].number)
            if change.switches:
                maps.switch(family, new)
                maps.set_settings(layout.slot(family, old), Settings(0, Flag(0), ()))
                if _weighs(change.actual.rules):
                    maps.empty(layout.slot(family, old))
            elif change.steps:
                slot = layout.slot(family, new)
                maps.edit(slot, family, change.steps)
                maps.set_settings(slot, maps.settings(slot)._replace(stamp=stamp))
            # In both generations: then the next policy with these devices need not tell.
            self._tell(maps, family, devices, _BOTH)
            self._tidy(maps)
            if change.switches or change.steps:
                self._known[family] = stamp, rules

    def _tell(self, maps: Maps, family: Family, wanted: Mapping[int, Device], bits: int) -> None:
        """Tell the programs which devices are those of some generations' policy.

        Programs stay on the others, for the flows that began there.
        """
        place = _MASK[family]
        known = maps.devices()
        for number in known.keys() | wanted.keys():
            held = known.get(number, _UNKNOWN)
            told, device = held, wanted.get(number)
            if device is not None:
                sources = _with(held.sources, place, device.source)
                told = layout.Device(sources, held.egress, device.link_header, device.loopback)
            egress = held.egress[place] & ~bits | (bits if device is not None else 0)
            told = told._replace(egress=_with(held.egress, place, egress))
            if told != known.get(number):
                maps.set_device(number, told)

    def _tidy(self, maps: Maps) -> None:
        """Remove what is left of devices that are no more."""
        present = {found.number for found in list_devices().values()}
        gone = [number for number in maps.devices() if number not in present]
        for number in gone:
            maps.drop_device(number)
        self._hooks.tidy(gone)

    def disturbed(self) -> bool:
        """Return whether a program is missing where the policy in force has one."""
        if not self._hooks.exist():
            return True
        with Maps(self._pins) as maps:
            numbers = [number for number, held in maps.devices().items() if any(held.egress)]
        return not all(map(self._hooks.complete, numbers))

    def announce(self) -> None:
        """Tell connection tracking of the flows here, so that it leaves them alone.

        A flow keeps what it has, also where the other data plane would decide otherwise:
        so those that are not translated are told too. What is not a connection of TCP or
        UDP goes on without.
        """
        if not self._hooks.exist():
            return
        with Maps(self._pins) as maps:
            introduce(_connections(maps.flows()))

    def drain(self) -> int:
        """Let flows go on, and begin none; return how many still are translated."""
        if not self._hooks.exist():
            return 0
        begun = False
        with Maps(self._pins) as maps:
            for family in layout.FAMILIES:
                self._known.pop(family, None)
                slot = layout.slot(family, maps.generation(family))
                settings = maps.settings(slot)
                if settings.flags & Flag.MANAGED:
                    maps.set_settings(slot, settings._replace(flags=Flag.DRAINING))
                    begun = True
            if begun:  # those that came since they were announced
                introduce(_connections(maps.flows()))
            self._hooks.run_sweep()
            return sum(maps.swept().translated)

    def counters(self) -> dict[tuple[Family, str], int]:
        """Return how many packets and flows met each outcome, since the maps were made."""
        if not self._hooks.exist():
            return {}
        with Maps(self._pins) as maps:
            return {
                (family, outcome): count
                for family in layout.FAMILIES
                for outcome, count in maps.counted(family).items()
            }

    def _leave(self, family: Family) -> None:
        """Remove what is of a family, and everything with the last one."""
        self._known.pop(family, None)
        if self._hooks.exist():
            with Maps(self._pins) as maps:
                for number in range(layout.GENERATIONS):
                    slot = layout.slot(family, number)
                    maps.set_settings(slot, Settings(0, Flag(0), ()))
                    maps.empty(slot)
                self._tell(maps, family, {}, _BOTH)
                if _any_in_force(maps):
                    return
        self._hooks.remove()

    def remove_unread(self, family: Family) -> Plan | None:
        """Take the programs off at once, where their maps may not be opened."""
        if not self._pins.exists():
            return None
        self._known.clear()
        self._hooks.remove()
        return Plan(Table(family, remains=True), Desired(family))


def _any_in_force(maps: Maps) -> bool:
    """Whether either family has a policy, or flows that go on."""
    return any(
        maps.settings(layout.slot(family, number)).flags
        for family in layout.FAMILIES
        for number in range(layout.GENERATIONS)
    )


def _connections(flows: Iterable[layout.Flow]) -> Iterator[Connection]:
    """Yield TCP connections and UDP flows as their first packets had them."""
    for flow in flows:
        if flow.protocol not in _WITH_PORTS or flow.state & FlowState.RESET:
            continue
        ends = flow.source, flow.destination
        (source, port), (destination, other_port) = (
            ends[::-1] if flow.state & FlowState.FROM_OUTSIDE else ends
        )
        yield Connection(
            flow.family, flow.protocol, source, port, destination, other_port, flow.seconds
        )


def _weighs(rules: Rules | None) -> bool:
    return rules is not None and len(rules.keep.elements) > _LIGHT


def _device(family: Family, found: EgressDevice) -> Device:
    source = found.sources.get(family)
    return Device(found.number, source, found.link_header, found.loopback)


def _with(pair: tuple[V, V], place: int, value: V) -> tuple[V, V]:
    return (value, pair[1]) if place == 0 else (pair[0], value)
