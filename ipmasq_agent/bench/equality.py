"""Whether a mode decides as the document says, read from packets before any figure counts."""

from __future__ import annotations

import contextlib
import select
import socket
import time

from ipmasq_agent.bench.policies import BlockPolicy, samples
from ipmasq_agent.bench.results import Equality, Mode
from ipmasq_agent.bench.rig import NODE, POD, Rig
from ipmasq_agent.policy.addresses import Family

_PORT = 9000
_PATIENCE = 2.0
_TRIES = 3


def check(rig: Rig, mode: Mode, policy: BlockPolicy) -> Equality:
    """Send to destinations on both sides of the policy by UDP and TCP.

    Args:
        rig: in which the mode is in force.
        mode: without a backend, every source must be the pod's.
        policy: what its document says is told here from its text alone.
    """
    family = rig.family
    destinations = samples(family, policy.cidrs)
    wrong = []
    for protocol, seen in (("UDP", _by_udp), ("TCP", _by_tcp)):
        found = seen(rig, destinations)
        for to in destinations:
            keeps = mode.backend is None or policy.keeps(to)
            expected = (POD if keeps else NODE)[family]
            if found.get(to) != expected:
                told = found.get(to) or "nothing"
                wrong.append(f"{family.show(to)} by {protocol}: expected {expected}, seen {told}")
    return Equality(mode.name, policy.cidrs, len(destinations), tuple(wrong))


def _by_udp(rig: Rig, destinations: list[int]) -> dict[int, str]:
    """Return destination → the source of a packet that arrived for it."""
    found: dict[int, str] = {}
    with (
        rig.pod.socket(rig.family, socket.SOCK_DGRAM) as out,
        # A raw socket gets a copy of what arrives for any address and port.
        rig.world.socket(rig.family, socket.SOCK_RAW, socket.IPPROTO_UDP) as world,
    ):
        for _ in range(_TRIES):
            for number, to in enumerate(destinations):
                if to not in found:
                    out.sendto(b"number %d" % number, (rig.family.show(to), _PORT))
            deadline = time.monotonic() + _PATIENCE / _TRIES
            while len(found) < len(destinations) and (left := deadline - time.monotonic()) > 0:
                if select.select([world], [], [], left)[0]:
                    data, address = world.recvfrom(2048)
                    head, _, number_text = data.rpartition(b"number ")
                    if head:
                        found[destinations[int(number_text)]] = address[0]
    return found


def _by_tcp(rig: Rig, destinations: list[int]) -> dict[int, str]:
    """Return destination → the source of a connection to it."""
    found: dict[int, str] = {}
    with rig.world.socket(rig.family, socket.SOCK_STREAM) as server:
        server.bind(("0.0.0.0" if rig.family is Family.IPV4 else "::", _PORT))
        server.listen(len(destinations))
        server.settimeout(_PATIENCE)
        for to in destinations:
            with rig.pod.socket(rig.family, socket.SOCK_STREAM) as client:
                client.settimeout(_PATIENCE)
                with contextlib.suppress(TimeoutError, ConnectionError):
                    client.connect((rig.family.show(to), _PORT))
                    accepted, address = server.accept()
                    accepted.close()
                    found[to] = address[0]
    return found
