"""What somebody with root's rights does on a node by hand: empty an agent's rules, or look."""

from __future__ import annotations

# Devices hold programs by links; without its pin a link is gone.
_DETACH = 'rm "$IPMASQ_BPF_PINS"/link-*'


def emptying(backend: str, *, ipv6: bool) -> list[list[str]]:
    """Return the commands that empty an agent's rules.

    Args:
        backend: as the agent's status names it.
        ipv6: the rules of IPv6, else those of IPv4.
    """
    if backend == "bpf":
        # As cleaning up the filters of a device by hand, or another agent, would.
        return [["sh", "-c", _DETACH]]
    if backend == "nftables":
        return [["nft", "flush", "chain", _nft_family(ipv6), "ip-masq", "postrouting"]]
    chain = [_iptables(backend, ipv6), "-t", "nat", "-F", "IP-MASQ"]
    # Without a name all sets of the namespace are emptied.
    return [chain, ["ipset", "flush"]] if backend.startswith("ipset") else [chain]


def looking(backend: str, *, ipv6: bool) -> list[list[str]]:
    """Return the commands that show the rules in force; none where only the agent can.

    Args:
        backend: as the agent's status names it.
        ipv6: the rules of IPv6, else those of IPv4.
    """
    if backend == "bpf":
        return []
    if backend == "nftables":
        return [["nft", "list", "table", _nft_family(ipv6), "ip-masq"]]
    listing = [_iptables(backend, ipv6), "-t", "nat", "-S"]
    chains = [[*listing, chain] for chain in ("POSTROUTING", "IP-MASQ")]
    return [*chains, ["ipset", "save"]] if backend.startswith("ipset") else chains


def _nft_family(ipv6: bool) -> str:
    return "ip6" if ipv6 else "ip"


def _iptables(backend: str, ipv6: bool) -> str:
    # A node that nobody marked is taken for one of iptables-nft, and nobody marks the lab's.
    variant = "legacy" if backend.endswith("legacy") else "nft"
    return f"{'ip6tables' if ipv6 else 'iptables'}-{variant}"
