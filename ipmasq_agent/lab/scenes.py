"""The story that a lab tells, scene after scene.

Plain data, so that a reader can check the expectations against what a network engineer
knows. ``expected`` is written here and nowhere computed. All of it is in IPv4; the story in
IPv6 is its mirror image.
"""

from __future__ import annotations

from dataclasses import replace

from ipmasq_agent.lab.key_scenes import KEY_SCENES
from ipmasq_agent.lab.scene import Documents, Expectation, Scene, one


def _listed(*cidrs: str) -> Documents:
    entries = "".join(f"  - {cidr}\n" for cidr in cidrs)
    # Healing waits for a resync, and a lab should not wait a minute.
    return one(f"nonMasqueradeCIDRs:\n{entries}resyncInterval: 1s\n")


CLUSTER = ("172.20.0.0/16", "192.168.10.101/32")
LOOPS = ("10.10.1.0/24", "10.10.2.0/24")
FIRST = _listed(*CLUSTER)
SECOND = _listed(*CLUSTER, *LOOPS)
WRONG = _listed(*CLUSTER, *LOOPS, "10.0.0.1/8")
# What the second cluster starts with, and what both have once they are joined.
ALONE = _listed("172.30.0.0/16")
JOINED = _listed("172.20.0.0/16", "172.30.0.0/16", "192.168.10.101/32")
SECOND_JOINED = _listed("172.30.0.0/16", "172.20.0.0/16")

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
CLUSTERS_APART = (
    Expectation("curl-pod", "b-pod", "k8s-ctr"),
    Expectation("b-pod", "w1-pod", "k8s-b1"),
)
LOOPS_AS_PODS = (
    Expectation("curl-pod", "loop1", "curl-pod"),
    Expectation("curl-pod", "loop2", "curl-pod"),
    Expectation("w1-pod", "loop1", "w1-pod"),
)
ROUTER_AS_NODE = Expectation("curl-pod", "router", "k8s-ctr")

_BEFORE = (
    Scene(
        "The cluster keeps pod addresses, everything else sees the node",
        FIRST,
        WITHIN + OUTSIDE + CLUSTERS_APART,
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
)
_THE_WAY_BACK = {
    "static": (
        Scene(
            "The router gets its routes to the pods",
            None,
            (*WITHIN, ROUTER_AS_NODE, *LOOPS_AS_PODS),
            "172.20.0.0/24 via k8s-ctr, 172.20.1.0/24 via k8s-w1 and so on: replies return, and "
            "the source is still the pod's.",
            return_routes=True,
            open_connections=True,
        ),
    ),
    "bgp": (
        Scene(
            "Two nodes tell the router by BGP where their pods are",
            None,
            (
                *WITHIN,
                ROUTER_AS_NODE,
                *LOOPS_AS_PODS[:2],
                replace(LOOPS_AS_PODS[2], reply=False),
            ),
            "FRR runs in k8s-ctr, k8s-b1 and the router, with what `ipmasq-agent routes --bgp` "
            "writes for each; nobody gives the router a static route. Replies return to the pods "
            "of k8s-ctr. Those of k8s-w1 still wait: no BGP runs there yet.",
            bgp=("router", "k8s-ctr", "k8s-b1"),
        ),
        Scene(
            "A third node joins, and nothing is typed on the router",
            None,
            (*WITHIN, ROUTER_AS_NODE, *LOOPS_AS_PODS),
            "FRR starts in k8s-w1. The router takes any node of 192.168.10.0/24 for a neighbour, "
            "and from it the routes to its pods, so all replies return now.",
            bgp=("k8s-w1",),
            open_connections=True,
        ),
    ),
}
_AFTER = (
    Scene(
        "A document with an error, and somebody who empties the rules",
        WRONG,
        (ROUTER_AS_NODE, *LOOPS_AS_PODS),
        "The document is refused and the last good one stays in force. It is even healed: the "
        "rules were emptied by hand, and the agent put them back at its next look.",
        refused=True,
        flush=True,
    ),
    Scene(
        "Back to the first document",
        FIRST,
        (
            *WITHIN,
            *OUTSIDE,
            *CLUSTERS_APART,
            Expectation("curl-pod", "loop1", "curl-pod", kept=True),
        ),
        "New connections are masqueraded again. Those that were opened before keep the source "
        "they had: the kernel decides once for each connection.",
    ),
    Scene(
        "A second cluster joins the mesh, with native routing between the two",
        JOINED,
        (
            Expectation("curl-pod", "b-pod", "curl-pod"),
            Expectation("b-pod", "w1-pod", "b-pod"),
            Expectation("b-pod", "webpod", "b-pod"),
            *OUTSIDE[:2],
            Expectation("b-pod", "loop1", "k8s-b1"),
        ),
        "Each cluster has the other's pod CIDRs in its list, so pods of both see each other. "
        "Before, they saw a node of the other cluster, and no policy by pod could hold. The "
        "entry is needed on both sides: each node decides about the packets of its own pods.",
        second=SECOND_JOINED,
    ),
    *KEY_SCENES,
)


def told(routing: str) -> tuple[Scene, ...]:
    """Return the story, in which the router learns its way back to the pods in one of two ways."""
    return (*_BEFORE, *_THE_WAY_BACK[routing], *_AFTER)


ROUTINGS = tuple(_THE_WAY_BACK)
SCENES = told("static")
