"""The bitmap of IPv4's decisions as the kernel holds it: filled, edited, and read back."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ipmasq_agent.bpf.maps import HASH, create
from ipmasq_agent.bpf.objects import closing, get_pinned, run_program
from ipmasq_agent.errors import KernelReadError
from ipmasq_agent.planes.bpf import bitmap, layout
from ipmasq_agent.planes.bpf.bitmap import ASK_TRIE, BLOCK_SIZE, PARTS, Rewriting
from ipmasq_agent.planes.bpf.layout import DETAILS, NUMBER, OUTLINE, WRITE
from ipmasq_agent.policy.addresses import Family

if TYPE_CHECKING:
    from ipmasq_agent.planes.bpf.maps import PinnedMaps

_SPARE = 1024  # blocks that editing may add; then a part is left to the trie


class BitmapMaps:
    """The bitmaps of the slots of IPv4."""

    def __init__(self, maps: PinnedMaps) -> None:
        self._maps = maps
        self._inner = maps.inner

    def fill(self, slot: int, elements: Iterable[int]) -> None:
        """Fill that of a slot that is not in force."""
        made = bitmap.bitmap(elements)
        if made.details:
            self._put_details(slot, made.details)
        else:
            self._inner.displace(DETAILS, slot)
        self._fill_outline(slot, made.outline)

    def clear(self, slot: int) -> None:
        """Give back what a slot that is not in force has; the trie is asked there."""
        self._fill_outline(slot, bytes(PARTS * BLOCK_SIZE))
        self._inner.displace(DETAILS, slot)

    @contextmanager
    def rewritten(self, slot: int, change: Rewriting) -> Iterator[None]:
        """Edit that of a slot in force, and the trie in the body.

        The trie is asked meanwhile, and also afterwards about what was not as it should have
        been, or has no room. Blocks are written before what leads to them, and none is ever
        removed: a program that runs may be in it.
        """
        outline = self._maps[OUTLINE]
        keys = {number: _key(slot, number >> 8) for number in change.before}
        blocks = {key: bytearray(outline.lookup(key) or bytes(BLOCK_SIZE)) for key in keys.values()}

        def put(codes: Mapping[int, int]) -> None:
            for number, code in codes.items():
                bitmap.paint(blocks[keys[number]], number & 255, 1, code)
            for key, block in blocks.items():
                outline.update(key, bytes(block))

        expected = {
            number: change.after[number]
            for number, code in change.before.items()
            if code == bitmap.code_of_part(blocks[keys[number]], number & 255)
        }
        put(dict.fromkeys(change.before, ASK_TRIE))
        yield
        if self._write(slot, change.blocks):
            put(expected)

    def holds(self, slot: int, elements: Iterable[int]) -> bool:
        """Whether that of a slot is what it should be; not where programs know of none yet."""
        if self._maps.find(OUTLINE) is None:
            return False
        wanted = bitmap.bitmap(elements)
        first = slot * PARTS
        held = (value for _, value in self._maps[OUTLINE].entries())
        if b"".join(itertools.islice(held, first, first + PARTS)) != wanted.outline:
            return False
        with self._inner.open(DETAILS, slot) as details:
            blocks = dict(details.entries()) if details else {}
        return all(blocks.get(NUMBER.pack(n), b"") == codes for n, codes in wanted.details.items())

    def check(self, slot: int, address: int, verdict: bytes | None) -> None:
        """Make sure that an address is decided as the trie of a slot says.

        Raises:
            KernelReadError: it is not.
        """
        if self._maps.find(OUTLINE) is None:
            return
        with self._inner.open(DETAILS, slot) as details:

            def block(number: int) -> bytes | None:
                if number < 2 * PARTS:
                    return self._maps[OUTLINE].lookup(_key(slot, number - PARTS))
                return details.lookup(NUMBER.pack(number)) if details else None

            code = bitmap.code_of(address, block)
        if code != ASK_TRIE and bytes([code]) != verdict:
            said = "are masqueraded" if code == layout.MASQUERADE else "keep their source"
            raise KernelReadError(
                f"packets to {Family.IPV4.show(address)} {said} by the bitmap of decisions, "
                "which decides, and would not by the trie",
                remedy="somebody else has written there; `ipmasq-agent apply` writes both anew, "
                "as does the agent's next resync",
            )

    def _fill_outline(self, slot: int, codes: bytes | bytearray) -> None:
        keys = b"".join(_key(slot, number) for number in range(PARTS))
        self._maps[OUTLINE].fill(keys, bytes(codes), PARTS)

    def _put_details(self, slot: int, blocks: Mapping[int, bytes | bytearray]) -> None:
        count = len(blocks)
        with create(
            HASH, f"{DETAILS}_{slot}", NUMBER.size, BLOCK_SIZE, count + count // 4 + _SPARE
        ) as made:
            made.fill(b"".join(map(NUMBER.pack, blocks)), b"".join(blocks.values()), count)
            self._inner.put(DETAILS, slot, made)

    def _write(self, slot: int, blocks: Mapping[int, bytes | bytearray]) -> bool:
        """Write details of a slot in force; false where not all have room."""
        if not blocks:
            return True
        with self._inner.open(DETAILS, slot) as details:
            if details is None:
                self._put_details(slot, blocks)
                return True
        program = get_pinned(self._maps.pins / WRITE)
        if program is None:
            return False
        with closing(program):
            packets = (layout.pack_block(slot, *block) for block in blocks.items())
            return not any(run_program(program, packet) for packet in packets)


def _key(slot: int, number: int) -> bytes:
    return NUMBER.pack(slot * PARTS + number)
