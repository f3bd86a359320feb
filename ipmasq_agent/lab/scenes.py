"""The story that a lab tells: documents, what happens, and which source must be seen.

Plain data, so that a reader can check the expectations against what a network engineer
knows. ``expected`` is written here and nowhere computed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

# What each name stands for as a source, in IPv4 and in IPv6.
SOURCES = {
    "curl-pod": ("172.20.0.10", "fd00:172:20::10"),
    "w1-pod": ("172.20.1.10", "fd00:172:20:1::10"),
    "k8s-ctr": ("192.168.10.100", "fd00:192:168:10::100"),
    "k8s-w1": ("192.168.10.101", "fd00:192:168:10::101"),
}
PROTOCOLS = ("icmp", "tcp", "udp")


@dataclass(frozen=True, slots=True)
class Expectation:
    """Packets from ``sender`` to ``to`` must arrive with the address of ``seen_as``.

    Attributes:
        sender: the pod that sends.
        to: a destination of the topology.
        seen_as: whose address the receiver must see: the pod's, or its node's.
        reply: whether an answer must come back.
        kept: name of a connection opened earlier on which to speak, instead of a new one.
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
        document: the ConfigMap document, by family; None leaves the one there is.
        refused: the agent must refuse the document and keep the one before.
        return_routes: give the router its way back to the pods.
        open_connections: open one connection for each protocol to loop1, to be kept.
        flush: somebody empties the chain by hand, and the agent must heal it.
        expect: what must be seen.
        why: what it means.
    """

    title: str
    document: tuple[str, str] | None
    expect: tuple[Expectation, ...]
    why: str
    refused: bool = False
    return_routes: bool = False
    open_connections: bool = False
    flush: bool = False


def _document(ipv4: list[str], ipv6: list[str]) -> tuple[str, str]:
    def text(cidrs: list[str]) -> str:
        # Healing waits for a resync, and a lab should not wait a minute.
        entries = "".join(f"  - {cidr}\n" for cidr in cidrs)
        return f"nonMasqueradeCIDRs:\n{entries}resyncInterval: 1s\n"

    return text(ipv4), text(ipv6)


CLUSTER = (["172.20.0.0/16", "192.168.10.101/32"], ["fd00:172:20::/48", "fd00:192:168:10::101/128"])
LOOPS = (["10.10.1.0/24", "10.10.2.0/24"], ["fd00:10:10:1::/64", "fd00:10:10:2::/64"])
FIRST = _document(*CLUSTER)
SECOND = _document(CLUSTER[0] + LOOPS[0], CLUSTER[1] + LOOPS[1])
WRONG = _document([*CLUSTER[0], *LOOPS[0], "10.0.0.1/8"], [*CLUSTER[1], *LOOPS[1], "fd00::1/8"])

WITHIN = (
    Expectation("curl-pod", "webpod", "curl-pod"),
    Expectation("curl-pod", "w1-pod", "curl-pod"),
    Expectation("curl-pod", "k8s-w1", "curl-pod"),
)
OUTSIDE = (
    Expectation("curl-pod", "router", "k8s-ctr"),
    Expectation("curl-pod", "loop1", "k8s-ctr"),
    Expectation("curl-pod", "loop2", "k8s-ctr"),
    Expectation("w1-pod", "loop1", "k8s-w1"),
)
LOOPS_AS_PODS = (
    Expectation("curl-pod", "loop1", "curl-pod"),
    Expectation("curl-pod", "loop2", "curl-pod"),
    Expectation("w1-pod", "loop1", "w1-pod"),
)
ROUTER_AS_NODE = Expectation("curl-pod", "router", "k8s-ctr")

SCENES = (
    Scene(
        "The cluster keeps pod addresses, everything else sees the node",
        FIRST,
        WITHIN + OUTSIDE,
        "Only the pod network and the worker are in the list, so the router and what lies "
        "behind it see the node that the pod runs on.",
    ),
    Scene(
        "Two company networks join the list, and their router knows no way back",
        SECOND,
        (
            *WITHIN,
            ROUTER_AS_NODE,
            *(replace(expectation, reply=False) for expectation in LOOPS_AS_PODS),
        ),
        "The loops now see the pod's own address. No reply returns: the router has no route to "
        "the pods, so whoever takes addresses off the list of the masqueraded must give the "
        "network a route to them.",
    ),
    Scene(
        "The router gets its routes to the pods",
        None,
        (*WITHIN, ROUTER_AS_NODE, *LOOPS_AS_PODS),
        "172.20.0.0/24 via k8s-ctr, 172.20.1.0/24 via k8s-w1: replies return, and the source is "
        "still the pod's.",
        return_routes=True,
        open_connections=True,
    ),
    Scene(
        "A document with an error, and somebody who empties the chain",
        WRONG,
        (ROUTER_AS_NODE, *LOOPS_AS_PODS),
        "The document is refused and the last good one stays in force. It is even healed: the "
        "chain was emptied by hand, and the agent put it back at its next look.",
        refused=True,
        flush=True,
    ),
    Scene(
        "Back to the first document",
        FIRST,
        (
            *WITHIN,
            *OUTSIDE,
            Expectation("curl-pod", "loop1", "curl-pod", kept=True),
        ),
        "New connections are masqueraded again. Those that were opened before keep the source "
        "they had: the kernel decides once for each connection.",
    ),
)
