"""Which iptables the node uses, told by where kubelet keeps its marks.

Kubelet makes the chain KUBE-IPTABLES-HINT (KUBE-KUBELET-CANARY before 1.24) in the mangle
table of the variant that the node uses; Kubernetes' own images look for them in this
order, nf_tables first. Looking must not make a legacy table: opening one creates it, even
on a node that uses nf_tables only, so it is opened only where the kernel already has it.
"""

from __future__ import annotations

from collections.abc import Mapping

from ipmasq_agent.backends.iptables import IptablesBackend, program
from ipmasq_agent.backends.legacy import LegacyBackend, table_exists
from ipmasq_agent.backends.nft import NftBackend
from ipmasq_agent.dialects.iptables import Placement
from ipmasq_agent.errors import AgentError
from ipmasq_agent.host.commands import run
from ipmasq_agent.host.nfnetlink import list_chains
from ipmasq_agent.policy.addresses import Family

BACKENDS: Mapping[str, type[IptablesBackend]] = {
    "iptables-nft": NftBackend,
    "iptables-legacy": LegacyBackend,
}
MARKS = ("KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY")


def choose(requested: str) -> tuple[str, str]:
    """Return the backend to use and why; ``auto`` and ``iptables`` leave it to the node."""
    if requested in BACKENDS:
        return requested, "asked for by --backend"
    for name, look in (("iptables-nft", _nft_mark), ("iptables-legacy", _legacy_mark)):
        for family in Family:
            mark = look(family)
            if mark is not None:
                return name, f"{mark} is in its mangle table ({family.value})"
    return "iptables-nft", "nothing tells; the default"


def make(name: str, placement: Placement) -> IptablesBackend:
    """Return the backend of that name."""
    return BACKENDS[name](placement)


def holders() -> list[str]:
    """Return the backends that may hold rules here: those whose nat table exists."""
    legacy = any(table_exists(family, "nat") for family in Family)
    return ["iptables-nft", *(["iptables-legacy"] if legacy else [])]


def _nft_mark(family: Family) -> str | None:
    try:
        chains = list_chains(family, "mangle")
    except AgentError:
        return None  # an answer from the other variant or family still counts
    return next((mark for mark in MARKS if mark in chains), None)


def _legacy_mark(family: Family) -> str | None:
    if not table_exists(family, "mangle"):
        return None
    saved = run([program(family, "legacy", "save"), "-t", "mangle"], check=False).stdout
    return next((mark for mark in MARKS if f"\n:{mark} " in saved), None)
