"""Flows as they begin, which the programs write into a ring of whoever observes.

As long as nobody does there is no ring: a new flow then costs four looks at an array.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

from ipmasq_agent.bpf.maps import open_pinned
from ipmasq_agent.bpf.ring import Ring
from ipmasq_agent.errors import HostError
from ipmasq_agent.host.seat import Seat
from ipmasq_agent.planes.bpf import layout
from ipmasq_agent.planes.bpf.layout import NUMBER
from ipmasq_agent.planes.bpf.maps import PinnedMaps
from ipmasq_agent.planes.plane import Beginnings
from ipmasq_agent.policy.flows import Flow

_SIZE = 2 << 20  # 26,000 flows: a second of so many
_AT_ONCE = 1024
# Nobody wakes us: to be woken up for each flow would cost more than all else.
_PAUSE = 0.05


class BegunFlows(Beginnings):
    """A place among those who observe, until it is closed.

    Raises:
        HostError: all places are taken.
    """

    def __init__(self, maps: PinnedMaps) -> None:
        self._maps, pins = maps, maps.pins
        self._observers, self._untold = maps[layout.OBSERVERS], maps[layout.UNTOLD]
        self._pin = pins / layout.OBSERVERS
        self._seat, self._key = _place(pins)
        self.stop()  # for whoever had the place and was killed
        self._missed_before = self._all_missed()
        self._ring = Ring("begun", _SIZE, layout.BEGUN_SIZE)
        self._observers.update(self._key, NUMBER.pack(self._ring.fd))
        self._since_boot = time.time() - time.monotonic()
        self._looked = time.monotonic()

    def read(self, seconds: float) -> list[tuple[float, Flow]]:
        """Return flows that began; see ``Beginnings``."""
        now = time.monotonic()
        if now - self._looked > 1:
            self._look(now)  # before what there is to read is taken
        until = now + seconds
        while True:
            records = self._ring.read(_AT_ONCE)
            now = time.monotonic()
            if records or now >= until:
                break
            time.sleep(min(_PAUSE, until - now))
        since = self._since_boot
        return [(since + ns / 1e9, flow) for ns, flow in layout.unpack_begun(records)]

    def _look(self, now: float) -> None:
        """Follow the clock, and see whether the programs have other maps by now."""
        self._looked, self._since_boot = now, time.time() - time.monotonic()
        there = open_pinned(self._pin)
        if there is not None:
            with there:
                if there.number == self._observers.number:
                    return
        raise HostError("the maps of the eBPF programs are not those that were observed")

    @property
    def missed(self) -> int:
        """How many flows found no room in the ring."""
        return self._all_missed() - self._missed_before

    def _all_missed(self) -> int:
        return layout.summed(self._untold.per_cpu(self._key))

    def stop(self) -> None:
        """Listen to no more; see ``Beginnings``."""
        self._observers.delete(self._key)
        self._looked = math.inf  # what is left to read may be of maps that have gone

    def close(self) -> None:
        """Leave the place."""
        self.stop()
        self._ring.close()
        self._maps.__exit__()
        self._seat.close()


def _place(pins: Path) -> tuple[Seat, bytes]:
    """Return a place that nobody living has, and its key."""
    for number in range(layout.MOST_OBSERVERS):
        seat = Seat([f"observer {number} of {pins}"])
        if not seat.take():
            return seat, NUMBER.pack(number)
    raise HostError(
        f"{layout.MOST_OBSERVERS} others observe the flows of the eBPF programs already",
        remedy="end one of them",
    )
