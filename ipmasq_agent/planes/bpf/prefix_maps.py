"""The prefixes of the slots: tries of all of them, and the bitmap of IPv4's decisions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ipmasq_agent.bpf import lpm
from ipmasq_agent.bpf.maps import LPM_TRIE, create
from ipmasq_agent.errors import KernelReadError
from ipmasq_agent.planes.bpf import layout
from ipmasq_agent.planes.bpf.bitmap import rewriting
from ipmasq_agent.planes.bpf.bitmap_maps import BitmapMaps
from ipmasq_agent.planes.bpf.state import DECISIONS, BpfRules
from ipmasq_agent.planes.prefixset import LENGTHS, SHIFT, AddressSet, Step, element, parts
from ipmasq_agent.policy.addresses import Family, Prefix, prefixes_of_range

if TYPE_CHECKING:
    from ipmasq_agent.planes.bpf.maps import PinnedMaps

CAPACITY = 1 << 20
"""How many prefixes a trie may hold; more where a policy has more."""


class PrefixMaps:
    """What the slots say of addresses."""

    def __init__(self, maps: PinnedMaps) -> None:
        self._inner = maps.inner
        self._bitmaps = BitmapMaps(maps)

    def of(self, kind: str, family: Family, slot: int) -> list[tuple[Prefix, bytes]]:
        """Return the prefixes in a trie of a slot, ascending, with their values."""
        with self._inner.open(kind, slot) as trie:
            entries = trie.entries() if trie else ()
            items = lpm.unpack_keys(family, entries)
            return sorted((Prefix(family, first, length), value) for first, length, value in items)

    def elements(self, family: Family, slot: int) -> tuple[int, ...]:
        """Return the trie of decisions as elements; what stands for the rest is left out."""
        with self._inner.open(DECISIONS, slot) as trie:
            entries = trie.entries() if trie else ()
            codes = [
                first << SHIFT | length << 1 | (value[0] == layout.MASQUERADE)
                for first, length, value in lpm.unpack_keys(family, entries)
            ]
        codes.sort()
        return tuple(codes[codes[:1] == [element(0, 0, True)] :])

    def deciding(self, family: Family, slot: int, address: int) -> tuple[int, ...]:
        """Return the element that decides about an address; none where the rest does.

        A look-up with a shorter key finds the longest prefix up to that length, and returns
        its value alone. Of two prefixes around each other with none between them each says
        otherwise than the other (``compile_set``), so the one that decides is as long as
        the shortest key that finds what the whole address does.

        Raises:
            KernelReadError: the bitmap, which decides about IPv4, says otherwise.
        """
        with self._inner.open(DECISIONS, slot) as trie:
            if trie is None:
                return ()
            found = trie.lookup(_key(family, address, family.bits))
            if family is Family.IPV4:
                self._bitmaps.check(slot, address, found)
            length = family.bits
            while length and trie.lookup(_key(family, address, length - 1)) == found:
                length -= 1
        exception = found == bytes([layout.MASQUERADE])
        if found is None or (exception and not length):
            return ()
        host_bits = family.bits - length
        return (element(address >> host_bits << host_bits, length, exception),)

    def agree(self, family: Family, slot: int, elements: Iterable[int]) -> bool:
        """Whether what decides is what the trie of decisions has, which are these elements."""
        return family is not Family.IPV4 or self._bitmaps.holds(slot, elements)

    def fill(self, slot: int, rules: BpfRules) -> None:
        """Fill the slot, which is not in force, with rules."""
        family = rules.family
        codes = rules.keep.elements
        # Before all others the prefix that stands for what none of them says.
        keep = [(0, 0), *((code >> SHIFT, code >> 1 & LENGTHS) for code in codes)]
        verdicts = bytes([layout.MASQUERADE, *map(_verdict, codes)])
        self._place(DECISIONS, slot, family, keep, verdicts)
        if family is Family.IPV4:
            self._bitmaps.fill(slot, codes)
        sources = [(first, length) for _, first, length in rules.sources or ()]
        self._place("sources", slot, family, sources, bytes(len(sources)))
        fixed = [
            (prefix, layout.pack_address(family, address))
            for first, last, address in rules.fixed
            for prefix in prefixes_of_range(family, first, last)
        ]
        prefixes = [(prefix.first, prefix.length) for prefix, _ in fixed]
        self._place("fixed", slot, family, prefixes, b"".join(value for _, value in fixed))

    def _place(
        self,
        kind: str,
        slot: int,
        family: Family,
        prefixes: Sequence[tuple[int, int]],
        values: bytes,
    ) -> None:
        """Make a trie with these prefixes the slot's; none where there are no prefixes."""
        count, size = len(prefixes), layout.ADDRESS_SIZE
        if not count:
            self._inner.displace(kind, slot)
            return
        sizes = lpm.key_size(size), layout.TRIES[kind]
        with create(LPM_TRIE, f"{kind}_{slot}", *sizes, max(CAPACITY, 2 * count)) as trie:
            trie.fill(lpm.pack_keys(family, prefixes, size), values, count)
            self._inner.put(kind, slot, trie)

    def edit(self, slot: int, old: AddressSet, new: AddressSet, steps: Sequence[Step]) -> None:
        """Edit the decisions of a slot, one step after the other."""
        if old.family is not Family.IPV4:
            self._edit_trie(slot, old.family, steps)
            return
        change = rewriting(old.elements, new.elements, (code for code, _ in steps))
        with self._bitmaps.rewritten(slot, change):
            self._edit_trie(slot, old.family, steps)

    def _edit_trie(self, slot: int, family: Family, steps: Iterable[Step]) -> None:
        with self._inner.open(DECISIONS, slot) as trie:
            if trie is None:
                raise KernelReadError(f"the trie of decisions of {family.value} is gone")
            for code, gone in steps:
                first, length, _ = parts(code)
                key = _key(family, first, length)
                if gone:
                    trie.delete(key)
                else:
                    trie.update(key, bytes([_verdict(code)]))

    def empty(self, family: Family, slot: int) -> None:
        """Give back the memory of a slot that is not in force."""
        for kind in layout.INNER:
            self._inner.displace(kind, slot)
        if family is Family.IPV4:
            self._bitmaps.clear(slot)


def _key(family: Family, first: int, length: int) -> bytes:
    return lpm.pack_keys(family, [(first, length)], layout.ADDRESS_SIZE)


def _verdict(code: int) -> int:
    """Return what the trie holds for an element."""
    return layout.MASQUERADE if code & 1 else layout.NON_MASQUERADE
