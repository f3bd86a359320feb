"""Facts of the host and the cluster that a policy may depend on, beside what users write."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar, cast

from ipmasq_agent.policy.addresses import Family, Prefix

T = TypeVar("T")


@dataclass(frozen=True, order=True, slots=True)
class Fact(Generic[T]):
    """A fact whose value is a ``T``, by what users call it."""

    what: str


class Links(NamedTuple):
    """The devices of the node: every name, and those that lead out as we detect them."""

    names: tuple[str, ...]
    egress: tuple[str, ...]


class EgressDevice(NamedTuple):
    """What translating packets at a device takes, as it is now.

    Attributes:
        number: its ifindex.
        sources: family → the address that masquerading takes for what is sent there.
        link_header: bytes before the IP header of its packets.
        loopback: it leads to the node itself alone.
        mac: its own address of the link, 6 bytes; zeros where packets have no header of it.
    """

    number: int
    sources: Mapping[Family, int]
    link_header: int = 14
    loopback: bool = False
    mac: bytes = bytes(6)

    def of(self, family: Family) -> EgressDevice:
        """Return it as packets of one family leave through it."""
        sources = {of: source for of, source in self.sources.items() if of is family}
        return self._replace(sources=sources)


class ClusterNode(NamedTuple):
    """A node of a cluster.

    Attributes:
        addresses: by which it is reached, those within the cluster first.
        pod_cidrs: the addresses that its pods have.
    """

    name: str
    addresses: tuple[tuple[Family, int], ...]
    pod_cidrs: tuple[Prefix, ...]


class PodNetwork(NamedTuple):
    """Addresses of pods, as routes tell."""

    prefix: Prefix
    device: str
    here: bool


class WayOut(NamedTuple):
    """Where the node would send a packet.

    Attributes:
        device: through which it leaves; None where there is no route.
        address: what MASQUERADE would take from that device, as text; None without one.
        local: the destination is the node itself, which no rule of ours speaks of.
    """

    device: str | None = None
    address: str | None = None
    local: bool = False


class DroppedReply(NamedTuple):
    """A reply to a pod that the reverse path filter drops, in IPv4.

    Attributes:
        device: by which it comes in.
        destination: that sends it.
        mark: of the packet that it answers; 0 for none.
    """

    device: str
    destination: str
    mark: int


NODE_ADDRESSES: Fact[frozenset[tuple[Family, int]]] = Fact("the addresses of the cluster's nodes")
"""InternalIP and ExternalIP of every node."""

OWN_POD_CIDRS: Fact[tuple[Prefix, ...]] = Fact("the pod CIDRs of this node")

LINKS: Fact[Links] = Fact("the network devices of this node")

ROUTES: Fact[tuple[tuple[Prefix, int | None], ...]] = Fact("the routes of this node")
"""Destination and preferred source of each route that forwarded packets take; None for a
source where the route leaves it to the device."""

HOOKS: Fact[object] = Fact("the addresses of this node's devices, and the filters on them")
"""Whatever tells one state from another. No policy depends on it, but what some data planes
must write does."""

ADDRESSES: Fact[object] = Fact("the addresses of this node")
"""Whatever tells one state from another. No policy depends on it, but whether replies come
back does."""


class Facts:
    """What was learnt, immutable; None is "not learnt yet", never "nothing"."""

    __slots__ = ("_known",)

    def __init__(self, known: Mapping[Fact[Any], Any] | None = None) -> None:
        self._known = known or {}

    def get(self, fact: Fact[T]) -> T | None:
        """Return a fact as it was learnt."""
        return cast("T | None", self._known.get(fact))

    def __iter__(self) -> Iterator[tuple[Fact[Any], Any]]:
        """Yield each fact that was learnt, with its value."""
        return iter(self._known.items())

    def with_(self, fact: Fact[T], value: T) -> Facts:
        """Return the facts with one of them learnt."""
        return Facts({**self._known, fact: value})

    def only(self, needs: Iterable[Fact[Any]]) -> Facts:
        """Return those of ``needs``, all others forgotten."""
        return Facts({fact: self._known[fact] for fact in needs if fact in self._known})

    def missing(self, needs: Iterable[Fact[Any]]) -> list[Fact[Any]]:
        """Return those of ``needs`` that have not been learnt."""
        return sorted(fact for fact in needs if fact not in self._known)


NO_FACTS = Facts()
