"""Where the document does not suit the node."""

from __future__ import annotations

from collections.abc import Iterator

from ipmasq_agent.answers.doctor.facts import Node, Role, Severity, Symptom
from ipmasq_agent.config.assemble import LINK_LOCAL, NO_DEVICE, NO_SOURCE
from ipmasq_agent.policy.addresses import Family, collapsed, parse_address
from ipmasq_agent.policy.decisions import Verdict

_METADATA = parse_address("169.254.169.254")[1]
# Linux 5.7 leaves a UDP checksum of 0 alone when it translates (nf_nat_proto.c).
_LEAVES_CHECKSUMS = (5, 7)


def document_refused(node: Node) -> Iterator[Symptom]:
    """There is no document that can be used."""
    if node.refused is not None:
        message, remedy = node.refused
        yield Symptom(
            Severity.ERROR,
            "the document cannot be used",
            "An agent keeps the last good one in force; what depends on the document is not "
            "checked here.",
            remedy or "Correct it; `ipmasq-agent config validate` checks it by itself.",
            tuple(message.splitlines()),
        )


def pod_cidr_masqueraded(node: Node) -> Iterator[Symptom]:
    """Pods of the cluster see each other with node addresses."""
    for family, policy in node.policies.items():
        devices = policy.guards.devices
        if devices is None and node.backend == "bpf":
            devices = tuple(device.name for device in node.of(Role.OUT))  # with the programs
        reached = collapsed(
            one.prefix
            for one in node.pods
            if one.prefix.family is family and (devices is None or one.device in devices)
        )
        masqueraded = [
            str(pods)
            for pods in reached
            if any(
                entry.verdict is Verdict.MASQUERADE
                for entry in policy.decisions.between(pods.first, pods.last)
            )
        ]
        if masqueraded:
            yield Symptom(
                Severity.WARNING,
                f"traffic to pods is masqueraded: the list leaves out {', '.join(masqueraded)}",
                "Pods see a node where a pod speaks: network policies, logs and mutual TLS by "
                "address go wrong, and each connection costs a port of the node.",
                "Add the cluster's pod CIDRs to nonMasqueradeCIDRs or nativeRoutingCIDRs.",
                tuple(
                    f"{one.prefix} dev {one.device}"
                    for one in node.pods
                    if one.prefix.family is family
                ),
            )


def pods_not_covered(node: Node) -> Iterator[Symptom]:
    """The document's podCIDRs leaves out pods of this node."""
    for family, policy in node.policies.items():
        sources = policy.guards.sources
        if sources is None and policy.decisions.decide(0).reason != NO_SOURCE:
            continue
        left_out = [
            str(pods)
            for pods in collapsed(node.pod_networks(family, here=True))
            if not any(one.covers(pods) for one in sources or ())
        ]
        if left_out:
            yield Symptom(
                Severity.WARNING,
                f"podCIDRs leaves out pods of this node: {', '.join(left_out)}",
                "What they send leaves with their own address, wherever it goes; replies from "
                "networks without a route to them are lost.",
                "Add them to podCIDRs, or write `podCIDRs: auto`.",
                (f"podCIDRs: {', '.join(map(str, sources or ())) or 'none of this family'}",),
            )


def nothing_masqueraded(node: Node) -> Iterator[Symptom]:
    """No device of this node is one of egressInterfaces."""
    for family, policy in node.policies.items():
        if policy.decisions.decide(0).reason == NO_DEVICE:
            out = ", ".join(device.name for device in node.of(Role.OUT)) or "none"
            yield Symptom(
                Severity.WARNING,
                f"nothing is masqueraded: {NO_DEVICE} ({family.value})",
                "What pods send leaves with their own address, wherever it goes.",
                "Write patterns that match this node's devices too, or `egressInterfaces: auto`.",
                (f"devices that lead out: {out}",),
            )


def link_local_masqueraded(node: Node) -> Iterator[Symptom]:
    """Packets to link-local addresses are masqueraded."""
    samples = {Family.IPV4: _METADATA, Family.IPV6: LINK_LOCAL[Family.IPV6].first + 1}
    for family, policy in node.policies.items():
        if policy.decisions.decide(samples[family]).verdict is Verdict.MASQUERADE:
            yield Symptom(
                Severity.INFO,
                f"{LINK_LOCAL[family]} is masqueraded",
                "Pods ask the cloud's metadata service with the node's address, and may be given "
                "the node's credentials.",
                "Where pods need no metadata: masqLinkLocal: false, or a network policy.",
                (str(policy.decisions.decide(samples[family]).reason),),
            )


def metadata_unreachable(node: Node) -> Iterator[Symptom]:
    """The metadata service sees pods with their own addresses."""
    policy = node.policies.get(Family.IPV4)
    if policy is None or not node.metadata:
        return
    if policy.decisions.decide(_METADATA).verdict is Verdict.NON_MASQUERADE:
        yield Symptom(
            Severity.INFO,
            "the metadata service sees pods with their own addresses",
            "It answers where the cloud's network knows the pods; elsewhere requests of pods to "
            "169.254.169.254 time out.",
            "Where pods need it and get no answer: masqLinkLocal: true.",
            node.metadata,
        )


def snat_unanswered(node: Node) -> Iterator[Symptom]:
    """Nobody answers for snatAddress."""
    for line in node.unanswered:
        yield Symptom(
            Severity.ERROR,
            "nothing comes back to snatAddress",
            "It is in a subnet of the node's, and nobody there answers for it.",
            "Give the address to this node, or take another one.",
            (line,),
        )


def snat_by_routers(node: Node) -> Iterator[Symptom]:
    """Whether replies to snatAddress come back, routers outside decide."""
    for line in node.doubtful:
        yield Symptom(
            Severity.INFO,
            "snatAddress is not an address of this node",
            "Replies come back only where routers outside send them here.",
            "See that they do; `ipmasq-agent doctor --probe ADDRESS` asks.",
            (line,),
        )


def vxlan_masqueraded(node: Node) -> Iterator[Symptom]:
    """The packets of an overlay themselves are masqueraded, each flow with a random port."""
    if node.backend == "bpf":
        return  # what has the node's address already is kept there
    for family, policy in node.policies.items():
        if policy.guards.sources is not None or not policy.action.random_fully:
            continue
        ends = [
            family.show(address)
            for of, address in sorted(node.tunnel_ends, key=lambda end: end[1])
            if of is family and policy.decisions.decide(address).verdict is Verdict.MASQUERADE
        ]
        if not ends:
            continue
        broken = node.kernel < _LEAVES_CHECKSUMS
        yield Symptom(
            Severity.WARNING if broken else Severity.INFO,
            f"packets of the VXLAN overlay are masqueraded at random ports ({family.value})",
            "Kernels before 5.7 give them a wrong checksum, and they are dropped: connections "
            "to pods of other nodes hang for seconds."
            if broken
            else "The address stays the node's, but each flow is tracked once more and has "
            "another port: the network spreads it over its links otherwise than meant.",
            "Add the nodes' network to nonMasqueradeCIDRs, set exemptNodeIPs: true, or name "
            "the pods in podCIDRs.",
            tuple(f"to {end}" for end in ends[:8]),
        )
