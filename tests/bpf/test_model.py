"""Random packets of pods and of the node beside a model that knows one thing: whose is what.

A flow that lives keeps how it leaves; no two that live have the same replies; a reply goes to
its owner; what is refused is refused because every port is taken.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import pytest
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6

from tests.bpf import layout
from tests.bpf.datapath import Datapath, now
from tests.bpf.packets import LINK, Addresses, flow, frame

GRACE = 2
FIRST_PORT, LAST_PORT = 40000, 40005
NUMBER = {"tcp": 6, "udp": 17}

Ends = tuple[str, int]
Replies = tuple[str, Ends, Ends]  # protocol, from where, to which address and port of the node


@dataclass
class Model:
    """What lives: (protocol, owner, to where) → as what it leaves."""

    leaves: dict[Replies, Ends] = field(default_factory=dict)

    def owners(self) -> dict[Replies, Ends]:
        """Each kind of replies, and whose they are; two with the same would be one here."""
        return {
            (protocol, to, as_what): owner for (protocol, to, owner), as_what in self.leaves.items()
        }


def policy(masq: Datapath, family: Addresses, generation: int, *, keep: bool) -> None:
    entries = {family.everything: layout.MASQUERADE}
    if keep:
        entries[family.kept_prefix] = layout.NON_MASQUERADE
    masq.policy(
        family.number,
        entries,
        generation=generation,
        flags=layout.MANAGED | layout.RANDOM_FULLY,
        ports=[(FIRST_PORT, LAST_PORT)],
    )


@pytest.mark.parametrize("seed", range(3))
def test_who_gets_what(masq: Datapath, family: Addresses, seed: int) -> None:
    chance = random.Random(seed)
    masq.own(family.number, family.node)
    keeping = True
    policy(masq, family, 0, keep=keeping)
    model = Model()
    sources = [family.pod, family.other_pod, family.node]
    ports = [FIRST_PORT + n for n in range(4)]
    remotes = [(family.outside, 80), (family.kept, 80), (family.outside, 81)]
    refused = 0
    for step in range(1000):
        if step % 50 == 0:
            _prolong(masq, family)
        match chance.choices(("out", "back", "end", "flip", "sweep"), (60, 30, 6, 2, 2))[0]:
            case "out":
                refused += _send(masq, family, model, chance, sources, ports, remotes)
            case "back" if model.leaves:
                _reply(masq, family, model, chance)
            case "end" if model.leaves:
                _end(masq, family, model, chance)
            case "flip":
                keeping = not keeping
                policy(masq, family, step % 2, keep=keeping)
            case "sweep":
                masq.sweep()
        assert len(model.owners()) == len(model.leaves)
    assert refused > 10  # else ports were never short
    counted = masq.counted(family.number)
    assert counted["OUT_DROPPED_PORTS"] == refused
    assert "OUT_DROPPED_RACE" not in counted


def _send(
    masq: Datapath,
    family: Addresses,
    model: Model,
    chance: random.Random,
    sources: list[str],
    ports: list[int],
    remotes: list[Ends],
) -> bool:
    """Send one packet; true where it was refused."""
    protocol = chance.choice(("tcp", "udp"))
    owner = chance.choice(sources), chance.choice(ports)
    remote = chance.choice(remotes)
    known = model.leaves.get((protocol, remote, owner))
    flags = "A" if known else "S"
    sent = masq.out(flow(protocol, *owner, *remote, flags))
    of_others = {
        as_what
        for (of, to, whose), as_what in model.leaves.items()
        if (of, to) == (protocol, remote) and whose != owner
    }
    if sent is None:
        assert known is None
        taken = {port for address, port in of_others if address == family.node}
        assert taken >= set(range(FIRST_PORT, LAST_PORT + 1)), (protocol, owner, remote)
        return True
    packet = (IP if family.v4 else IPv6)(sent[LINK:])
    as_what = packet.src, packet.payload.sport
    if known:
        assert as_what == known
    else:
        assert as_what[0] in (family.node, owner[0])
        assert as_what not in of_others
        assert as_what == owner or as_what[0] == family.node
        model.leaves[protocol, remote, owner] = as_what
    return False


def _reply(masq: Datapath, family: Addresses, model: Model, chance: random.Random) -> None:
    (protocol, remote, owner), as_what = chance.choice(list(model.leaves.items()))
    back = masq.back(flow(protocol, *remote, *as_what, "SA"))
    assert back == frame(flow(protocol, *remote, *owner, "SA"))


def _prolong(masq: Datapath, family: Addresses) -> None:
    """Let what lives not expire by itself, however slow the machine is."""
    for key, held in masq.alive(family.number).items():
        masq.put_flow(family.number, key, replace(held, expires=now() + 1000))


def _end(masq: Datapath, family: Addresses, model: Model, chance: random.Random) -> None:
    """Let one flow be over, so long that nobody remembers."""
    protocol, remote, owner = chance.choice(list(model.leaves))
    del model.leaves[protocol, remote, owner]
    for key, held in masq.flows(family.number).items():
        if (key.protocol, (key.source, key.sport)) == (NUMBER[protocol], owner) and (
            key.destination,
            key.dport,
        ) == remote:
            masq.put_flow(family.number, key, replace(held, expires=now() - GRACE))
