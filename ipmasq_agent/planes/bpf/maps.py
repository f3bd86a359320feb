"""The maps of the eBPF programs as the kernel holds them: reading them, and filling them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ipmasq_agent.bpf import lpm
from ipmasq_agent.bpf.maps import BpfMap, create_trie, open_pinned
from ipmasq_agent.bpf.objects import open_number, pin
from ipmasq_agent.bpf.syscall import BpfCommand
from ipmasq_agent.errors import KernelReadError
from ipmasq_agent.planes.bpf import layout
from ipmasq_agent.planes.bpf.layout import FAMILIES, NUMBER, SettingsFlag, SlotSettings
from ipmasq_agent.planes.bpf.state import DECISIONS, BpfRules
from ipmasq_agent.planes.bpf.sweep import Remove, sweep
from ipmasq_agent.planes.prefixset import AddressSet, Step, element, parts
from ipmasq_agent.planes.usage import Exhausted, FlowTable
from ipmasq_agent.policy.addresses import Family, Prefix, collapsed, prefixes_of_range
from ipmasq_agent.policy.model import FixedSource, joined

CAPACITY = 1 << 20
"""How many prefixes a trie may hold; more where a policy has more."""
_MOST_MARK = 0xFFFF
_NEVER_NONE = 1 << 31
Index = Callable[[Sequence[bytes]], None]
"""Has flows found by what their packets are before translation, by their keys."""
_MOST_EXHAUSTED = 10  # destinations that are told


class PinnedMaps:
    """The maps that are pinned in a directory; a context manager that holds them open.

    Args:
        pins: the directory.
        find: opens one by its name, where it may also have lost its pin; None for none.
    """

    def __init__(self, pins: Path, find: Callable[[str], BpfMap | None] | None = None) -> None:
        self._pins = pins
        self._find = find or (lambda name: open_pinned(pins / name))
        self._stack = ExitStack()
        self._maps: dict[str, BpfMap] = {}

    def __enter__(self) -> PinnedMaps:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __getitem__(self, name: str) -> BpfMap:
        if not self.have(name):
            raise KernelReadError(f"{self._pins / name} is gone, and others of ours are there")
        return self._maps[name]

    def have(self, *names: str) -> bool:
        """Whether all of these maps can be opened."""
        for name in names:
            if name not in self._maps:
                found = self._find(name)
                if found is None:
                    return False
                self._maps[name] = self._stack.enter_context(found)
        return True

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
        return {
            NUMBER.unpack(key)[0]: layout.unpack_device(value)
            for key, value in self["devices"].entries()
        }

    def set_device(self, number: int, device: layout.DeviceEntry) -> None:
        """Tell the programs about a device."""
        self["devices"].update(NUMBER.pack(number), layout.pack_device(device))
        # A hash gives the room of the value that was replaced to the next one that comes,
        # also while a program reads it (alloc_htab_elem, kernel/bpf/hashtab.c).
        self._wait()

    def drop_device(self, number: int) -> None:
        """Have the programs forget a device."""
        self["devices"].delete(NUMBER.pack(number))
        self._wait()

    @contextmanager
    def indexing(self, family: Family, generation: int, index: Index) -> Iterator[None]:
        """Have flows of a family found wherever they are, while their first places change.

        Args:
            family: whose flows.
            generation: of the settings in force, by which flows begin meanwhile.
            index: does so for flows, by their keys.
        """
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
            with self.trie(DECISIONS, slot) as trie:
                if trie is not None:
                    self[DECISIONS].update(NUMBER.pack(slot), NUMBER.pack(trie.fd))
                    return

    # -- tries ----------------------------------------------------------------------------

    @contextmanager
    def trie(self, kind: str, slot: int) -> Iterator[BpfMap | None]:
        """Open the trie of a slot; None where there is none, or it cannot be opened.

        Each is pinned by itself too: a map of maps gives numbers, and to open a map by its
        number is for CAP_SYS_ADMIN alone.
        """
        number = self._number_of_trie(kind, slot)
        with ExitStack() as stack:
            found = open_pinned(self._trie_pin(kind, slot)) if number else None
            if found is not None and stack.enter_context(found).number != number:
                found = None
            if number and found is None:
                try:
                    found = BpfMap(open_number(BpfCommand.MAP_GET_FD_BY_ID, number))
                except OSError:  # to whoever asks it is as good as gone
                    found = None
                else:
                    stack.enter_context(found)
            yield found

    def _number_of_trie(self, kind: str, slot: int) -> int:
        """Return the number of the trie that programs ask; 0 for none."""
        value = self[kind].lookup(NUMBER.pack(slot))
        return NUMBER.unpack(value)[0] if value else 0

    def lost_tries(self, slot: int) -> bool:
        """Whether a slot that is in force has lost its trie of decisions, or we have another."""
        for kind in layout.TRIES:
            with self.trie(kind, slot) as trie:
                if trie is None and (kind == DECISIONS or self._number_of_trie(kind, slot)):
                    return True
        return False

    def unpinned_tries(self, family: Family) -> list[tuple[str, int]]:
        """Return which tries of a family, in force or not, have no pin, by kind and slot."""
        there = {path.name for path in self._pins.iterdir()} if self._pins.exists() else set()
        return [
            (kind, slot)
            for kind in layout.TRIES
            for slot in (layout.slot(family, n) for n in range(layout.GENERATIONS))
            if self._trie_pin(kind, slot).name not in there and self._number_of_trie(kind, slot)
        ]

    def pin_tries(self, family: Family) -> None:
        """Pin the tries again that have lost their pins.

        Those that we may not open any more are given up where they are not in force.
        """
        in_force = layout.slot(family, self.generation(family))
        for kind, slot in self.unpinned_tries(family):
            with self.trie(kind, slot) as trie:
                if trie is not None:
                    pin(trie.fd, self._trie_pin(kind, slot))
            if trie is None and slot != in_force:
                self._displace(kind, slot)

    def _trie_pin(self, kind: str, slot: int) -> Path:
        return self._pins / f"{kind}_{slot}"

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
            self._elements(family, slot)
            if destination is None
            else self._deciding(family, slot, destination)
        )
        sources = [prefix for prefix, _ in self._prefixes("sources", family, slot)]
        fixed = (
            FixedSource(prefix.first, prefix.last, layout.unpack_address(family, value))
            for prefix, value in self._prefixes("fixed", family, slot)
        )
        return BpfRules(
            AddressSet(DECISIONS, family, keep),
            collapsed(sources) if flags & SettingsFlag.ONLY_SOURCES else None,
            () if flags & SettingsFlag.ONLY_DEVICES else None,
            settings.ports,
            bool(flags & SettingsFlag.RANDOM_FULLY),
            joined(sorted(fixed)) if flags & SettingsFlag.FIXED_SOURCES else (),
            bool(flags & SettingsFlag.LOCAL_TOO),
        )

    def _prefixes(self, kind: str, family: Family, slot: int) -> list[tuple[Prefix, bytes]]:
        with self.trie(kind, slot) as trie:
            entries = trie.entries() if trie else ()
            items = lpm.unpack_keys(family, entries)
            return sorted((Prefix(family, first, length), value) for first, length, value in items)

    def _elements(self, family: Family, slot: int) -> tuple[int, ...]:
        """Return the trie of decisions as elements; what stands for the rest is left out."""
        codes = []
        with self.trie(DECISIONS, slot) as trie:
            entries = trie.entries() if trie else ()
            for first, length, value in lpm.unpack_keys(family, entries):
                exception = value[0] == layout.MASQUERADE
                if length or not exception:
                    codes.append(element(first, length, exception))
        return tuple(sorted(codes))

    def _deciding(self, family: Family, slot: int, address: int) -> tuple[int, ...]:
        """Return the element that decides about an address; none where the rest does.

        A look-up with a shorter key finds the longest prefix up to that length, and returns
        its value alone. Of two prefixes around each other with none between them each says
        otherwise than the other (``compile_set``), so the one that decides is as long as
        the shortest key that finds what the whole address does.
        """
        with self.trie(DECISIONS, slot) as trie:
            if trie is None:
                return ()
            found = trie.lookup(_key(family, address, family.bits))
            length = family.bits
            while length and trie.lookup(_key(family, address, length - 1)) == found:
                length -= 1
        exception = found == bytes([layout.MASQUERADE])
        if found is None or (exception and not length):
            return ()
        host_bits = family.bits - length
        return (element(address >> host_bits << host_bits, length, exception),)

    def fill(self, slot: int, rules: BpfRules, stamp: int) -> None:
        """Fill the slot, which is not in force, with rules."""
        family = rules.family
        codes = rules.keep.elements
        # Before all others the prefix that stands for what none of them says.
        keys = [_key(family, 0, 0)]
        keys += (_key(family, first, length) for first, length, _ in map(parts, codes))
        self._place(DECISIONS, slot, keys, bytes([layout.MASQUERADE, *map(_verdict, codes)]))
        keys = [_key(family, first, length) for _, first, length in rules.sources or ()]
        self._place("sources", slot, keys, bytes(len(keys)))
        fixed = [
            (_key(family, prefix.first, prefix.length), layout.pack_address(family, address))
            for first, last, address in rules.fixed
            for prefix in prefixes_of_range(family, first, last)
        ]
        values = b"".join(value for _, value in fixed)
        self._place("fixed", slot, [key for key, _ in fixed], values)
        self.set_settings(slot, SlotSettings(stamp, _flags(rules), rules.ports))

    def _place(self, kind: str, slot: int, keys: Sequence[bytes], values: bytes) -> None:
        """Make a trie with these prefixes the slot's; none where there are no prefixes."""
        if not keys:
            self._displace(kind, slot)
            return
        capacity = max(CAPACITY, 2 * len(keys))
        path = self._trie_pin(kind, slot)
        with create_trie(path.name, len(keys[0]), layout.TRIES[kind], capacity) as trie:
            trie.fill(b"".join(keys), values, len(keys))
            path.unlink(missing_ok=True)
            pin(trie.fd, path)
            self[kind].update(NUMBER.pack(slot), NUMBER.pack(trie.fd))

    def edit(self, slot: int, family: Family, steps: Iterable[Step]) -> None:
        """Edit the trie of decisions of a slot, one step after the other."""
        with self.trie(DECISIONS, slot) as trie:
            if trie is None:
                raise KernelReadError(f"the trie of decisions of {family.value} is gone")
            for code, gone in steps:
                first, length, _ = parts(code)
                key = _key(family, first, length)
                if gone:
                    trie.delete(key)
                else:
                    trie.update(key, bytes([_verdict(code)]))

    def empty(self, slot: int) -> None:
        """Give back the tries of a slot that is not in force."""
        for kind in layout.TRIES:
            self._displace(kind, slot)

    def _displace(self, kind: str, slot: int) -> None:
        key = NUMBER.pack(slot)
        if self[kind].lookup(key) is not None:  # to delete is to wait for programs that run
            self[kind].delete(key)
        self._trie_pin(kind, slot).unlink(missing_ok=True)

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
        now = int(time.clock_gettime(time.CLOCK_MONOTONIC))
        return sum(layout.translated(*columns, now) for columns in self["flows"].columns())

    def exhausted(self) -> tuple[Exhausted, ...]:
        """Return some of the destinations to which no port was free, most often first."""
        found = [layout.unpack_exhausted(*entry) for entry in self["exhausted"].entries()]
        return tuple(sorted(found, key=lambda one: one.times, reverse=True)[:_MOST_EXHAUSTED])

    def flows(self) -> Iterator[layout.TrackedFlow]:
        """Yield the flows that have not expired."""
        now = int(time.clock_gettime(time.CLOCK_MONOTONIC))
        for table, unpack in (("flows", layout.unpack_flow), ("kept", layout.unpack_kept)):
            for entry in self[table].entries():
                flow = unpack(*entry, now)
                if flow.seconds > 0:
                    yield flow

    def counted(self, family: Family) -> Mapping[str, int]:
        """Return how often each outcome was met."""
        return {
            name: layout.summed(self["counters"].per_cpu(layout.counter_key(family, number)))
            for number, name in enumerate(layout.OUTCOMES)
        }


def _key(family: Family, first: int, length: int) -> bytes:
    return lpm.pack_key(family, first, length, layout.ADDRESS_SIZE)


def _verdict(code: int) -> int:
    """Return what the trie holds for an element."""
    return layout.MASQUERADE if code & 1 else layout.NON_MASQUERADE


def _flags(rules: BpfRules) -> SettingsFlag:
    return (
        SettingsFlag.MANAGED
        | SettingsFlag.ONLY_SOURCES * (rules.sources is not None)
        | SettingsFlag.ONLY_DEVICES * (rules.devices is not None)
        | SettingsFlag.FIXED_SOURCES * bool(rules.fixed)
        | SettingsFlag.RANDOM_FULLY * rules.random_fully
        | SettingsFlag.LOCAL_TOO * rules.local_destinations
    )
