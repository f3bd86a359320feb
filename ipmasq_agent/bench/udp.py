"""UDP through a place: new flows, and packets of one flow, counted where they arrive."""

from __future__ import annotations

import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from ipmasq_agent.bench.place import NODE, POD, Place
from ipmasq_agent.bench.policies import in_gap, spread
from ipmasq_agent.bench.reading import DELIVERED, Reading, pinned
from ipmasq_agent.errors import BenchError
from ipmasq_agent.lab.children import own
from ipmasq_agent.policy.addresses import Family

_FIRST_PORT, _LAST_PORT = 20_000, 29_999  # of packets that are counted
_PARTS = 9
_ONE_FLOW = 1000  # the gap that it goes to
_HEADERS = {Family.IPV4: 14 + 20 + 8 + 4, Family.IPV6: 14 + 40 + 8 + 4}


class Sent(NamedTuple):
    """What the sender tells of a part: packets a second, CPU seconds of the machine."""

    rate: float
    busy: float


class Udp:
    """Sends UDP packets through a place.

    Args:
        place: where.
        masqueraded: what the world must see of them.
        cpus: of the sender, as taskset(1) takes them; "" for any.
    """

    def __init__(self, place: Place, *, masqueraded: bool, cpus: str = "") -> None:
        self._place = place
        self._source = "node" if masqueraded else "pod"
        self._cpus = cpus
        self._next_port = _FIRST_PORT
        place.world.run("nft", "-f", "-", stdin=_counting(place.family))

    def flows(self, count: int, beside: Udp | None = None) -> Iterator[Reading]:
        """Send one packet of each of ``count`` new flows.

        In parts, of which the median counts. Another place takes turns with this one, part
        by part: the ratio to it is hardly moved by what a machine does for some seconds.
        """
        ones = [self, *([beside] if beside else [])]
        parts = parts_of(count, _PARTS)
        own, told, problem = _alternately(ones, parts)
        ratio = cpu_ratio = None
        if beside:
            (other,) = told
            ratio = statistics.median(a.rate / b.rate for a, b in zip(own, other, strict=True))
            if busy_beside := _busy(other):
                cpu_ratio = _busy(own) / busy_beside
        if problem:
            yield Reading("flows", None, problem)
            yield Reading("flows-cpu", None, problem)
            return
        yield Reading("flows", statistics.median(part.rate for part in own), None, ratio)
        yield Reading("flows-cpu", _busy(own) / count, None, cpu_ratio)

    def packets(self, count: int) -> Iterator[Reading]:
        """Send packets of 64 bytes on the wire, all of one flow."""
        family = self._place.family
        destination = family.show(in_gap(family, _ONE_FLOW))
        with self._sending([destination], count, max(64 - _HEADERS[family], 1)) as sending:
            parts = [sending.send(part) for part in parts_of(count, _PARTS)]
        problem = sending.problem
        rate = None if problem else statistics.median(part.rate for part in parts)
        yield Reading("packets", rate, problem)

    def new_flows(self, count: int) -> _Sending:
        """Return what sends packets of ``count`` new flows."""
        family = self._place.family
        return self._sending([family.show(one) for one in spread(family)], count, 1)

    def _sending(self, destinations: list[str], count: int, size: int) -> _Sending:
        ports = -(-count // len(destinations)) if len(destinations) > 1 else 1
        if self._next_port + ports > _LAST_PORT + 1:
            raise BenchError(f"no {count:,} new flows are left in this place")
        order = {
            "destinations": destinations,
            "first": self._next_port,
            "ports": ports,
            "size": size,
        }
        self._next_port += ports  # so that no flow comes twice
        argv = [*own("ipmasq_agent.bench.sender"), json.dumps(order)]
        return _Sending(self._place, pinned(self._cpus, argv), self._source)


class _Sending:
    """The sender at work; once it has left, ``problem`` says what became of its packets."""

    def __init__(self, place: Place, argv: Sequence[str], source: str) -> None:
        self.problem: str | None = None
        self._place = place
        self._argv = argv
        self._source = source
        self._count = 0
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> _Sending:
        self._before = self._arrived()
        with contextlib.ExitStack() as stack:
            self._log = stack.enter_context(tempfile.TemporaryFile())
            self._process = self._place.pod.talk(*self._argv, log=self._log)
            stack.callback(self._place.pod.end, self._process)
            self._answer()  # all is laid out
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stack.close()
        if kind is None:
            self.problem = self._wrong()

    def send(self, count: int) -> Sent:
        """Send so many packets.

        Raises:
            BenchError: they cannot be sent.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the answer that is missing says why
            self._process.stdin.write(b"%d\n" % count)
            self._process.stdin.flush()
        self._count += count
        return Sent(**self._answer())

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            said = self._log.read().decode(errors="replace").strip()
            raise BenchError(f"packets cannot be sent: {said[-500:]}")
        told: dict[str, float] = json.loads(line)
        return told

    def _wrong(self) -> str | None:
        found = self._settled()
        right = found.pop(self._source)
        (wrong,) = found.values()
        if wrong:
            return f"{wrong:,} of {self._count:,} packets had the wrong source"
        if right < DELIVERED * self._count:
            return f"{self._count - right:,} of {self._count:,} packets were lost"
        return None

    def _settled(self) -> dict[str, int]:
        """Return how many have arrived, once all are there or nothing comes any more."""
        last = self._arrived()
        while sum(last.values()) - sum(self._before.values()) < self._count:
            time.sleep(0.05)
            now = self._arrived()
            if now == last:
                break
            last = now
        return {name: count - self._before[name] for name, count in last.items()}

    def _arrived(self) -> dict[str, int]:
        """Return how many packets have come from the pod's address and from the node's."""
        listed = json.loads(self._place.world.run("nft", "-j", "list", "counters"))["nftables"]
        return {c["counter"]["name"]: c["counter"]["packets"] for c in listed if "counter" in c}


def parts_of(count: int, parts: int) -> list[int]:
    """Return the sizes of so many parts of a count, as equal as can be and none empty."""
    ends = [count * n // parts for n in range(parts + 1)]
    return [after - before for before, after in pairwise(ends) if after > before]


def _alternately(
    ones: Sequence[Udp], parts: Sequence[int]
) -> tuple[list[Sent], list[list[Sent]], str | None]:
    """Send each part through each place; return what was told, and what went wrong."""
    told: list[list[Sent]] = [[] for _ in ones]
    with contextlib.ExitStack() as stack:
        sending = [stack.enter_context(one.new_flows(sum(parts))) for one in ones]
        for number, part in enumerate(parts):
            # Whoever is first in one part is last in the next.
            turns = list(zip(sending, told, strict=True))[:: -1 if number % 2 else 1]
            for one, of_one in turns:
                of_one.append(one.send(part))
    problem, *others = [one.problem for one in sending]
    if problem is None and any(others):
        problem = f"in the place beside: {others[0]}"
    return told[0], told[1:], problem


def _busy(parts: Sequence[Sent]) -> float:
    return sum(part.busy for part in parts)


def _counting(family: Family) -> str:
    """Return a table that counts what arrives by its source, before any socket could lose it."""
    word = "ip" if family is Family.IPV4 else "ip6"
    rules = "".join(
        f"{word} saddr {source} udp dport {_FIRST_PORT}-{_LAST_PORT} counter name {name} drop; "
        for name, source in (("pod", POD[family]), ("node", NODE[family]))
    )
    return (
        "table inet seen { counter pod {}; counter node {}; "
        f"chain c {{ type filter hook prerouting priority raw; {rules}}}; }}\n"
    )
