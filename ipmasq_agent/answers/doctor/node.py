"""What the node itself does to packets that keep their address: settings, devices, room."""

from __future__ import annotations

from collections.abc import Iterator

from ipmasq_agent.answers.doctor.facts import Node, Role, Severity, Symptom
from ipmasq_agent.policy.addresses import Family

_FORWARDING = {
    Family.IPV4: "net.ipv4.ip_forward",
    Family.IPV6: "net.ipv6.conf.all.forwarding",
}
_VXLAN_OVERHEAD = 50  # Ethernet, IPv4, UDP and VXLAN headers: 14 + 20 + 8 + 8
_FILLING, _FULL = 0.8, 0.95


def agent_fails(node: Node) -> Iterator[Symptom]:
    """The running agent cannot write what the document asks for."""
    for family, why in node.failing.items():
        yield Symptom(
            Severity.ERROR,
            f"the running agent cannot bring its rules into force ({family.value})",
            "What was in force before goes on, or nothing did; the other family is not held up.",
            "See what the message says; the agent tries again at least every 30 s.",
            tuple(why.splitlines()),
        )


def forwarding_off(node: Node) -> Iterator[Symptom]:
    """The node does not forward what pods send."""
    for family in node.families:
        if node.forwarding.get(family, True):
            off = [
                _of_device(device.name, "forwarding")
                for device in node.devices
                if family is Family.IPV4 and not device.forwarding and device.role is not Role.OTHER
            ]
        else:
            off = [_FORWARDING[family]]
        if off:
            yield Symptom(
                Severity.ERROR,
                f"packets are not forwarded ({family.value})",
                "What pods send beyond this node, and what comes for them, is dropped.",
                f"`sysctl -w {' '.join(f'{name}=1' for name in off)}`, and find out what turned it "
                "off: a file in /etc/sysctl.d, or a firewall.",
                tuple(f"{name} = 0" for name in off),
            )


def _of_device(device: str, name: str) -> str:
    """Return what a setting is called; with slashes, as names of devices may have dots."""
    return f"net/ipv4/conf/{device}/{name}"


def reverse_path_filter(node: Node) -> Iterator[Symptom]:
    """The strict reverse path filter drops replies to pod addresses."""
    for device, destination, mark in node.dropped:
        setting = _of_device(device, "rp_filter")
        whose = f"what has the mark {mark:#x}" if mark else "pods"
        unknown = " Whether any packet of a pod has that mark is not seen." if mark else ""
        marked = ", or have replies marked too, with src_valid_mark=1" if mark else ""
        yield Symptom(
            Severity.INFO if mark else Severity.ERROR,
            f"{device} drops replies to {whose}: the reverse path filter is strict there",
            f"What pods send to {destination} leaves through {device} by a rule of policy routing "
            f"that replies do not match: by the routes alone they should come elsewhere.{unknown}",
            f"`sysctl -w {setting}=2` (loose){marked}.",
            (f"{setting}, or that of all devices = 1", f"from {destination} to a pod"),
        )


def mtu_mismatch(node: Node) -> Iterator[Symptom]:
    """Packets of pods do not fit through where they have to go."""
    found: list[str] = []
    sizes = {device.name: device.mtu for device in node.devices}
    overlays = node.of(Role.OVERLAY)
    for overlay in overlays:
        for lower in overlay.lower:
            if overlay.mtu + _VXLAN_OVERHEAD > sizes.get(lower, overlay.mtu + _VXLAN_OVERHEAD):
                found.append(
                    f"{overlay.name} {overlay.mtu} + {_VXLAN_OVERHEAD} of headers > "
                    f"{lower} {sizes[lower]}"
                )
    widest = {
        "overlay": max((one.mtu for one in overlays), default=0),
        "way out": max((one.mtu for one in node.of(Role.OUT)), default=0),
    }
    for device in node.of(Role.PODS):
        for what, most in widest.items():
            if most and device.mtu > most:
                found.append(f"{device.name} (pods) {device.mtu} > {most} of the {what}")
    if found:
        yield Symptom(
            Severity.WARNING,
            "the MTU of pods is larger than that of their way",
            "Large packets are refused with an ICMP message, and lost where that is filtered: "
            "connections open and then hang.",
            "Set the CNI plugin's MTU to that of the way out, less 50 bytes for VXLAN over IPv4.",
            tuple(found[:8]),
        )


def hairpin_off(node: Node) -> Iterator[Symptom]:
    """A pod cannot reach itself through a service."""
    for device in node.of(Role.PODS):
        if device.no_hairpin:
            yield Symptom(
                Severity.WARNING,
                f"a pod behind {device.name} cannot reach itself through its service",
                "As bridged frames pass the rules (bridge-nf-call-iptables), the bridge itself "
                "has to send them back to the port that they came from, which it does only in "
                "hairpin mode.",
                "hairpinMode: true in the CNI configuration; for now `bridge link set dev PORT "
                "hairpin on`.",
                (f"hairpin off: {', '.join(device.no_hairpin[:8])}",),
            )


def conntrack_full(node: Node) -> Iterator[Symptom]:
    """The table of tracked connections is filling up."""
    if node.conntrack is None:
        return
    count, most = node.conntrack
    fill = count / most if most else 0.0
    if fill >= _FILLING:
        yield Symptom(
            Severity.ERROR if fill >= _FULL else Severity.WARNING,
            f"the table of tracked connections is {fill:.0%} full",
            "At 100 % packets of new connections are dropped (`nf_conntrack: table full` in the "
            "kernel's log).",
            "Raise net.netfilter.nf_conntrack_max, and see with `conntrack -L` who opens so many.",
            (f"nf_conntrack_count = {count}", f"nf_conntrack_max = {most}"),
        )


def kernel_too_old(node: Node) -> Iterator[Symptom]:
    """The kernel is older than the data plane needs."""
    if node.kernel < node.oldest:
        mine, needed = (".".join(map(str, one)) for one in (node.kernel, node.oldest))
        yield Symptom(
            Severity.ERROR,
            f"Linux {mine} is too old for --backend {node.backend}",
            f"It needs Linux {needed}; the kernel refuses what an agent would write.",
            "Choose another --backend on this node, or upgrade its kernel.",
            (f"Linux {mine}",),
        )


def no_way_back(node: Node) -> Iterator[Symptom]:
    """A destination that sees pod addresses answers the node, and not a pod."""
    for probe in node.probes:
        if not probe.translated and probe.node_answered and not probe.pod_answered:
            yield Symptom(
                Severity.ERROR,
                f"{probe.target} has no way back to pods",
                "The document leaves the pod's address alone there; the destination answers the "
                "node, so it lives, and what it sends to a pod's address does not arrive.",
                "Give its network a route to the pod CIDRs, or take it off the list.",
                (f"from {probe.pod}: no reply", f"from {probe.node}: a reply"),
            )


def probe_unanswered(node: Node) -> Iterator[Symptom]:
    """A destination answers neither a pod nor the node."""
    for probe in node.probes:
        if not (probe.translated or probe.node_answered or probe.pod_answered):
            yield Symptom(
                Severity.INFO,
                f"{probe.target} answers nobody",
                "Neither a pod's address nor the node's got a reply, so nothing can be told.",
                "Name a TCP port on which something listens: --probe ADDRESS:PORT.",
                (f"from {probe.pod} and {probe.node}: no reply",),
            )
