"""The maps of the eBPF programs as the kernel holds them: reading them, and filling them."""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from ipmasq_agent.bpf.maps import BpfMap, open_pinned
from ipmasq_agent.errors import KernelReadError
from ipmasq_agent.planes.bpf import layout
from ipmasq_agent.planes.bpf.inner import InnerMaps
from ipmasq_agent.planes.bpf.layout import FAMILIES, NUMBER, FlowState, SettingsFlag, SlotSettings
from ipmasq_agent.planes.bpf.prefix_maps import PrefixMaps
from ipmasq_agent.planes.bpf.state import DECISIONS, BpfRules
from ipmasq_agent.planes.bpf.sweep import Remove, sweep
from ipmasq_agent.planes.prefixset import AddressSet
from ipmasq_agent.planes.usage import Exhausted, FlowTable
from ipmasq_agent.policy.addresses import Family, collapsed
from ipmasq_agent.policy.facts import EgressDevice
from ipmasq_agent.policy.flows import Flow
from ipmasq_agent.policy.model import FixedSource, joined
from ipmasq_agent.policy.ports import PortPool, own_pool

_MOST_MARK = 0xFFFE  # its complement is a mark too, and 0 is none
_NEVER_NONE = 1 << 31
_WITH_PORTS = frozenset({socket.IPPROTO_TCP, socket.IPPROTO_UDP})
Index = Callable[[Sequence[bytes]], None]
"""Has flows found by what their packets are before translation, by their keys."""
_MOST_EXHAUSTED = 10  # destinations that are told


class Signs(NamedTuple):
    """What the maps say of a family beside prefixes and addresses."""

    generation: int
    settings: SlotSettings
    devices: Mapping[int, tuple[EgressDevice, bool]]


class PinnedMaps:
    """The maps that are pinned in a directory; a context manager that holds them open.

    Args:
        pins: see below.
        find: opens one by its name, where it may also have lost its pin; None for none.

    Attributes:
        pins: the directory.
        inner: the maps within maps of maps.
        prefixes: what they say of addresses.
    """

    def __init__(self, pins: Path, find: Callable[[str], BpfMap | None] | None = None) -> None:
        self.pins = pins
        self._find = find or (lambda name: open_pinned(pins / name))
        self._stack = ExitStack()
        self._maps: dict[str, BpfMap] = {}
        self.inner = InnerMaps(self)
        self.prefixes = PrefixMaps(self)

    def __enter__(self) -> PinnedMaps:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def find(self, name: str) -> BpfMap | None:
        """Open a map; None where it is not there."""
        if name not in self._maps:
            found = self._find(name)
            if found is None:
                return None
            self._maps[name] = self._stack.enter_context(found)
        return self._maps[name]

    def __getitem__(self, name: str) -> BpfMap:
        found = self.find(name)
        if found is None:
            raise KernelReadError(f"{self.pins / name} is gone, and others of ours are there")
        return found

    def have(self, *names: str) -> bool:
        """Whether all of these maps can be opened."""
        return all(self.find(name) is not None for name in names)

    def readable(self) -> bool:
        """Whether there is what tells which policy is in force."""
        return self.have(layout.CONTROL, layout.SETTINGS, layout.DEVICES, *layout.TRIES)

    # -- what is in force -----------------------------------------------------------------

    def generation(self, family: Family) -> int:
        """Return which generation of a family is in force."""
        value = self[layout.CONTROL].lookup(NUMBER.pack(FAMILIES.index(family)))
        return NUMBER.unpack(value)[0] & 1 if value else 0

    def switch(self, family: Family, generation: int) -> None:
        """Put a generation in force, and wait until no packet is decided by another."""
        self[layout.CONTROL].update(NUMBER.pack(FAMILIES.index(family)), NUMBER.pack(generation))
        self._wait()

    def settings(self, slot: int) -> SlotSettings:
        """Return the settings of a slot."""
        value = self["settings"].lookup(NUMBER.pack(slot))
        return layout.unpack_settings(value) if value else SlotSettings()

    def in_force(self, family: Family) -> tuple[int, SlotSettings]:
        """Return the generation in force, and its settings with the stamp of its policy."""
        number = self.generation(family)
        return number, self.settings(layout.slot(family, number))

    def signs(self, family: Family, known: Mapping[int, layout.DeviceEntry]) -> Signs:
        """Return what is said of a family; of ``known`` devices, whether its policy has them."""
        number, in_force = self.in_force(family)
        devices = {
            ifindex: (told.device.of(family), bool(told.egress.get(family, 0) >> number & 1))
            for ifindex, told in known.items()
        }
        return Signs(number, in_force, devices)

    def stamp(self, slot: int, stamp: int) -> None:
        """Stamp the policy of a slot."""
        self.set_settings(slot, self.settings(slot)._replace(stamp=stamp))

    def provide_secret(self) -> None:
        """Draw what gives ports to flows, unless there is such already: then flows have some."""
        node, key = self["node"], NUMBER.pack(0)
        if not any(node.lookup(key) or b""):
            mark = 1 + secrets.randbelow(_MOST_MARK)
            node.update(key, layout.pack_node(secrets.randbits(128), mark))

    def tell_several(self, several: bool) -> None:
        """Tell the programs whether they are on several devices."""
        held = self["node"].lookup(NUMBER.pack(0)) or b""
        told = layout.with_several(held, several)
        if told != held:
            self["node"].update(NUMBER.pack(0), told)

    def look_always(self) -> None:
        """Have the programs look each flow up, also where the filters count no entry.

        For tables with entries that no program has counted. A new flow then costs some 200 ns
        more, until the maps are made anew.
        """
        filters = self[layout.FILTERS]
        keys = b"".join(map(NUMBER.pack, range(filters.capacity)))
        filters.fill(keys, filters.capacity * NUMBER.pack(_NEVER_NONE), filters.capacity)

    def set_settings(self, slot: int, settings: SlotSettings) -> None:
        """Write the settings of a slot."""
        self["settings"].update(NUMBER.pack(slot), layout.pack_settings(settings))

    def any_in_force(self) -> bool:
        """Whether either family has a policy, or flows that go on."""
        slots = (layout.slot(f, n) for f in FAMILIES for n in range(layout.GENERATIONS))
        return any(self.settings(slot).flags for slot in slots)

    def devices(self) -> dict[int, layout.DeviceEntry]:
        """Return what the programs know of devices, by ifindex."""
        held = ((*NUMBER.unpack(key), value) for key, value in self["devices"].entries())
        return {number: layout.unpack_device(number, value) for number, value in held}

    def set_device(self, told: layout.DeviceEntry) -> None:
        """Tell the programs about a device."""
        self["devices"].update(NUMBER.pack(told.device.number), layout.pack_device(told))
        # A hash gives the room of the value that was replaced to the next one that comes,
        # also while a program reads it (alloc_htab_elem, kernel/bpf/hashtab.c).
        self._wait()

    def drop_device(self, number: int) -> None:
        """Have the programs forget a device."""
        self["devices"].delete(NUMBER.pack(number))
        self._wait()

    @contextmanager
    def indexing(self, family: Family, generation: int, index: Index) -> Iterator[None]:
        """Have flows of a family found wherever they are, while their first places change."""
        slot = layout.slot(family, generation)
        self._flag(slot, SettingsFlag.INDEXING)
        try:
            self._wait()  # from here on those that begin do so by themselves
            self.index(index, family)
            yield
        finally:
            self._flag(slot, SettingsFlag(0))

    def _flag(self, slot: int, flag: SettingsFlag) -> None:
        settings = self.settings(slot)
        flags = settings.flags & ~SettingsFlag.INDEXING | flag
        self.set_settings(slot, settings._replace(flags=flags))

    def own(self, family: Family) -> frozenset[int]:
        """Return the addresses that are taken for the node's."""
        if not self.have(layout.OWN):
            return frozenset()
        held = (layout.unpack_own(key) for key, _ in self[layout.OWN].entries())
        return frozenset(address for of, address in held if of is family)

    def add_own(self, family: Family, addresses: Iterable[int]) -> None:
        """Have more addresses taken for the node's."""
        for address in addresses:
            self[layout.OWN].update(layout.pack_own(family, address), bytes(1))

    def drop_own(self, family: Family, addresses: Iterable[int]) -> None:
        """Have addresses no longer taken for the node's."""
        for address in addresses:
            self[layout.OWN].delete(layout.pack_own(family, address))

    def _wait(self) -> None:
        """Wait until no program runs that began before now.

        The kernel does so whenever a map of maps was written (maybe_wait_bpf_programs,
        kernel/bpf/syscall.c), also when nothing in it changed.
        """
        for slot in range(len(FAMILIES) * layout.GENERATIONS):
            with self.inner.open(DECISIONS, slot) as trie:
                if trie is not None:
                    self[DECISIONS].update(NUMBER.pack(slot), NUMBER.pack(trie.fd))
                    return

    # -- policies -------------------------------------------------------------------------

    def rules(self, family: Family, slot: int, destination: int | None = None) -> BpfRules:
        """Return what a slot says; its devices are with what is told of each device.

        Args:
            family: whose slot it is.
            slot: its number.
            destination: look up the prefix that decides about this one alone; None to read
                all of them.
        """
        settings = self.settings(slot)
        flags = settings.flags
        keep = (
            self.prefixes.elements(family, slot)
            if destination is None
            else self.prefixes.deciding(family, slot, destination)
        )
        sources = [prefix for prefix, _ in self.prefixes.of("sources", family, slot)]
        fixed = (
            FixedSource(prefix.first, prefix.last, layout.unpack_address(family, value))
            for prefix, value in self.prefixes.of("fixed", family, slot)
        )
        return BpfRules(
            AddressSet(DECISIONS, family, keep),
            collapsed(sources) if flags & SettingsFlag.ONLY_SOURCES else None,
            () if flags & SettingsFlag.ONLY_DEVICES else None,
            settings.ports,
            bool(flags & SettingsFlag.RANDOM_FULLY),
            joined(sorted(fixed)) if flags & SettingsFlag.FIXED_SOURCES else (),
            bool(flags & SettingsFlag.LOCAL_TOO),
            agree=destination is not None or self.prefixes.agree(family, slot, keep),
        )

    def fill(self, slot: int, rules: BpfRules, stamp: int) -> None:
        """Fill the slot, which is not in force, with rules."""
        self.prefixes.fill(slot, rules)
        self.set_settings(slot, SlotSettings(stamp, _flags(rules), rules.ports))

    # -- what the programs tell -------------------------------------------------------------

    def sweep(self, remove: Remove | None = None) -> tuple[FlowTable, ...]:
        """Have flows removed that have expired for good, and return what is in the tables."""
        return tuple(sweep(name, self[name], remove) for name in layout.TABLES)

    def index(self, index: Index, family: Family | None = None) -> None:
        """Have all flows, or those of a family, found wherever they are."""
        families = FAMILIES if family is None else (family,)
        for keys, _ in self[layout.FLOWS].columns():
            index(layout.of_families(families, keys))

    def translated(self) -> int:
        """Return how many flows have not expired that get another address or port."""
        return sum(1 for _ in self.ports_taken())

    def ports_taken(self) -> Iterator[layout.SharedPorts]:
        """Yield for each translated flow that has not expired what shares its port."""
        now = int(time.clock_gettime(time.CLOCK_MONOTONIC))
        for columns in self["flows"].columns():
            yield from layout.shared_ports(*columns, now)

    def pool(self, family: Family) -> PortPool:
        """Return the ports that the policy in force gives."""
        return own_pool(self.settings(layout.slot(family, self.generation(family))).ports)

    def exhausted(self) -> tuple[Exhausted, ...]:
        """Return some of the destinations to which no port was free, most often first."""
        found = [layout.unpack_exhausted(*entry) for entry in self["exhausted"].entries()]
        return tuple(sorted(found, key=lambda one: one.times, reverse=True)[:_MOST_EXHAUSTED])

    def flows(self, port: int | None = None) -> Iterator[layout.TrackedFlow]:
        """Yield the flows that have not expired; those alone that leave with a port, if given."""
        now = int(time.clock_gettime(time.CLOCK_MONOTONIC))
        for table in layout.TABLES:
            for entry in self[table].entries():
                if port is not None and not layout.has_port(entry[0], port):
                    continue
                flow = layout.unpack_flow(table, *entry, now)
                if flow.seconds > 0 and (port is None or flow.flow.left_as.port == port):
                    yield flow

    def connections(self) -> Iterator[tuple[Flow, int]]:
        """Yield TCP connections and UDP flows, and how many seconds they live."""
        for flow, state, seconds in self.flows():
            if flow.protocol in _WITH_PORTS and not state & FlowState.RESET:
                yield flow, seconds

    def counted(self, family: Family) -> Mapping[str, int]:
        """Return how often each outcome was met."""
        first, counters = FAMILIES.index(family) * layout.MOST_OUTCOMES, self["counters"]
        return {
            name: layout.summed(counters.per_cpu(NUMBER.pack(number)))
            for number, name in enumerate(layout.OUTCOMES, first)
        }


def _flags(rules: BpfRules) -> SettingsFlag:
    return (
        SettingsFlag.MANAGED
        | SettingsFlag.ONLY_SOURCES * (rules.sources is not None)
        | SettingsFlag.ONLY_DEVICES * (rules.devices is not None)
        | SettingsFlag.FIXED_SOURCES * bool(rules.fixed)
        | SettingsFlag.RANDOM_FULLY * rules.random_fully
        | SettingsFlag.LOCAL_TOO * rules.local_destinations
    )
