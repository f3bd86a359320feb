"""What somebody with root's rights does to the rules of an agent, in each data plane."""

from __future__ import annotations

# Devices hold programs by links; without its pin a link is gone.
_DETACH = 'rm "$IPMASQ_BPF_PINS"/link-*'


def emptying(backend: str, *, ipv6: bool) -> list[list[str]]:
    """Return the commands that empty an agent's rules by hand.

    Args:
        backend: as the agent's status names it.
        ipv6: the rules of IPv6, else those of IPv4.
    """
    if backend == "bpf":
        # As cleaning up the filters of a device by hand, or another agent, would.
        return [["sh", "-c", _DETACH]]
    if backend == "nftables":
        return [["nft", "flush", "chain", "ip6" if ipv6 else "ip", "ip-masq", "postrouting"]]
    # A node that nobody marked is taken for one of iptables-nft, and nobody marks the lab's.
    variant = "legacy" if backend.endswith("legacy") else "nft"
    chain = [f"{'ip6tables' if ipv6 else 'iptables'}-{variant}", "-t", "nat", "-F", "IP-MASQ"]
    # Without a name all sets of the namespace are emptied.
    return [chain, ["ipset", "flush"]] if backend.startswith("ipset") else [chain]
