"""Which backend to use: as asked for, or the iptables where kubelet keeps its marks.

Kubelet makes the chain KUBE-IPTABLES-HINT (KUBE-KUBELET-CANARY before 1.24) in the mangle
table of the variant that the node uses; Kubernetes' own images look for them in this
order, nf_tables first. Looking must not make a legacy table: opening one creates it, even
on a node that uses nf_tables only, so it is opened only where the kernel already has it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from shutil import which
from typing import Any

from ipmasq_agent.errors import AgentError, NotPermitted
from ipmasq_agent.netlink.nft_objects import chain_info, table_info
from ipmasq_agent.planes.iptables.legacy import LegacyBackend, read_chains, table_exists
from ipmasq_agent.planes.iptables.nft import NftBackend
from ipmasq_agent.planes.iptables.plane import IptablesBackend
from ipmasq_agent.planes.nftables.plane import NftablesBackend, tables_of_ours
from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.planes.plane import Backend
from ipmasq_agent.policy.addresses import Family

IPTABLES: Mapping[str, type[IptablesBackend]] = {
    "iptables-nft": NftBackend,
    "iptables-legacy": LegacyBackend,
}
BPF = "bpf"
BACKENDS = (*IPTABLES, NftablesBackend.name, BPF)
"""One for each place in the kernel where rules of ours may be."""
WITH_SET = {"ipset-nft": "iptables-nft", "ipset-legacy": "iptables-legacy"}
"""The same places, with one rule that asks a set."""
MARKS = ("KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY")


def choose(requested: str, *, large: bool = False) -> tuple[str, str]:
    """Return the backend to use and why; ``auto``, ``iptables`` and ``ipset`` ask the node.

    Args:
        requested: as --backend has it.
        large: the policy is too large for one rule each; ``auto`` then takes the set form
            of the node's iptables, where the program for it is there.

    Raises:
        AgentError: a mangle table cannot be read, and no other one has a mark. Taking the
            default then could move the rules of a running node because of a passing fault.
    """
    if requested in BACKENDS:
        return requested, "asked for by --backend"
    variant, why = _variant()
    if requested == "ipset":
        return f"ipset-{variant.removeprefix('iptables-')}", f"asked for by --backend; {why}"
    if requested == "auto" and large and which("ipset"):
        return f"ipset-{variant.removeprefix('iptables-')}", f"the policy is large; {why}"
    return variant, why


def _variant() -> tuple[str, str]:
    """Return which iptables the node uses, and what tells."""
    failures: list[AgentError] = []
    for name, look in (("iptables-nft", _nft_mark), ("iptables-legacy", _legacy_mark)):
        for family in Family:
            try:
                mark = look(family)
            except AgentError as error:
                failures.append(error)  # a mark in another table still counts
                continue
            if mark is not None:
                return name, f"{mark} is in its mangle table ({family.value})"
    if failures:
        raise failures[0]
    return "iptables-nft", "nothing tells; the default"


def make(name: str, placement: Placement) -> Backend[Any, Any, Any]:
    """Return the backend of that name, which ``choose`` has returned."""
    if name == NftablesBackend.name:
        return NftablesBackend(placement)
    if name == BPF:
        from ipmasq_agent.planes.bpf.plane import BpfBackend  # libbpf is for those who use it

        return BpfBackend(Path(placement.pins), placement.flows)
    return make_iptables(name, placement)


def make_iptables(name: str, placement: Placement) -> IptablesBackend:
    """Return the backend of that name, one of those that speak iptables."""
    if name in WITH_SET:
        return IPTABLES[WITH_SET[name]](placement, with_set=True)
    return IPTABLES[name](placement)


def holders(placement: Placement) -> list[str]:
    """Return the backends that may hold rules here: those whose table exists."""
    exists = {
        NftablesBackend.name: tables_of_ours(),
        BPF: _has_programs(placement),
        "iptables-nft": any(table_info(family, "nat") for family in Family),
        "iptables-legacy": any(table_exists(family, "nat") for family in Family),
    }
    return [name for name in BACKENDS if exists[name]]


def leavings(placement: Placement) -> list[str]:
    """Return those of which cheap signs tell that they hold something of ours.

    Legacy tables have none: each look hands out the whole table.
    """
    exists = {
        NftablesBackend.name: tables_of_ours(),
        BPF: _has_programs(placement),
        "iptables-nft": any(chain_info(family, "nat", placement.chain) for family in Family),
    }
    return [name for name in BACKENDS if exists.get(name)]


def _has_programs(placement: Placement) -> bool:
    from ipmasq_agent.planes.bpf.hooks import Hooks

    try:
        # Those who may not look at the pins look at the devices.
        return os.path.exists(placement.pins) or Hooks(Path(placement.pins)).strays()
    except NotPermitted:
        return True  # so that somebody tries to read them, and says why that fails


def _nft_mark(family: Family) -> str | None:
    return next((mark for mark in MARKS if chain_info(family, "mangle", mark)), None)


def _legacy_mark(family: Family) -> str | None:
    if not table_exists(family, "mangle"):
        return None
    chains = read_chains(family, "mangle", MARKS).chains
    return next((mark for mark in MARKS if mark in chains), None)
