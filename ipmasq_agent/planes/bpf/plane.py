"""Our own eBPF programs in tc: what Cilium's masquerading does, with any policy.

Maps, programs and links are pinned, so that flows and translation outlive the agent.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import replace
from pathlib import Path

from ipmasq_agent.errors import HostError, KernelReadError, NotPermitted
from ipmasq_agent.host.devices import list_devices
from ipmasq_agent.host.patience import Patience
from ipmasq_agent.host.sparing import Sparing
from ipmasq_agent.logs import event
from ipmasq_agent.netlink.ct import introduce
from ipmasq_agent.planes.bpf import layout
from ipmasq_agent.planes.bpf.compile import compile_policy
from ipmasq_agent.planes.bpf.devices import first_places_move, tell, told_devices
from ipmasq_agent.planes.bpf.interpret import interpret
from ipmasq_agent.planes.bpf.layout import FlowState, SettingsFlag, SlotSettings
from ipmasq_agent.planes.bpf.maps import PinnedMaps, Signs
from ipmasq_agent.planes.bpf.observing import BegunFlows
from ipmasq_agent.planes.bpf.own_flows import record
from ipmasq_agent.planes.bpf.plan import BpfPlan, plan
from ipmasq_agent.planes.bpf.programs import NodePrograms, is_there
from ipmasq_agent.planes.bpf.state import BpfRules, BpfState, describe
from ipmasq_agent.planes.bpf.sweep import pause
from ipmasq_agent.planes.bpf.upgrade import take_over
from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.planes.plane import Dialect, Plane, Translator
from ipmasq_agent.planes.usage import FlowTable, Usage
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.facts import HOOKS, LINKS
from ipmasq_agent.policy.flows import Flow
from ipmasq_agent.policy.ports import PortUse, fullest
from ipmasq_agent.policy.tally import Tally, tally

_BOTH = (1 << layout.GENERATIONS) - 1
# Tries of more prefixes are given back at once when another policy is in force; smaller
# ones with the next policy, since to remove one is to wait for the kernel.
_LIGHT = 4096
_STAMP_BITS = 63
_BEING_EDITED = 0  # a stamp that no policy has; it stays where an edit was broken off
# How long whoever reads waits for one who edits, and between two looks, in seconds.
_LONGEST_EDIT = 1.0
_BREATH = 0.005
_COUNTED = {layout.KEPT, layout.MOVED}
# Older agents of this layout had none, and nothing hangs on them.
_OF_OBSERVERS = {layout.OBSERVERS, layout.UNTOLD}
# Where their entries are counted, by a hash with a secret.
_COUNTING = {layout.FILTERS, layout.NODE}
_SHARE = 4000  # of one CPU's time, one part for reading maps whole: 1 ms every 4 s


class BpfPlane(Plane[BpfState, BpfRules | None, BpfPlan], Translator):
    """Programs at the egress and ingress of devices, and the maps that they share.

    Args:
        pins: the directory, on a bpf file system, of this node's maps and programs.
        flows: how many flows the table holds where it is made anew; None for what the
            machine's memory suggests.
    """

    name = "bpf"
    dialect = Dialect(compile_policy, lambda family: None, plan, describe, interpret)
    needs = frozenset({LINKS, HOOKS})

    def __init__(self, pins: Path, flows: int | None = None) -> None:
        self._programs = NodePrograms(pins, flows)
        self._known: dict[Family, tuple[int, BpfRules]] = {}
        # As of the latest read: signs, and the addresses that are taken for the node's.
        self._left: dict[Family, Signs] = {}
        self._own: dict[Family, frozenset[int]] = {}
        self._sparing = Sparing(_SHARE)
        self._tables: tuple[FlowTable, ...] = ()

    # -- reading ----------------------------------------------------------------------------

    def read(self, family: Family) -> BpfState:
        """Return what the maps hold, with every prefix; and whether others of ours decide too."""
        self._known.pop(family, None)
        state = self._read(family)
        older = state.remains or self._programs.pins.of_other_layouts() or self._programs.strays()
        return replace(state, remains=bool(older))

    def recall(self, family: Family) -> BpfState:
        """Return what the maps hold; prefixes from memory where their stamp is ours."""
        return self._read(family)

    def read_at(self, family: Family, destination: int) -> BpfState:
        """Return what the maps hold, of the decisions the one about a destination."""
        return self._read(family, destination)

    def _read(self, family: Family, destination: int | None = None) -> BpfState:
        devices = list_devices()
        state = BpfState(
            family,
            present={name: found.of(family) for name, found in devices.by_name.items()},
            leading_out=devices.leading_out,
            addresses=frozenset(address for of, address in devices.own if of is family),
        )
        with self._maps() as maps:
            if maps is None:
                remains = self._programs.pins.root.exists() or self._programs.strays()
                return replace(state, remains=remains)
            damaged = not self._programs.whole() or bool(maps.inner.unpinned(family))
            if not maps.readable():
                return replace(state, remains=True, damaged=True)
            state = replace(state, damaged=damaged)
            return self._read_in_force(maps, state, destination)

    def _read_in_force(
        self, maps: PinnedMaps, state: BpfState, destination: int | None
    ) -> BpfState:
        """Read anew as long as another process writes: what was read is then of two policies."""
        patience = Patience(_LONGEST_EDIT)
        while True:
            number, in_force = before = maps.in_force(state.family)
            edited = in_force.stamp == _BEING_EDITED and bool(in_force.flags)
            failed = None
            try:
                found = self._read_generation(maps, state, number, in_force, destination)
            except KernelReadError as error:
                failed = error
            settled = not edited and maps.in_force(state.family) == before
            if settled or not patience.left():
                break
            time.sleep(_BREATH)
        if failed is not None:
            raise failed
        if edited and found.rules is not None:  # and nobody goes on with it
            return replace(found, rules=replace(found.rules, agree=False))
        return found

    def _read_generation(
        self,
        maps: PinnedMaps,
        state: BpfState,
        number: int,
        in_force: SlotSettings,
        destination: int | None,
    ) -> BpfState:
        family = state.family
        self._left[family] = maps.signs(family, maps.devices())
        hooks, beside = told_devices(maps, family, number, state.present, self._programs.complete)
        slots = [layout.slot(family, n) for n in range(layout.GENERATIONS)]
        if not in_force.flags & SettingsFlag.MANAGED:
            remains = any(maps.settings(n).flags for n in slots) or not maps.any_in_force()
            return replace(state, hooks=hooks, remains=remains)
        if maps.inner.lost(slots[number]):
            return replace(state, hooks=hooks)
        stamp, rules = self._known.get(family, (None, None))
        if destination is not None:
            rules = maps.rules(family, slots[number], destination)
        elif rules is None or stamp != in_force.stamp or stamp == _BEING_EDITED:
            rules = maps.rules(family, slots[number])
            self._known[family] = in_force.stamp, rules
        named = None if rules.devices is None else tuple(sorted(hooks))
        rules = replace(rules, devices=named)
        own = self._own[family] = maps.own(family)
        return replace(state, hooks=hooks, beside=beside, own=own, rules=rules)

    def _maps(self) -> AbstractContextManager[PinnedMaps | None]:
        """Hold the maps open; None where there are none."""
        return self._open_maps() if self._programs.exist() else nullcontext()

    def _open_maps(self) -> PinnedMaps:
        return PinnedMaps(self._programs.pins.objects, self._programs.find_map)

    # -- writing ----------------------------------------------------------------------------

    def apply(self, family: Family, change: BpfPlan) -> None:
        """Carry out ``change``: what is new is prepared, then one number switches to it."""
        rules = change.desired
        if rules is None:
            self._leave(family)
            return
        made = self._load()
        with self._open_maps() as maps:
            old = maps.generation(family)
            new = 1 - old if change.switches else old
            stamp, before = 1 + secrets.randbits(_STAMP_BITS), change.actual.rules
            if change.switches:
                maps.fill(layout.slot(family, new), rules, stamp)
            actual = change.actual
            wanted = actual.wanted(rules)
            egress = {device.number for device in wanted.values()}
            devices = (*wanted.values(), *actual.wanted_beside(rules).values())
            told = {device.number: device for device in devices}
            present = {device.number for device in actual.present.values()}
            own = maps.own(family)
            # One too few has the node's own connections begin anew. One too many has flows go
            # on with an address to which nothing comes back, and what comes in for whoever
            # got it forgotten. So they come before a device has one, and go after.
            maps.add_own(family, actual.addresses - own)
            with ExitStack() as stack:
                if first_places_move(maps, family, old, rules, told, actual.addresses):
                    stack.enter_context(maps.indexing(family, old, self._programs.index))
                tell(maps, family, told, egress, 1 << new)
                if not made:
                    self._attach(maps, present)
                if change.switches:
                    maps.switch(family, new)
                    maps.set_settings(layout.slot(family, old), SlotSettings())
                    if before is not None and len(before.keep.elements) > _LIGHT:
                        maps.prefixes.empty(family, layout.slot(family, old))
                elif change.steps and before is not None:
                    slot = layout.slot(family, new)
                    maps.stamp(slot, _BEING_EDITED)
                    maps.prefixes.edit(slot, before.keep, rules.keep, change.steps)
                    maps.stamp(slot, stamp)
                if made:  # programs with new maps find the policy in force there
                    self._attach(maps, present)
                    if layout.FLOWS not in made:
                        maps.index(self._programs.index)  # those that began meanwhile
                # In both generations: then the next policy with these devices need not tell.
                tell(maps, family, told, egress, _BOTH)
            maps.drop_own(family, own - actual.addresses)
            maps.inner.pin_again(family, layout.slot(family, new))
            self._tidy(maps)
            # What is said of devices is said to both families.
            known = maps.devices()
            self._left = {each: maps.signs(each, known) for each in self._left}
            if change.switches or change.steps:
                self._known[family] = stamp, rules
        if change.actual.remains:
            self._programs.pins.remove_other_layouts()
            self._programs.remove_strays()

    def _load(self) -> list[str]:
        """Load what is missing of maps and programs; return the maps that were made."""
        made = self._programs.load()
        older = self._programs.pins.of_other_layouts()
        if not made and not older:
            return made
        lost = [name for name in made if name not in _OF_OBSERVERS]
        if lost and len(made) < len(layout.MAPS):
            event(logging.WARNING, "maps of the eBPF programs were lost", maps=" ".join(lost))
        with self._open_maps() as maps:
            maps.provide_secret()
            if older or (_COUNTING & set(made) and _COUNTED - set(made)):
                maps.look_always()
            if layout.FLOWS in made:
                record(maps)
            # Where flows are is told by the secret, or by the table of those that moved.
            maps.index(self._programs.index)
            if older:
                take_over(self._programs, maps)
        return made

    def _attach(self, maps: PinnedMaps, present: Collection[int]) -> None:
        """Put the programs on each device that they are told of, where they are not yet."""
        for number in maps.devices():
            if number in present and not self._programs.complete(number):
                self._programs.attach(number)

    def _tidy(self, maps: PinnedMaps) -> None:
        """Remove what is left of devices that are no more."""
        present = {found.number for found in list_devices().by_name.values()}
        gone = [number for number in maps.devices() if number not in present]
        for number in gone:
            maps.drop_device(number)
        self._programs.tidy(gone)

    def close(self) -> None:
        """Hold nothing any more; what is in force goes on."""
        self._programs.close()

    def _leave(self, family: Family) -> None:
        """Remove what is of a family, and everything with the last one."""
        self._known.pop(family, None)
        self._left.pop(family, None)
        with self._maps() as maps:
            if maps is not None and maps.readable():
                for number in range(layout.GENERATIONS):
                    slot = layout.slot(family, number)
                    maps.set_settings(slot, SlotSettings())
                    maps.prefixes.empty(family, slot)
                tell(maps, family, {}, frozenset(), _BOTH)
                maps.drop_own(family, maps.own(family))
                if maps.any_in_force():
                    return
        self._programs.remove()

    def remove_unread(self, family: Family) -> BpfPlan | None:
        """Take the programs off at once, where their maps may not be opened."""
        if not self._programs.pins.root.exists():
            return None
        self._known.clear()
        self._left.clear()
        self._programs.remove()
        return BpfPlan(BpfState(family, remains=True), None)

    # -- beside passes ----------------------------------------------------------------------

    def disturbed(self, failing: Collection[Family] = ()) -> bool:
        """Return whether a program is missing where the policy in force has one, or a pin.

        Or whether the maps say something else; of prefixes and addresses now and then.
        Programs are of both families, so that nobody looks while a pass fails in one.
        """
        if failing:
            return False
        if self._programs.pins.missing():
            return True
        with self._maps() as maps:
            if maps is None or any(map(maps.inner.unpinned, layout.FAMILIES)):
                return True
            devices = maps.devices()
            missing = [number for number in devices if not self._programs.complete(number)]
            if any(map(is_there, missing)):
                return True
            with self._sparing.turn() as closely:
                return any(
                    maps.signs(family, devices) != left
                    or (closely and self._other_rules(maps, family))
                    for family, left in self._left.items()
                )

    def _other_rules(self, maps: PinnedMaps, family: Family) -> bool:
        number, in_force = maps.in_force(family)
        stamp, known = self._known.get(family, (None, None))
        if known is None or stamp != in_force.stamp:
            return False
        if maps.own(family) != self._own.get(family):
            return True
        held = maps.rules(family, layout.slot(family, number))
        return replace(held, devices=known.devices) != known

    def host_changed(self, before: BpfState, after: BpfState) -> bool:
        """Return whether devices or addresses have come, gone or changed."""
        states = (before, after)
        was, now = ((one.present, one.leading_out, one.addresses) for one in states)
        return was != now

    def announce(self) -> None:
        """Tell connection tracking of the flows here, so that it leaves them alone.

        A flow keeps what it has, also where the other data plane would decide otherwise:
        so those that are not translated are told too. What is not a connection of TCP or
        UDP goes on without.
        """
        if self._programs.pins.of_other_layouts():
            with suppress(NotPermitted):  # then they end with the programs of that version
                self._load()
        with self._maps() as maps:
            if maps is not None:
                introduce(maps.connections())

    def drain(self) -> int:
        """Let flows go on, and begin none; return how many still are translated."""
        begun = False
        with self._maps() as maps:
            if maps is None:
                return 0
            for family in layout.FAMILIES:
                self._known.pop(family, None)
                self._left.pop(family, None)
                slot = layout.slot(family, maps.generation(family))
                settings = maps.settings(slot)
                if settings.flags & SettingsFlag.MANAGED:
                    # Where flows are found hangs on the others, and on which devices.
                    flags = settings.flags & ~SettingsFlag.MANAGED | SettingsFlag.DRAINING
                    maps.set_settings(slot, settings._replace(flags=flags))
                    begun = True
            if begun:  # those that came since they were announced
                introduce(maps.connections())
            maps.sweep(self._programs.collect)
            return maps.translated()

    def flows(self, port: int | None = None) -> Iterator[Flow]:
        """Yield the flows that have not expired.

        Not those that came from outside: what comes in through one device with the programs and
        leaves by another is known as both.
        """
        with self._maps() as maps:
            if maps is not None and maps.have(*layout.TABLES):
                for flow, state, _ in maps.flows(port):
                    if not state & FlowState.FROM_OUTSIDE:
                        yield flow

    def beginnings(self) -> BegunFlows:
        """Listen to flows that leave the node as they begin."""
        with ExitStack() as stack:
            maps = stack.enter_context(self._open_maps())
            if not maps.have(layout.OBSERVERS, layout.UNTOLD):
                raise HostError(
                    "the eBPF programs that would tell of flows are not there",
                    remedy="start the agent, or `apply` with --backend bpf",
                )
            begun = BegunFlows(maps)
            stack.pop_all()
        return begun

    def ports_taken(self, most: int) -> Tally[PortUse]:
        """Count the translated flows by what shares ports; return the fullest."""
        with self._maps() as maps:
            if maps is None or not maps.have(*layout.TABLES):
                return Tally(Counter())
            found = tally(maps.ports_taken())
            pools = [maps.pool(family) for family in layout.FAMILIES]
        uses = {layout.unpack_shared(key, pools): n for key, n in found.counts.items()}
        return Tally(fullest(uses, most), found.missed)

    def counters(self) -> dict[tuple[Family, str], int]:
        """Return how many packets and flows met each outcome, since the maps were made."""
        with self._maps() as maps:
            if maps is None:
                return {}
            return {
                (family, outcome): count
                for family in layout.FAMILIES
                for outcome, count in maps.counted(family).items()
            }

    def sweep(self) -> float:
        """Remove flows that have expired; return the seconds until the next time."""
        with self._maps() as maps:
            self._tables = () if maps is None else maps.sweep(self._programs.collect)
        return pause(self._tables)

    def usage(self) -> Usage:
        """Return how full the tables are, and where no port was free.

        The tables are as the latest sweep found them; read now where there was none.
        """
        with self._maps() as maps:
            if maps is None:
                return Usage()
            return Usage(self._tables or maps.sweep(), maps.exhausted())


def placed(placement: Placement) -> BpfPlane:
    """Return the plane with its pins where they are placed."""
    return BpfPlane(Path(placement.pins), placement.flows)
