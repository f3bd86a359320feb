"""What a scene of the story is: documents, what happens, and which source must be seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ipmasq_agent.lab.mirror import mirrored
from ipmasq_agent.lab.topology import FIRST_CLUSTER

PROTOCOLS = ("icmp", "tcp", "udp")
Documents = Mapping[str, str]
"""Key of the ConfigMap → text."""


@dataclass(frozen=True, slots=True)
class Expectation:
    """Packets from ``sender`` to ``to`` must arrive with the address of ``seen_as``.

    Attributes:
        sender: who sends, an endpoint of the topology; packets start with its address.
        to: where to, another endpoint.
        seen_as: whose address the receiver must see: the sender's, or its node's.
        reply: whether an answer must come back.
        kept: speak on the connections opened earlier, instead of new ones.
    """

    sender: str
    to: str
    seen_as: str
    reply: bool = True
    kept: bool = False


@dataclass(frozen=True, slots=True)
class Scene:
    """One step.

    Attributes:
        title: what the reader is about to see.
        document: the ConfigMap of the first cluster; None leaves the one there is.
        expect: what must be seen.
        why: what it means.
        nodes: those that get the document.
        second: the ConfigMap of the second cluster; None leaves the one there is.
        refused: the agent must refuse the document and keep the one before.
        return_routes: give the router its way back to the pods.
        bgp: hosts whose BGP starts, the router among them before any node.
        open_connections: open one connection for each protocol to loop1, to be kept.
        flush: somebody empties the rules by hand, and the agent must heal them.
        joins: a node that joins the first cluster, by the Kubernetes API.
        explains: endpoint → the key whose entry must be named when the agent explains it.
    """

    title: str
    document: Documents | None
    expect: tuple[Expectation, ...]
    why: str
    nodes: tuple[str, ...] = tuple(node.name for node in FIRST_CLUSTER)
    second: Documents | None = None
    refused: bool = False
    return_routes: bool = False
    bgp: tuple[str, ...] = ()
    open_connections: bool = False
    flush: bool = False
    joins: str | None = None
    explains: Mapping[str, str] = field(default_factory=dict)

    def mirrored(self) -> Scene:
        """Return the same in IPv6."""
        return replace(
            self,
            title=mirrored(self.title),
            why=mirrored(self.why),
            document=self.document and in_ipv6(self.document),
            second=self.second and in_ipv6(self.second),
        )


def in_ipv6(documents: Documents) -> Documents:
    """Return documents with their addresses in IPv6."""
    return {key: mirrored(text) for key, text in documents.items()}


def one(text: str) -> Documents:
    """Return a ConfigMap with one document."""
    return {"config": text}


def shown(documents: Documents) -> str:
    """Return documents as one text to be read; several as a stream of YAML with their names."""
    if len(documents) == 1:
        return next(iter(documents.values()))
    return "".join(f"--- # {key}\n{text}" for key, text in sorted(documents.items()))
