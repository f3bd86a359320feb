"""One scene for each key of the document that ip-masq-agent does not have.

In all of them the router has its routes back to the pods, and the mesh stands.
"""

from __future__ import annotations

from ipmasq_agent.lab.scene import Expectation, Scene, one

_POD_TO_LOOP1 = Expectation("curl-pod", "loop1", "curl-pod")
_NODE_TO_LOOP1 = Expectation("curl-pod", "loop1", "k8s-ctr")
_POD_TO_LOOP2 = Expectation("curl-pod", "loop2", "curl-pod")
_NODE_TO_LOOP2 = Expectation("curl-pod", "loop2", "k8s-ctr")
_POD_TO_POD = Expectation("curl-pod", "w1-pod", "curl-pod")
# From outside through the node into a pod; the reply proves that it kept its source too.
_INWARD = Expectation("loop2", "webpod", "loop2")
# A socket of the node itself, bound to another address than its first.
_HOST_TRAFFIC = Expectation("egress-ip", "router", "egress-ip")

DESTINATIONS = (
    Scene(
        "masqueradeCIDRs: an exception within what is left alone, and one within that",
        one(
            "nonMasqueradeCIDRs:\n"
            "  - 172.20.0.0/16\n"
            "  - 10.0.0.0/8\n"
            "  - 10.10.2.0/24\n"
            "masqueradeCIDRs:\n"
            "  - 10.10.0.0/16\n"
        ),
        (
            _POD_TO_POD,
            Expectation("curl-pod", "k8s-w1/eth0", "curl-pod"),
            _NODE_TO_LOOP1,
            Expectation("w1-pod", "loop1", "k8s-w1"),
            _POD_TO_LOOP2,
        ),
        "Of all entries that cover a destination the longest prefix decides, in whatever order "
        "they stand: 10.10.0.0/16 takes loop1 out of 10.0.0.0/8, and 10.10.2.0/24 takes loop2 "
        "out of 10.10.0.0/16.",
    ),
    Scene(
        "defaultAction: keep, the inverse agent",
        one("defaultAction: keep\nmasqueradeCIDRs:\n  - 10.10.2.0/24\n"),
        (
            _POD_TO_POD,
            _POD_TO_LOOP1,
            Expectation("curl-pod", "internet", "curl-pod"),
            _NODE_TO_LOOP2,
            Expectation("w1-pod", "loop2", "k8s-w1"),
        ),
        "Where pods have addresses that the network knows, only the exceptions are listed: what "
        "must see the node. Everything else sees the pod.",
    ),
    Scene(
        "podCIDRs: only packets of these pods are masqueraded",
        one("nonMasqueradeCIDRs: []\npodCIDRs:\n  - 172.20.0.0/16\n"),
        (
            _NODE_TO_LOOP1,
            Expectation("w1-pod", "loop1", "k8s-w1"),
            _HOST_TRAFFIC,
            _INWARD,
        ),
        "An empty list masquerades every destination, and without podCIDRs every source too: a "
        "socket of the node that chose its second address would lose it, and a pod would see "
        "its node in place of who calls from outside.",
    ),
    Scene(
        "nativeRoutingCIDRs: what the network routes with pod addresses",
        one("nonMasqueradeCIDRs:\n  - 172.20.0.0/16\nnativeRoutingCIDRs:\n  - 10.10.1.0/24\n"),
        (_POD_TO_POD, _POD_TO_LOOP1, Expectation("w1-pod", "loop1", "w1-pod"), _NODE_TO_LOOP2),
        "It says the same of packets as an entry of nonMasqueradeCIDRs, and more to people: this "
        "network knows the way back to the pods. `status` shows it, as Cilium's does.",
    ),
)
NODES = (
    Scene(
        "exemptNodeIPs: nodes of the cluster are never masqueraded",
        one("nonMasqueradeCIDRs:\n  - 172.20.0.0/16\nexemptNodeIPs: true\n"),
        (
            Expectation("curl-pod", "k8s-w1", "curl-pod"),
            Expectation("curl-pod", "k8s-b1", "k8s-ctr"),
            Expectation("curl-pod", "router", "k8s-ctr"),
        ),
        "No address of a node is in the list any more: the agent asks the Kubernetes API for them. "
        "k8s-b1 is a node of another cluster, so it sees k8s-ctr.",
    ),
    Scene(
        "A node joins the cluster",
        None,
        (
            Expectation("curl-pod", "k8s-w1", "curl-pod"),
            Expectation("curl-pod", "k8s-b1", "curl-pod"),
            Expectation("w1-pod", "k8s-b1", "w1-pod"),
            Expectation("curl-pod", "router", "k8s-ctr"),
        ),
        "k8s-b1 is a node of this cluster now, and sees the pod at once. Nobody wrote a "
        "document: the agents watch the API.",
        joins="k8s-b1",
    ),
)
DEVICES = (
    Scene(
        "egressInterfaces: masquerade out of these devices only",
        one("nonMasqueradeCIDRs: []\negressInterfaces:\n  - eth1\n"),
        (
            _NODE_TO_LOOP1,
            Expectation("w1-pod", "loop1", "k8s-w1"),
            Expectation("curl-pod", "k8s-w1/eth0", "curl-pod"),
            _INWARD,
        ),
        "What leaves through eth1 is masqueraded, what leaves through eth0 (the management "
        "network here) keeps the pod's address, and so does what goes inward through cni0.",
    ),
    Scene(
        "egressInterfaces: auto, the devices that lead out of the node",
        one("nonMasqueradeCIDRs: []\negressInterfaces: auto\n"),
        (
            _NODE_TO_LOOP1,
            Expectation("curl-pod", "k8s-w1/eth0", "k8s-ctr/eth0"),
            _INWARD,
        ),
        "eth0 has the default route and eth1 the node's address, so both count as Cilium counts "
        "them, each with an address of its own; cni0 leads to pods.",
    ),
)
SOURCE_ADDRESSES = (
    Scene(
        "snatAddress: masqueraded as one fixed address",
        one("nonMasqueradeCIDRs:\n  - 172.20.0.0/16\nsnatAddress: 192.168.10.150\n"),
        (
            _POD_TO_POD,
            Expectation("curl-pod", "router", "egress-ip"),
            Expectation("curl-pod", "loop1", "egress-ip"),
        ),
        "k8s-ctr has a second address, and its pods leave with that one: a firewall outside can "
        "know them by it, whatever the node's own address is.",
        nodes=("k8s-ctr",),
    ),
    Scene(
        "snatAddress: auto-route, the source that the route prefers",
        one("nonMasqueradeCIDRs:\n  - 172.20.0.0/16\nsnatAddress: auto-route\n"),
        (
            _POD_TO_POD,
            _NODE_TO_LOOP1,
            Expectation("curl-pod", "loop2", "egress-ip"),
            Expectation("w1-pod", "loop2", "k8s-w1"),
        ),
        "On k8s-ctr the route to 10.10.2.0/24 says src 192.168.10.150: what the node itself "
        "would send there has that source, and what it masquerades has it too. Other routes say "
        "nothing, so the device's first address is taken, as ever.",
    ),
)
SEVERAL_DOCUMENTS = (
    Scene(
        "Several documents: the platform's and a team's",
        {
            "10-platform.yaml": "nonMasqueradeCIDRs:\n  - 172.20.0.0/16\n",
            "20-team.yaml": "nonMasqueradeCIDRs:\n  - 10.10.1.0/24\n",
        },
        (_POD_TO_POD, _POD_TO_LOOP1, Expectation("w1-pod", "loop1", "w1-pod"), _NODE_TO_LOOP2),
        "Keys of one ConfigMap, or files of one directory, are merged in the order of their "
        "names, so a team adds its networks without touching the platform's list, and `explain` "
        "names the one that an entry comes from.",
        explains={"loop1": "20-team.yaml"},
    ),
)
PROFILE = (
    Scene(
        "profile: cilium, the decisions of Cilium's eBPF masquerading",
        one(
            "profile: cilium\n"
            "nonMasqueradeCIDRs:\n"
            "  - 10.10.1.200/24\n"
            "nativeRoutingCIDRs:\n"
            "  - 172.20.0.0/16\n"
        ),
        (
            _POD_TO_POD,
            Expectation("curl-pod", "k8s-w1", "curl-pod"),
            _POD_TO_LOOP1,
            _NODE_TO_LOOP2,
            Expectation("w1-pod", "loop2", "k8s-w1"),
            _HOST_TRAFFIC,
            _INWARD,
        ),
        "The entry with host bits is read as 10.10.1.0/24, as Cilium reads it. Only the node's "
        "own pods are masqueraded (the API knows their CIDRs), never toward a node, never within "
        "the native-routing CIDR, and never in reply to a connection from outside.",
    ),
)

KEY_SCENES = (*DESTINATIONS, *NODES, *DEVICES, *SOURCE_ADDRESSES, *SEVERAL_DOCUMENTS, *PROFILE)
