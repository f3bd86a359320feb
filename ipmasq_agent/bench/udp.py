"""UDP through a rig, counted where it arrives: the right source, and nothing lost."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from ipmasq_agent.bench.machine import pinned
from ipmasq_agent.bench.namespace import written
from ipmasq_agent.bench.policies import spread
from ipmasq_agent.bench.results import DELIVERED
from ipmasq_agent.bench.rig import NODE, POD, Rig
from ipmasq_agent.errors import BenchError, LabError
from ipmasq_agent.lab.children import own
from ipmasq_agent.lab.talk import Talk
from ipmasq_agent.policy.addresses import Family

_FIRST_PORT, _LAST_PORT = 20_000, 29_999  # of packets that are counted


class Sent(NamedTuple):
    """What the sender tells of a part: packets a second, CPU seconds of the machine."""

    rate: float
    busy: float


class Udp:
    """Sends UDP packets through a rig.

    Args:
        rig: where.
        masqueraded: what the world must see of them.
        cpus: of the sender, as taskset(1) takes them; "" for any.
        whose: stands before what goes wrong, where this is not the rig that is measured.
    """

    def __init__(self, rig: Rig, *, masqueraded: bool, cpus: str = "", whose: str = "") -> None:
        self.family = rig.family
        self._rig = rig
        self._source = "node" if masqueraded else "pod"
        self._cpus = cpus
        self._whose = whose
        self._next_port = _FIRST_PORT
        rig.world.run("nft", "-f", "-", stdin=_counting(rig.family))

    def new_flows(self, count: int) -> Sending:
        """Return what sends packets of ``count`` new flows."""
        return self.sending(spread(self.family), count, 1)

    def sending(self, destinations: Sequence[int], count: int, size: int) -> Sending:
        """Return what sends packets, to one destination of one flow, to several of new ones.

        Args:
            destinations: addresses.
            count: of packets.
            size: bytes of payload.
        """
        ports = -(-count // len(destinations)) if len(destinations) > 1 else 1
        if self._next_port + ports > _LAST_PORT + 1:
            raise BenchError(f"no {count:,} new flows are left in this rig")
        order = {
            "destinations": [self.family.show(one) for one in destinations],
            "first": self._next_port,
            "ports": ports,
            "size": size,
        }
        self._next_port += ports  # so that no flow comes twice
        argv = [*own("ipmasq_agent.bench.sender"), json.dumps(order)]
        return Sending(self._rig, pinned(self._cpus, argv), self._source, self._whose)


class Sending:
    """The sender at work; once it has left, ``problem`` says what became of its packets."""

    def __init__(self, rig: Rig, argv: Sequence[str], source: str, whose: str) -> None:
        self.problem: str | None = None
        self._rig = rig
        self._argv = argv
        self._source = source
        self._whose = whose
        self._count = 0
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Sending:
        self._before = self._arrived()
        with contextlib.ExitStack() as stack:
            self._log = stack.enter_context(tempfile.TemporaryFile())
            process = self._rig.pod.talk(*self._argv, log=self._log)
            stack.callback(self._rig.pod.end, process)
            self._talk = Talk(process)
            self._answer()  # all is laid out
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stack.close()
        if kind is None and (wrong := self._wrong()):
            self.problem = self._whose + wrong

    def send(self, count: int) -> Sent:
        """Send so many packets.

        Raises:
            BenchError: they cannot be sent.
        """
        with contextlib.suppress(LabError):  # the answer that is missing says why
            self._talk.tell(count=count)
        self._count += count
        return Sent(**self._answer())

    def _answer(self) -> dict[str, float]:
        try:
            return self._talk.answer()
        except LabError as cause:
            said = written(self._log, 500)
            raise BenchError(f"{self._whose}packets cannot be sent: {said}") from cause

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
        listed = json.loads(self._rig.world.run("nft", "-j", "list", "counters"))["nftables"]
        return {c["counter"]["name"]: c["counter"]["packets"] for c in listed if "counter" in c}


def parts_of(count: int, parts: int = 9) -> list[int]:
    """Return the sizes of so many parts of a count, as equal as can be and none empty."""
    ends = [count * n // parts for n in range(parts + 1)]
    return [after - before for before, after in pairwise(ends) if after > before]


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
