"""What pods said to the world, and with which address and port the world heard it."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from ipmasq_agent.agent.intent import Intent
from ipmasq_agent.agent.reconcile import clean, reconcile
from ipmasq_agent.config.document import parse_document
from ipmasq_agent.host.devices import read_links
from ipmasq_agent.planes import registry
from ipmasq_agent.planes.plane import AnyPlane
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.facts import LINKS, NO_FACTS
from ipmasq_agent.policy.flows import Flow
from tests.kernel.attacks.site import PLANS, Site, flags
from tests.kernel.attacks.talk import PORT, Outcome, Server, ask, askers
from tests.kernel.attacks.test_crowds import named
from tests.kernel.pins import placement
from tests.waiting import DEADLINE

PODS = 4
SPLIT = "nonMasqueradeCIDRs: [192.0.2.3/32, '2001:db8::3/128']"
"""What goes to the second server keeps its source."""
_KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
_ECHO = {Family.IPV4: (1, 8), Family.IPV6: (58, 128)}  # protocol, type of a question


class Said(NamedTuple):
    """A connection: who said it to whom, and as whom the world heard it; addresses with ports."""

    protocol: str
    source: tuple[str, int]
    destination: tuple[str, int]
    heard: tuple[str, int]


def as_said(flow: Flow) -> Said:
    """Return what a test compares of a flow."""
    ends = flow.source, flow.destination, flow.left_as
    shown = [(flow.family.show(end.address), end.port) for end in ends]
    return Said(flow.protocol_name, *shown)


@contextlib.contextmanager
def in_force(where: Site, name: str, text: str = SPLIT) -> Iterator[AnyPlane]:
    """Have a data plane decide by a document on the node; the caller is there meanwhile."""
    with where.node.entered():
        plane = registry.row(name).make(placement())
        try:
            config = parse_document(text.encode(), "cm", flags()).config
            outcomes = reconcile(plane, Intent(config, NO_FACTS.with_(LINKS, read_links())))
            errors = [str(one.error) for one in outcomes.values() if one.error]
            assert not errors, errors
            yield plane
        finally:
            clean(plane, Family)
            plane.close()


@contextlib.contextmanager
def talking(
    where: Site, family: Family, each: int, echoes: int | None = None
) -> Iterator[set[Said]]:
    """Have pods ask two servers by TCP, UDP and ICMP, each so often; yield what was said.

    By ICMP, which needs no socket that stays open, ``echoes`` times, if given.

    The connections stay open meanwhile.
    """
    plan = PLANS[family]
    where.pod.run(["sysctl", "-qw", "net.ipv4.ping_group_range=0 65535"])
    there = [plan.server(0), plan.server(1)]
    said: set[Said] = set()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Server(where.world, there))
        for protocol, kind in _KINDS.items():
            pods = [plan.pod(n) for n in range(PODS)]
            whom = named(protocol, 2 * each, pods, there)
            them = stack.enter_context(askers(where.pod, plan, kind, whom))
            assert ask(them) == Outcome()
            for one in them:
                ((host, port, number),) = server.seen[one.name]
                source = one.socket.getsockname()[:2]
                said.add(Said(protocol, source, (there[number], PORT), (host, port)))
        said.update(_echoes(where, family, there, each if echoes is None else echoes))
        yield said


def _echoes(where: Site, family: Family, there: Sequence[str], each: int) -> Iterable[Said]:
    """Ask each server by ICMP, with identifiers that two pods have alike."""
    plan, (protocol, question) = PLANS[family], _ECHO[family]
    name = "icmp" if family is Family.IPV4 else "icmpv6"
    begins = 20 if family is Family.IPV4 else 0  # a raw socket of IPv4 gives the IP header too
    with where.world.entered():
        ear = socket.socket(plan.kind, socket.SOCK_RAW, protocol)
    with ear:
        ear.settimeout(DEADLINE)
        for number in range(2 * each):
            pod, server = plan.pod(number % 2), there[number // 2 % 2]
            identifier = 1000 + number // 4
            with where.pod.entered():
                asking = socket.socket(plan.kind, socket.SOCK_DGRAM, protocol)
            with asking:
                asking.settimeout(DEADLINE)
                asking.bind((pod, identifier))
                mark = f"question {number}".encode()
                asking.sendto(struct.pack("!BBHHH", question, 0, 0, 0, 1) + mark, (server, 0))
                while True:
                    data, sender = ear.recvfrom(2048)
                    kind, _, _, heard, _ = struct.unpack_from("!BBHHH", data, begins)
                    if kind == question and data[begins + 8 :] == mark:
                        break
                asking.recv(2048)
            host = str(ipaddress.ip_address(sender[0]))
            yield Said(name, (pod, identifier), (server, 0), (host, heard))
