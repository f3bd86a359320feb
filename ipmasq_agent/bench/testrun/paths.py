"""The ways that packets take through the programs, and how long each takes."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import NamedTuple

from ipmasq_agent.bench.policies import in_cidr, in_gap
from ipmasq_agent.bench.rig import NODE, POD
from ipmasq_agent.bench.testrun import replay
from ipmasq_agent.bench.testrun.frames import (
    ACK,
    SYN,
    TCP,
    UDP,
    UDP_LITE,
    PacketEnds,
    ends_of,
    frame,
    source_port_at,
)
from ipmasq_agent.bench.testrun.replay import GOES_ON, Deck
from ipmasq_agent.bench.testrun.subject import Subject
from ipmasq_agent.errors import BenchError
from ipmasq_agent.planes.bpf.layout import TcHook

NEW_UDP, NEW_TCP = "new flow, UDP", "new flow, TCP SYN"
NEW_FULL = "new flow, the table full"
NEW_KEPT = "new flow, kept by policy"
NEW_OWN = "new flow, the node's own"
NEW_INWARD = "new flow, from outside to a pod"
TO_NODE = "from outside to the node, no reply"
OUT, BACK = "translated flow, outward", "translated flow, reply"
MANY_OUT, MANY_BACK = "one of 4,096 flows, outward", "one of 4,096 flows, reply"
TCP_OUT, TCP_BACK = "translated TCP, outward", "translated TCP, reply"
KEPT, KEPT_BACK = "kept flow, outward", "kept flow, reply"
OWN, OWN_BACK = "the node's own flow, outward", "the node's own flow, reply"
OTHER_DEVICE = "through a device without policy"
DECIDED = "decided and not recorded"
LOOKUP = "look-up, more than among one CIDR"
_DESTINATIONS = 16_384  # of new flows, and to look up
_MANY = 4096  # flows
LEAST_FLOWS = 4 * _MANY
"""For which there has to be room in the table."""
_CIDRS = 100_000  # around whose gaps destinations lie, whatever the policy
_PODS = 64
_OF_A_CIDR = 14  # addresses
_SERVED = 443
# Source ports, and how many after each are nobody's: those of the same packet when it comes again.
_PORTS, _TIMES = range(1024, 65_200, 240), 240
MOST_PACKETS = _TIMES * _DESTINATIONS // 2
"""For a path and to fill the table; as many more are for the program that does nothing."""


class Figure(NamedTuple):
    """What a path costs, and what becomes of its packets.

    Attributes:
        ns: a packet.
        outcomes: how often each was counted, a packet.
    """

    ns: float
    outcomes: dict[str, float]


@dataclass(frozen=True, slots=True)
class PathRound:
    """All paths, once.

    Args:
        subject: the programs.
        cidrs: how many the policy has.
        packets: of each path.
        flows: for which the table has room.
    """

    subject: Subject
    cidrs: int
    packets: int
    flows: int

    def figures(self) -> Iterator[tuple[str, Figure]]:
        """Yield path and figure.

        Raises:
            BenchError: packets do not come out as they must on a path.
        """
        family, node = self.subject.family, _number(NODE[self.subject.family])
        pods, outside, draw = self._pods(), self._outside(), random.Random(self.cidrs)
        kept = [
            in_cidr(family, draw.randrange(self.cidrs)) + draw.randrange(_OF_A_CIDR)
            for _ in range(_DESTINATIONS)
        ]
        sent, sent_by_node = self._sent(), _spread([node], outside)
        for name, ends, protocol, hook, translated in (
            (NEW_UDP, sent, UDP, TcHook.EGRESS, True),
            (NEW_TCP, sent, TCP, TcHook.EGRESS, True),
            (NEW_KEPT, _spread(pods, kept), UDP, TcHook.EGRESS, False),
            (NEW_OWN, sent_by_node, UDP, TcHook.EGRESS, False),
            (NEW_INWARD, _spread(outside, pods), UDP, TcHook.INGRESS, False),
            (TO_NODE, _spread(outside, [node]), UDP, TcHook.INGRESS, False),
        ):
            with self.subject.loaded(self.cidrs), self._new(ends, protocol) as deck:
                yield name, self._played(deck, hook, translated)
        with self.filled() as deck:
            yield NEW_FULL, self._played(deck, TcHook.EGRESS)
        with self.subject.loaded(self.cidrs):
            for names, ends, protocol, translated in (
                ((OUT, BACK), sent[:1], UDP, True),
                ((MANY_OUT, MANY_BACK), sent[1 : 1 + _MANY], UDP, True),
                ((TCP_OUT, TCP_BACK), sent[:1], TCP, True),
                ((KEPT, KEPT_BACK), _spread(pods, kept[:1])[:1], UDP, False),
                ((OWN, OWN_BACK), sent_by_node[:1], UDP, False),
            ):
                yield from self._of_flows(names, ends, protocol, translated)
            with self._deck(sent[:1], UDP) as deck:
                device = self.subject.other_device
                yield OTHER_DEVICE, self._played(deck, TcHook.EGRESS, False, device=device)
            decided = self._decided(kept)
            yield DECIDED, decided
        with self.subject.loaded(1):
            alone = self._decided([in_cidr(family, 0) + n for n in range(_OF_A_CIDR)])
        yield LOOKUP, Figure(decided.ns - alone.ns, {})

    @contextlib.contextmanager
    def filled(self) -> Iterator[Deck]:
        """Have the table full of flows that live; the deck begins more of them."""
        with self.subject.loaded(self.cidrs), self._new(self._sent(), UDP) as deck:
            # Each flow takes a place, or two.
            self._played(deck, TcHook.EGRESS, packets=self.flows * 5 // 4)
            yield deck

    def _sent(self) -> list[PacketEnds]:
        """Return whose packets are translated."""
        return _spread(self._pods(), self._outside())

    def _pods(self) -> list[int]:
        first = _number(POD[self.subject.family])
        return [first + n for n in range(_PODS)]

    def _outside(self) -> list[int]:
        """Return destinations that no policy keeps, in no order."""
        numbers = random.Random(_CIDRS).sample(range(_CIDRS), _DESTINATIONS)
        return [in_gap(self.subject.family, number) for number in numbers]

    def _decided(self, kept: Sequence[int]) -> Figure:
        """Have it decided about packets of which no table holds anything.

        Of UDP-Lite, which is not translated, what the policy keeps passes.
        """
        with self._deck(_spread(self._pods(), kept), UDP_LITE) as deck:
            return self._played(deck, TcHook.EGRESS, translated=False)

    def _of_flows(
        self, names: tuple[str, str], ends: Sequence[PacketEnds], protocol: int, translated: bool
    ) -> Iterator[tuple[str, Figure]]:
        """Begin flows, and yield what their packets cost outward and as replies."""
        with (
            self.subject.program(TcHook.EGRESS) as out,
            self.subject.program(TcHook.INGRESS) as in_,
        ):
            replies = [self._begun(out, in_, one, protocol) for one in ends]
        ways = (TcHook.EGRESS, ends), (TcHook.INGRESS, replies)
        for name, (hook, packets) in zip(names, ways, strict=True):
            with self._deck(packets, protocol, ACK) as deck:
                yield name, self._played(deck, hook, translated)

    def _begun(self, outward: int, inward: int, ends: PacketEnds, protocol: int) -> PacketEnds:
        """Have a flow begin and be answered, and return whose the answers are."""
        family, device = self.subject.family, self.subject.device
        # What it is like on the wire, told by the packet that comes out.
        sent = replay.run(outward, frame(family, protocol, ends, SYN), device)
        answer = ends_of(family, sent.frame).back
        for flags in (SYN | ACK, ACK):
            got = replay.run(inward, frame(family, protocol, answer, flags), device)
            if (got.verdict, ends_of(family, got.frame)) != (GOES_ON, ends.back):
                raise BenchError(f"an answer to {ends} comes back as one to another flow")
            replay.run(outward, frame(family, protocol, ends, ACK), device)
        return answer

    def _new(self, ends: Sequence[PacketEnds], protocol: int) -> Deck:
        """Return packets that begin a flow each, also when the deck begins anew."""
        return self._deck(ends, protocol, SYN, step=1)

    def _deck(
        self, ends: Sequence[PacketEnds], protocol: int, flags: int = 0, step: int = 0
    ) -> Deck:
        family = self.subject.family
        frames = [frame(family, protocol, one, flags) for one in ends]
        return Deck(frames, source_port_at(family), step)

    def _played(
        self,
        deck: Deck,
        hook: TcHook,
        translated: bool | None = None,
        *,
        packets: int = 0,
        device: int = 0,
    ) -> Figure:
        """Play a deck; its last packet must come out as it should, where that is told."""
        subject, count = self.subject, packets or self.packets
        before = subject.counted()
        with subject.program(hook) as program:
            ran = deck.play(program, device or subject.device, count)
        counted = subject.counted() - before
        if translated is not None:
            given, came = (ends_of(subject.family, each) for each in (ran.given, ran.frame))
            touched = (given.source, given.destination) != (came.source, came.destination)
            if ran.verdict != GOES_ON or touched is not translated:
                raise BenchError(f"a packet comes out otherwise than it should: {dict(counted)}")
        return Figure(ran.ns, {name: number / count for name, number in counted.items()})


def _number(address: str) -> int:
    return int(ip_address(address))


def _spread(sources: Sequence[int], destinations: Sequence[int]) -> list[PacketEnds]:
    """Return ends, as many as the longer list has, no two alike."""
    return [
        PacketEnds(
            sources[n % len(sources)],
            _PORTS[n // len(sources) % len(_PORTS)],
            destinations[n % len(destinations)],
            _SERVED,
        )
        for n in range(max(len(sources), len(destinations)))
    ]
