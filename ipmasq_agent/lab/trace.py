"""Which of the captured packets are a probe's, and so which addresses it had on its way. Pure.

A probe is known again behind NAT by what no NAT changes: its token, or TCP's numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from ipmasq_agent.lab.packets import Captured, Packet

Way = tuple[Captured, ...]
"""One packet, at one device after the other."""


@dataclass(frozen=True, slots=True)
class Trace:
    """The first packet of a probe, and the first that answers it, wherever they were captured.

    Attributes:
        request: empty where it was captured nowhere.
        reply: likewise.
        lost: hosts whose capture lost packets meanwhile, so that more may have been there.
    """

    request: Way
    reply: Way
    lost: frozenset[str] = frozenset()

    def arrived(self, host: str) -> str | None:
        """Return the source with which the request came in at a host; None if it did not."""
        return next((c.packet.source for c in self.request if c.host == host and not c.out), None)


@dataclass(frozen=True, slots=True)
class Stop:
    """A packet in a host: as it came in and as it went out, where it did either."""

    host: str
    came: Captured | None
    went: Captured | None


def stops(way: Way) -> list[Stop]:
    """Return the hosts that a packet passed: the first device it came by, the last it left by."""
    found = []
    for host, group in groupby(way, key=lambda captured: captured.host):
        here = list(group)
        came = next((captured for captured in here if not captured.out), None)
        went = next((captured for captured in reversed(here) if captured.out), None)
        found.append(Stop(host, came, went))
    return found


def follow(
    captured: Iterable[Captured],
    *,
    protocol: str,
    destination: str,
    token: bytes,
    by_opening: bool,
    lost: frozenset[str] = frozenset(),
) -> Trace:
    """Return the way of a probe through the hosts.

    Args:
        captured: while the probe was on its way, and no other that opens a TCP connection to
            the same place.
        protocol: as ``Packet`` has it.
        destination: where the probe was sent.
        token: what it carries.
        by_opening: its first packet has no token, as it opens a TCP connection.
        lost: hosts whose capture lost packets.
    """
    own = sorted((c for c in captured if c.packet.protocol == protocol), key=lambda c: c.time)

    def asks(packet: Packet) -> bool:
        there = packet.destination == destination and packet.asks
        return there and (packet.opens if by_opening else token in packet.payload)

    first = next((c.packet for c in own if asks(c.packet)), None)
    if first is None:
        return Trace((), (), lost)

    def answers(packet: Packet) -> bool:
        if packet.destination == destination:
            return False
        if protocol == "tcp":
            return packet.acknowledged == first.answered_by
        return token in packet.payload

    back = next((c.packet for c in own if answers(c.packet)), None)
    reply = _way(own, lambda packet: answers(packet) and _same(packet, back)) if back else ()
    return Trace(_way(own, lambda packet: asks(packet) and _same(packet, first)), reply, lost)


def _same(packet: Packet, first: Packet | None) -> bool:
    """Whether a packet is the first one at another device."""
    return first is not None and packet[5:] == first[5:]


def _way(captured: Sequence[Captured], wanted: Callable[[Packet], bool]) -> Way:
    """Return a packet at each device, and not what was sent of it a second time."""
    places: dict[tuple[str, str, bool], Captured] = {}
    for one in captured:
        if wanted(one.packet):
            places.setdefault((one.host, one.device, one.out), one)
    return tuple(places.values())
