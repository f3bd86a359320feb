"""Taking over from the layout before this one, without an end to its policy and its flows.

There a translated flow was in the table twice, once under what its packets are on their way
out and once under its replies, and ports were drawn at random. Settings and tries were those
of today.
"""

from __future__ import annotations

import logging
import struct
import time
from collections import defaultdict
from collections.abc import Iterator
from functools import cache

from ipmasq_agent.host.devices import NodeDevices, list_devices
from ipmasq_agent.logs import event
from ipmasq_agent.planes.bpf import layout
from ipmasq_agent.planes.bpf.layout import (
    DEVICES,
    FLOWS,
    KEPT,
    NUMBER,
    FlowEnd,
    FlowState,
    SettingsFlag,
)
from ipmasq_agent.planes.bpf.maps import Index, PinnedMaps
from ipmasq_agent.planes.bpf.programs import NodePrograms
from ipmasq_agent.policy.addresses import Family

# source, destination, their ports, protocol, family; behind them the side
_KEY = struct.Struct("=16s16s2s2sBB2x")
_SIDE = 38
_FLOW = struct.Struct("=16s2s2xII")  # address, port, state, expires
_DEVICE = struct.Struct("=34xBB4x")  # of the families, in which generations the device counts
_OUTWARD = 0  # a side
_TRANSLATED = 1 << 0  # the other bits of a state are those of today, one place further up
_SAME_PLACE = FlowState.FIN_OUTWARD | FlowState.FIN_INWARD | FlowState.RESET_OUTWARD
_AT_ONCE = 4096
_SEEN = FlowState.SEEN_OUTWARD | FlowState.SEEN_INWARD


def take_over(programs: NodePrograms, maps: PinnedMaps) -> None:
    """Go on with policy and flows of an older layout, in the place of its programs."""
    with PinnedMaps(programs.pins.root) as old:
        if not old.readable() or not old.have(FLOWS):
            return
        former = FirstLayout(old, maps, list_devices())
        numbers = former.take_policy()
        # Again for those that began meanwhile: only of what began in the last scan of the
        # older table may packets come first, and begin flows anew.
        count = former.take_flows(programs.index) + former.take_flows(programs.index)
        for number in numbers:
            programs.attach(number)
        count += former.take_flows(programs.index)
    event(logging.INFO, "flows of an older version go on", flows=count)


class FirstLayout:
    """What an agent of the first layout left, whose programs may still run."""

    def __init__(self, old: PinnedMaps, new: PinnedMaps, here: NodeDevices) -> None:
        self._old, self._new = old, new
        self._devices = {device.number: device for device in here.by_name.values()}
        self._own = {layout.pack_address(*one) for one in here.own}
        self._room = {name: new[name].capacity for name in (FLOWS, KEPT)}
        self._seen: set[int] = set()
        self._fixed: set[bytes] = set()

    def take_policy(self) -> list[int]:
        """Put its policy in force in the new maps; return the devices of the old ones."""
        old, new = self._old, self._new
        egress: dict[int, dict[Family, int]] = defaultdict(dict)
        told = {NUMBER.unpack(key)[0]: value for key, value in old[DEVICES].entries()}
        for index, family in enumerate(layout.FAMILIES):
            generation = old.generation(family)
            settings = old.settings(layout.slot(family, generation))
            if settings.flags & SettingsFlag.MANAGED:
                rules = old.rules(family, layout.slot(family, generation))
                new.fill(layout.slot(family, 0), rules, settings.stamp)
                self._fixed |= {layout.pack_address(family, one.address) for one in rules.fixed}
            else:
                new.set_settings(layout.slot(family, 0), settings)
            for number, value in told.items():
                egress[number][family] = 0b11 * (_DEVICE.unpack(value)[index] >> generation & 1)
        for number in egress.keys() & self._devices.keys():
            new.set_device(layout.DeviceEntry(self._devices[number], egress[number]))
        return sorted(egress.keys() & self._devices.keys())

    def take_flows(self, index: Index) -> int:
        """Copy the flows that were not there at the last call; return how many there were.

        A flow of the programs of today that has a place already keeps it.
        """
        placed: list[bytes] = []
        taken = 0
        for table, key, value in self._converted():
            if self._room[table] > 0 and self._new[table].add(key, value):
                self._room[table] -= 1
                taken += 1
                placed += [key] * (table == FLOWS)
            if len(placed) == _AT_ONCE:
                index(placed)
                placed.clear()
        index(placed)
        return taken

    def _converted(self) -> Iterator[tuple[str, bytes, bytes]]:
        """Yield what is new as an entry of one of the tables."""
        now = int(time.clock_gettime(time.CLOCK_MONOTONIC))
        for entry, value in self._old[FLOWS].entries():
            if entry[_SIDE] != _OUTWARD or hash(entry) in self._seen:
                continue
            self._seen.add(hash(entry))
            source, destination, port, remote_port, protocol, number = _KEY.unpack(entry)
            address, other_port, bits, expires = _FLOW.unpack(value)
            if expires <= now:
                continue
            state = _state(bits)
            owner, remote = FlowEnd(source, port), FlowEnd(destination, remote_port)
            local = FlowEnd(address, other_port) if bits & _TRANSLATED else owner
            key = layout.pack_flow_key(layout.FAMILIES[number & 1], protocol, remote, local)
            if not bits & _TRANSLATED and source not in self._own:
                yield KEPT, key, layout.pack_kept(state, expires)
                continue
            if local.address in self._fixed:
                state |= FlowState.BY_FIXED
            yield FLOWS, key, layout.pack_flow(owner, self._leaves_by(local), state, expires)

    def _leaves_by(self, local: FlowEnd) -> int:
        """Return the device that gives flows this address; 0 for none."""
        for number, device in self._devices.items():
            if local.address in (layout.pack_address(*one) for one in device.sources.items()):
                return number
        return 0


@cache  # of a few bits, and asked for each flow
def _state(bits: int) -> FlowState:
    state = FlowState(bits & _SAME_PLACE | bits >> 1 & (_SEEN | FlowState.FROM_OUTSIDE))
    return state | FlowState.CONFIRMED if state & _SEEN == _SEEN else state
