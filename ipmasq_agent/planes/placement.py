"""What names our state has in a kernel, and where it stands there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

DEFAULT_CHAIN = "IP-MASQ"
DEFAULT_PINS = "/sys/fs/bpf/ipmasq-agent"


@dataclass(frozen=True, slots=True)
class Placement:
    """Where our rules live.

    Attributes:
        chain: the chain's name; other data planes derive their names from it.
        jump_first: the jump to it comes before all others.
        pins: where the maps and programs of the eBPF data plane are pinned.
        flows: how many flows its table holds where it is made; None for what suits the
            machine.
        adopt: take over, or remove, a chain of that name that does not look like ours.
    """

    chain: str = DEFAULT_CHAIN
    jump_first: bool = False
    pins: str = DEFAULT_PINS
    flows: int | None = None
    adopt: bool = False


LEGACY = "iptables-legacy"
"""What precedes the name of a table that is not one of nf_tables."""


class OurBase(NamedTuple):
    """Where packets come to the rules of a data plane at the postrouting hook.

    Attributes:
        table: as ``ip nat``, or ``iptables-legacy nat``.
        chain: the base chain, which packets enter.
        own: the chain of ours that its rules lead to, or itself.
    """

    table: str
    chain: str
    own: str
