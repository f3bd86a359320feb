"""What is known of a node, gathered once, for checks that ask nobody; and what they find."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from ipmasq_agent.planes.rules.neighbours import PostroutingHook
from ipmasq_agent.planes.rules.rule import Rule
from ipmasq_agent.policy.addresses import Family, Prefix
from ipmasq_agent.policy.facts import DroppedReply, PodNetwork
from ipmasq_agent.policy.model import FamilyPolicy

PAGE = "docs/doctor.md"


class Severity(enum.StrEnum):
    """How much a finding hurts."""

    ERROR = "error"
    """Traffic fails, or goes out otherwise than the document says."""
    WARNING = "warning"
    """It will bite somebody."""
    INFO = "info"
    """Worth knowing; no reason to fail."""


@dataclass(frozen=True, slots=True)
class Symptom:
    """What one check found.

    Attributes:
        severity: how much it hurts.
        title: what is the matter, in one line.
        why: what comes of it.
        remedy: what to do.
        evidence: what shows it, as rules, settings or addresses.
        id: the name of the check.
    """

    severity: Severity
    title: str
    why: str
    remedy: str
    evidence: tuple[str, ...] = ()
    id: str = ""

    @property
    def page(self) -> str:
        """Where it is explained."""
        return f"{PAGE}#{self.id}"

    def as_data(self) -> dict[str, Any]:
        """Return it as ``doctor -o json`` has it."""
        return {"id": self.id, **asdict(self), "page": self.page}


class Role(enum.Enum):
    """What a device is for."""

    OUT = "leads out of the node"
    PODS = "leads to pods of this node"
    OVERLAY = "leads to pods of other nodes"
    OTHER = "anything else"


class Device(NamedTuple):
    """A device.

    Attributes:
        mtu: the largest packet that it takes, in bytes.
        lower: of an overlay, the devices through which its packets leave.
        no_hairpin: ports of this bridge through which a pod cannot reach itself.
        forwarding: packets that come in here are forwarded, in IPv4.
    """

    name: str
    mtu: int
    role: Role
    lower: tuple[str, ...] = ()
    no_hairpin: tuple[str, ...] = ()
    forwarding: bool = True


class Probing(NamedTuple):
    """What became of packets that were sent to an address.

    Attributes:
        target: where to.
        translated: they left with another address than the pod's.
        pod: from this address of a pod's network.
        pod_answered: a reply came to it.
        node: from this address of the node.
        node_answered: a reply came to it.
    """

    target: str
    translated: bool
    pod: str
    pod_answered: bool
    node: str
    node_answered: bool


@dataclass(frozen=True, slots=True)
class Node:
    """A node.

    Attributes:
        kernel: its version, as two numbers.
        backend: which data plane is in use, or would be.
        oldest: the first kernel for it.
        place: the chain that is ours, or what stands for it.
        families: those that are managed.
        refused: why there is no document to judge by; its remedy after it.
        policies: what the document asks for.
        hooks: what stands at the postrouting hook.
        own: what is ours in the kernel, line by line.
        failing: family → why the running agent cannot bring it to what the document asks for.
        contested: who undoes what the running agent writes.
        left: what is ours in data planes that are not in use.
        iptables: variant → its tables that have rules.
        services: rules of kube-proxy for the first service that it has.
        devices: all of them.
        pods: where pods are.
        addresses: the node's own.
        tunnel_ends: to which packets of overlays are sent.
        metadata: routes to the cloud's metadata service, in words.
        forwarding: whether packets are forwarded at all.
        dropped: what the reverse path filter drops.
        unanswered, doubtful: source addresses of the document to which no reply comes back, or
            of which that is not known.
        conntrack: connections that are tracked, and how many may be; None without tracking.
        cilium: signs that Cilium's programs masquerade here.
        probes: what was sent, and what came back.
    """

    kernel: tuple[int, int] = (0, 0)
    backend: str = ""
    oldest: tuple[int, int] = (0, 0)
    place: str = ""
    families: tuple[Family, ...] = (Family.IPV4,)
    refused: tuple[str, str | None] | None = None
    policies: Mapping[Family, FamilyPolicy] = field(default_factory=dict)
    hooks: Mapping[Family, PostroutingHook] = field(default_factory=dict)
    own: Mapping[Family, Sequence[str]] = field(default_factory=dict)
    failing: Mapping[Family, str] = field(default_factory=dict)
    contested: str | None = None
    left: tuple[str, ...] = ()
    iptables: Mapping[Family, Mapping[str, Sequence[str]]] = field(default_factory=dict)
    services: Mapping[Family, Sequence[Rule]] = field(default_factory=dict)
    devices: tuple[Device, ...] = ()
    pods: tuple[PodNetwork, ...] = ()
    addresses: frozenset[tuple[Family, int]] = frozenset()
    tunnel_ends: frozenset[tuple[Family, int]] = frozenset()
    metadata: tuple[str, ...] = ()
    forwarding: Mapping[Family, bool] = field(default_factory=dict)
    dropped: tuple[DroppedReply, ...] = ()
    unanswered: tuple[str, ...] = ()
    doubtful: tuple[str, ...] = ()
    conntrack: tuple[int, int] | None = None
    cilium: tuple[str, ...] = ()
    probes: tuple[Probing, ...] = ()

    def of(self, role: Role) -> list[Device]:
        """Return the devices of one role."""
        return [device for device in self.devices if device.role is role]

    def pod_networks(self, family: Family, *, here: bool | None = None) -> tuple[Prefix, ...]:
        """Return where pods of a family are, on this node, on others, or on any."""
        return tuple(
            one.prefix
            for one in self.pods
            if one.prefix.family is family and here in (None, one.here)
        )
