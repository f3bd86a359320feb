"""The maps of the eBPF programs as the kernel holds them: reading them, and filling them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ipmasq_agent.bpf.maps import BpfMap, create_trie, open_pinned
from ipmasq_agent.bpf.objects import pin
from ipmasq_agent.errors import KernelReadError
from ipmasq_agent.planes.bpf import layout
from ipmasq_agent.planes.bpf.layout import Flag, Settings
from ipmasq_agent.planes.bpf.state import DECISIONS, Rules
from ipmasq_agent.planes.prefixset import AddressSet, Step, element, parts
from ipmasq_agent.policy.addresses import Family, Prefix, prefixes_of_range
from ipmasq_agent.policy.assemble import collapsed
from ipmasq_agent.policy.model import FixedSource, joined

CAPACITY = 1 << 20
"""How many prefixes a trie may hold; more where a policy has more."""
_VALUE_SIZES = {"decisions": 1, "sources": 1, "fixed": layout.ADDRESS_SIZE}
_EVERYTHING = (0, 0)  # the prefix that stands for what no other one says


class Maps:
    """The maps that are pinned in a directory; a context manager that holds them open."""

    def __init__(self, pins: Path) -> None:
        self._pins = pins
        self._stack = ExitStack()
        self._maps: dict[str, BpfMap] = {}

    def __enter__(self) -> Maps:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __getitem__(self, name: str) -> BpfMap:
        if name not in self._maps:
            found = open_pinned(self._pins / name)
            if found is None:
                raise KernelReadError(
                    f"{self._pins} has no map {name}, and has others of ours",
                    remedy="`ipmasq-agent cleanup --backend bpf` removes them all",
                )
            self._stack.callback(found.close)
            self._maps[name] = found
        return self._maps[name]

    # -- what is in force -----------------------------------------------------------------

    def generation(self, family: Family) -> int:
        """Return which generation of a family is in force."""
        key = layout.NUMBER.pack(layout.FAMILIES.index(family))
        value = self["control"].lookup(key)
        return layout.NUMBER.unpack(value)[0] & 1 if value else 0

    def switch(self, family: Family, generation: int) -> None:
        """Put a generation in force, and wait until no packet is decided by another."""
        key = layout.NUMBER.pack(layout.FAMILIES.index(family))
        self["control"].update(key, layout.NUMBER.pack(generation))
        self._wait()

    def settings(self, slot: int) -> Settings:
        """Return the settings of a slot."""
        value = self["settings"].lookup(layout.NUMBER.pack(slot))
        return layout.unpack_settings(value) if value else Settings(0, Flag(0), ())

    def set_settings(self, slot: int, settings: Settings) -> None:
        """Write the settings of a slot."""
        self["settings"].update(layout.NUMBER.pack(slot), layout.pack_settings(settings))

    def devices(self) -> dict[int, layout.Device]:
        """Return what the programs know of devices, by ifindex."""
        return {
            layout.NUMBER.unpack(key)[0]: layout.unpack_device(value)
            for key, value in self["devices"].entries()
        }

    def set_device(self, number: int, device: layout.Device) -> None:
        """Tell the programs about a device."""
        self["devices"].update(layout.NUMBER.pack(number), layout.pack_device(device))
        # A hash gives the room of the value that was replaced to the next one that comes,
        # also while a program reads it (alloc_htab_elem, kernel/bpf/hashtab.c).
        self._wait()

    def _wait(self) -> None:
        """Wait until no program runs that began before now.

        The kernel does so whenever a map of maps was written (maybe_wait_bpf_programs,
        kernel/bpf/syscall.c), also when nothing in it changed.
        """
        for slot in range(len(layout.FAMILIES) * layout.GENERATIONS):
            with self.trie("decisions", slot) as trie:
                if trie is not None:
                    key, value = layout.NUMBER.pack(slot), layout.NUMBER.pack(trie.fd)
                    self["decisions"].update(key, value)
                    return

    def drop_device(self, number: int) -> None:
        """Have the programs forget a device."""
        self["devices"].delete(layout.NUMBER.pack(number))
        self._wait()

    # -- tries ----------------------------------------------------------------------------

    @contextmanager
    def trie(self, kind: str, slot: int) -> Iterator[BpfMap | None]:
        """Open the trie of a slot; None where there is none.

        Each is pinned by itself too: a map of maps gives numbers, and to open a map by its
        number is for CAP_SYS_ADMIN alone.
        """
        found = open_pinned(self._trie(kind, slot))
        try:
            yield found
        finally:
            if found is not None:
                found.close()

    def _trie(self, kind: str, slot: int) -> Path:
        return self._pins / f"{kind}_{slot}"

    def rules(self, family: Family, slot: int, settings: Settings, devices: Iterable[str]) -> Rules:
        """Return what a slot says, read in full."""
        keep = self._elements(family, slot)
        return self._rules(family, slot, settings, devices, keep)

    def rules_at(
        self, family: Family, slot: int, settings: Settings, devices: Iterable[str], address: int
    ) -> Rules:
        """Return what a slot says, of its destinations that one alone."""
        with self.trie("decisions", slot) as trie:
            keep = () if trie is None else _decider(trie, family, address)
        return self._rules(family, slot, settings, devices, keep)

    def _rules(
        self,
        family: Family,
        slot: int,
        settings: Settings,
        devices: Iterable[str],
        keep: Sequence[int],
    ) -> Rules:
        flags = settings.flags
        fixed = [
            FixedSource(prefix.first, prefix.last, layout.unpack_address(family, value))
            for prefix, value in self._prefixes("fixed", family, slot)
        ]
        sources = [prefix for prefix, _ in self._prefixes("sources", family, slot)]
        return Rules(
            AddressSet(DECISIONS, family, keep),
            collapsed(sources) if flags & Flag.ONLY_SOURCES else None,
            tuple(sorted(devices)) if flags & Flag.ONLY_DEVICES else None,
            settings.ports,
            bool(flags & Flag.RANDOM_FULLY),
            joined(sorted(fixed)) if flags & Flag.FIXED_SOURCES else (),
            bool(flags & Flag.LOCAL_TOO),
        )

    def _prefixes(self, kind: str, family: Family, slot: int) -> list[tuple[Prefix, bytes]]:
        with self.trie(kind, slot) as trie:
            items = list(trie.entries()) if trie else []
        return sorted((layout.unpack_prefix(family, key), value) for key, value in items)

    def _elements(self, family: Family, slot: int) -> tuple[int, ...]:
        """Return the trie of decisions as elements; what stands for the rest is left out."""
        size = family.bits // 8
        codes = []
        with self.trie("decisions", slot) as trie:
            for key, value in list(trie.entries()) if trie else ():
                length, data = layout.PREFIX.unpack(key)
                exception = value[0] == layout.MASQUERADE
                if length or not exception:
                    codes.append(element(int.from_bytes(data[:size]), length, exception))
        return tuple(sorted(codes))

    def fill(self, slot: int, rules: Rules, stamp: int) -> None:
        """Fill the slot, which is not in force, with rules."""
        family = rules.family
        codes = rules.keep.elements
        keys = [layout.pack_prefix(family, *_EVERYTHING)]
        keys += (layout.pack_prefix(family, first, size) for first, size, _ in map(parts, codes))
        verdicts = bytes([layout.MASQUERADE]) + bytes(
            layout.MASQUERADE if code & 1 else layout.NON_MASQUERADE for code in codes
        )
        self._place("decisions", slot, keys, verdicts)
        sources = rules.sources or ()
        keys = [layout.pack_prefix(family, prefix.first, prefix.length) for prefix in sources]
        self._place("sources", slot, keys, bytes(len(keys)))
        fixed = [
            (layout.pack_prefix(family, prefix.first, prefix.length), address)
            for first, last, address in rules.fixed
            for prefix in prefixes_of_range(family, first, last)
        ]
        values = b"".join(layout.pack_address(family, address) for _, address in fixed)
        self._place("fixed", slot, [key for key, _ in fixed], values)
        self.set_settings(slot, Settings(stamp, _flags(rules), rules.ports))

    def _place(self, kind: str, slot: int, keys: Sequence[bytes], values: bytes) -> None:
        """Make a trie with these prefixes the slot's; none where there are no prefixes."""
        if not keys:
            self._displace(kind, slot)
            return
        capacity = max(CAPACITY, 2 * len(keys))
        size = _VALUE_SIZES[kind]
        trie = create_trie(f"{kind}_{slot}", layout.PREFIX.size, size, capacity)
        try:
            trie.fill(b"".join(keys), values, len(keys))
            self._trie(kind, slot).unlink(missing_ok=True)
            pin(trie.fd, self._trie(kind, slot))
            self[kind].update(layout.NUMBER.pack(slot), layout.NUMBER.pack(trie.fd))
        finally:
            trie.close()

    def edit(self, slot: int, family: Family, steps: Iterable[Step]) -> None:
        """Edit the trie of decisions of a slot, one step after the other."""
        with self.trie("decisions", slot) as trie:
            if trie is None:
                raise KernelReadError(f"the trie of decisions of {family.value} is gone")
            for code, gone in steps:
                first, length, exception = parts(code)
                key = layout.pack_prefix(family, first, length)
                if gone:
                    trie.delete(key)
                else:
                    verdict = layout.MASQUERADE if exception else layout.NON_MASQUERADE
                    trie.update(key, layout.VERDICT.pack(verdict))

    def empty(self, slot: int) -> None:
        """Give back the tries of a slot that is not in force."""
        for kind in _VALUE_SIZES:
            self._displace(kind, slot)

    def _displace(self, kind: str, slot: int) -> None:
        key = layout.NUMBER.pack(slot)
        if self[kind].lookup(key) is not None:  # to delete is to wait for programs that run
            self[kind].delete(key)
        self._trie(kind, slot).unlink(missing_ok=True)

    def swept(self) -> layout.Swept:
        """Return what the latest sweep through the flows found."""
        return layout.unpack_swept(self["swept"].lookup(layout.NUMBER.pack(0)) or b"")

    def flows(self) -> Iterator[layout.Flow]:
        """Yield the flows that have not expired."""
        now = int(time.clock_gettime(time.CLOCK_MONOTONIC))
        for entry in self["flows"].entries():
            flow = layout.unpack_flow(*entry, now)
            if flow is not None and flow.seconds > 0:
                yield flow

    def counted(self, family: Family) -> Mapping[str, int]:
        """Return how often each outcome was met."""
        return {
            name: layout.summed(self["counters"].per_cpu(layout.counter_index(family, number)))
            for number, name in enumerate(layout.OUTCOMES)
        }


def _decider(trie: BpfMap, family: Family, address: int) -> tuple[int, ...]:
    """Return the element of the trie of decisions that an address meets; none for the rest.

    A look-up gives the value of the longest prefix alone, but one with a shorter key finds no
    prefix longer than that key; and each of ours says another thing than the one around it.
    """
    length = family.bits
    value = trie.lookup(layout.pack_prefix(family, address, length))
    if value is None:
        return ()
    while length and trie.lookup(layout.pack_prefix(family, address, length - 1)) == value:
        length -= 1
    if not length and value[0] == layout.MASQUERADE:
        return ()
    host_bits = family.bits - length
    first = address >> host_bits << host_bits
    return (element(first, length, value[0] == layout.MASQUERADE),)


def _flags(rules: Rules) -> Flag:
    flags = Flag.MANAGED
    for flag, holds in (
        (Flag.ONLY_SOURCES, rules.sources is not None),
        (Flag.ONLY_DEVICES, rules.devices is not None),
        (Flag.FIXED_SOURCES, bool(rules.fixed)),
        (Flag.RANDOM_FULLY, rules.random_fully),
        (Flag.LOCAL_TOO, rules.local_destinations),
    ):
        if holds:
            flags |= flag
    return flags
