"""Whose a rule is, told by the names and comments that programs leave in their rules."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ipmasq_agent.planes.rules.rule import Rule

# Who makes chains whose names begin so.
_CHAINS = {
    "KUBE-": "kube-proxy or kubelet",
    "KIND-": "kind",
    "DOCKER": "Docker",
    "NETAVARK": "Podman",
    "CNI-": "a CNI plugin",
    "cali-": "Calico",
    "CALI-": "Calico",
    "felix-": "Calico",
    "FLANNEL-": "flannel",
    "CILIUM_": "Cilium",
    "OLD_CILIUM_": "Cilium",
    "ANTREA-": "Antrea",
    "WEAVE": "Weave Net",
    "OVN-": "OVN-Kubernetes",
    "AWS-": "the AWS VPC CNI",
    "AZURE": "Azure",
    "ISTIO_": "Istio",
    "PROXY_INIT_": "Linkerd",
    "LIBVIRT_": "libvirt",
    "ts-": "Tailscale",
    "f2b-": "fail2ban",
    "ufw-": "ufw",
    "ufw6-": "ufw",
    "POSTROUTING_": "firewalld",
    "MINIUPNPD": "MiniUPnP",
}
# Tables of nf_tables.
_TABLES = {
    "firewalld": "firewalld",
    "kube-proxy": "kube-proxy",
    "calico": "Calico",
    "flannel": "flannel",
    "libvirt": "libvirt",
    "docker": "Docker",
    "netavark": "Podman",
    "cni_": "a CNI plugin",
    "kindnet": "kindnet",
    "cilium": "Cilium",
    "incus": "Incus",
    "lxd": "LXD",
}
# Comments, in part.
_COMMENTS = {
    "flanneld": "flannel",
    "kubernetes": "kube-proxy or kubelet",
    "kind-masq-agent": "kind",
    "AWS": "the AWS VPC CNI",
    "cali:": "Calico",
    "cilium": "Cilium",
    "ip-masq-agent": "ip-masq-agent",
    "generated for LXD": "LXD",
    "generated for Incus": "Incus",
    'name: "': "a CNI plugin",
}
# Bridges for containers and machines that are no pods.
_BRIDGES = {
    r"docker0|docker_gwbridge|br-[0-9a-f]{12}": "Docker",
    r"virbr\d+": "libvirt",
    r"podman\d+|cni-podman\d+": "Podman",
    r"lxcbr\d+|lxdbr\d+|incusbr\d+": "LXC",
}


def owner_of_name(chain: str) -> str | None:
    """Return whose program makes chains of such a name; None where it is nobody we know."""
    return _beginning(chain, _CHAINS)


def owner_of_bridge(device: str) -> str | None:
    """Return whose program makes such a bridge, for what is no pod; None where nothing tells."""
    return next((who for name, who in _BRIDGES.items() if re.fullmatch(name, device)), None)


def owner(chain: str, table: str, rule: Rule | None) -> str | None:
    """Return whose a rule is; None where nothing tells."""
    found = owner_of_name(chain) or _beginning(table, _TABLES)
    if found or rule is None:
        return found
    for part, who in _COMMENTS.items():
        if part in (rule.comment or ""):
            return who
    device = rule.option("out-interface")
    return owner_of_bridge(device.values[0]) if device and device.values else None


def _beginning(name: str, owners: Mapping[str, str]) -> str | None:
    return next((text for head, text in owners.items() if name.startswith(head)), None)
