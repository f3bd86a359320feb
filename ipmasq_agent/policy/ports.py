"""Source ports of translated connections: what shares them, and among how many one is chosen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import nlargest
from typing import NamedTuple

from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.flows import End, protocol_name
from ipmasq_agent.policy.model import PortRange


class PortPool(NamedTuple):
    """Ports of which a connection may get any."""

    ranges: tuple[PortRange, ...]

    @property
    def size(self) -> int:
        """How many there are."""
        return sum(ports.size for ports in self.ranges)

    def __str__(self) -> str:
        return ",".join(map(str, self.ranges))


MOST = 256
"""Of how many at the most it is told what is in use of them."""
IDENTIFIERS = PortPool((PortRange(0, 65535),))
"""Of ICMP."""
_ANY = PortPool((PortRange(1024, 65535),))
# What connection tracking chooses where no range is given: a port of the same kind as the
# connection's own (nf_nat_l4proto_unique_tuple, net/netfilter/nf_nat_core.c).
_LOWEST, _LOW = PortPool((PortRange(1, 511),)), PortPool((PortRange(600, 1023),))


@dataclass(frozen=True, slots=True)
class PortPools:
    """The pools of a node.

    Attributes:
        of_port: for each port the position of the pool that it is of.
    """

    pools: tuple[PortPool, ...]
    of_port: bytes


def kernel_pools(ranges: Sequence[PortRange]) -> PortPools:
    """Return the pools from which connection tracking chooses.

    Args:
        ranges: those of the policy. Each is a pool: which one a connection gets is drawn by lot
            before it is known whether a port of it is free. Others' rules may translate without.
    """
    of_port = bytearray([0] * 512 + [1] * 512 + [2] * (65536 - 1024))
    pools = [_LOWEST, _LOW, _ANY]
    for one in ranges:
        of_port[one.first : one.last + 1] = bytes([len(pools)]) * one.size
        pools.append(PortPool((one,)))
    return PortPools(tuple(pools), bytes(of_port))


def own_pool(ranges: Sequence[PortRange]) -> PortPool:
    """Return the ports from which our eBPF programs choose (``ports_of``, flows.h)."""
    return PortPool(tuple(ranges)) if ranges else _ANY


class PortUse(NamedTuple):
    """What translated connections have in common none two of which may have the same port."""

    family: Family
    protocol: int
    address: int
    reached: End
    pool: PortPool

    @property
    def protocol_name(self) -> str:
        """The protocol in words."""
        return protocol_name(self.protocol)


def fullest(counts: Mapping[PortUse, int], most: int) -> Counter[PortUse]:
    """Return those of which the largest part is in use, however few ports that is."""
    return Counter(dict(nlargest(most, counts.items(), key=lambda one: one[1] / one[0].pool.size)))
