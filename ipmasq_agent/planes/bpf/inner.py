"""Maps within maps of maps: one for each slot, made anew for each policy."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ipmasq_agent.bpf.maps import BpfMap, open_pinned
from ipmasq_agent.bpf.objects import open_number, pin
from ipmasq_agent.bpf.syscall import BpfCommand, asked_to
from ipmasq_agent.planes.bpf.layout import GENERATIONS, INNER, NUMBER, slot
from ipmasq_agent.planes.bpf.state import DECISIONS
from ipmasq_agent.policy.addresses import Family

if TYPE_CHECKING:
    from ipmasq_agent.planes.bpf.maps import PinnedMaps


class InnerMaps:
    """The maps of the slots, by kind: the name of the map of maps.

    Each is pinned by itself too: a map of maps gives numbers, and to open a map by its number
    is for CAP_SYS_ADMIN alone.
    """

    def __init__(self, outer: PinnedMaps) -> None:
        self._pins, self._outer = outer.pins, outer

    @contextmanager
    def open(self, kind: str, slot: int) -> Iterator[BpfMap | None]:
        """Open that of a slot; None where there is none, or it cannot be opened."""
        number = self._number(kind, slot)
        with ExitStack() as stack:
            found = open_pinned(self._pin(kind, slot)) if number else None
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

    def lost(self, slot: int) -> bool:
        """Whether a slot that is in force has no decisions, or one that we cannot open."""
        for kind in INNER:
            with self.open(kind, slot) as held:
                if held is None and (kind == DECISIONS or self._number(kind, slot)):
                    return True
        return False

    def unpinned(self, family: Family) -> list[tuple[str, int]]:
        """Return which of a family, in force or not, have no pin, by kind and slot."""
        with asked_to(f"list {self._pins}"):
            there = set(os.listdir(self._pins)) if self._pins.exists() else set()
        return [
            (kind, number)
            for kind in INNER
            for number in (slot(family, n) for n in range(GENERATIONS))
            if self._pin(kind, number).name not in there and self._number(kind, number)
        ]

    def pin_again(self, family: Family, in_force: int) -> None:
        """Pin those again that have lost their pins.

        Those that we may not open any more are given up where they are not in force.
        """
        for kind, number in self.unpinned(family):
            with self.open(kind, number) as held:
                if held is not None:
                    pin(held.fd, self._pin(kind, number))
            if held is None and number != in_force:
                self.displace(kind, number)

    def put(self, kind: str, slot: int, made: BpfMap) -> None:
        """Make a map that of a slot."""
        path = self._pin(kind, slot)
        path.unlink(missing_ok=True)
        pin(made.fd, path)
        self._outer[kind].update(NUMBER.pack(slot), NUMBER.pack(made.fd))

    def displace(self, kind: str, slot: int) -> None:
        """Give back that of a slot, once no program runs that may ask it."""
        if self._number(kind, slot):  # to delete is to wait for programs that run
            self._outer[kind].delete(NUMBER.pack(slot))
        self._pin(kind, slot).unlink(missing_ok=True)

    def _number(self, kind: str, slot: int) -> int:
        """Return the number of the map that programs ask; 0 for none."""
        outer = self._outer.find(kind)
        value = outer.lookup(NUMBER.pack(slot)) if outer else None
        return NUMBER.unpack(value)[0] if value else 0

    def _pin(self, kind: str, slot: int) -> Path:
        return self._pins / f"{kind}_{slot}"
