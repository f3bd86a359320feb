"""Which data plane to use: as asked for, or the iptables where kubelet keeps its marks.

Kubelet makes the chain KUBE-IPTABLES-HINT (KUBE-KUBELET-CANARY before 1.24) in the mangle
table of the variant that the node uses; Kubernetes' own images look for them in this
order, nf_tables first. Looking must not make a legacy table: opening one creates it, even
on a node that uses nf_tables only, so it is opened only where the kernel already has it.
"""

from __future__ import annotations

from ipmasq_agent.errors import AgentError
from ipmasq_agent.netlink.nft_objects import chain_info
from ipmasq_agent.planes import registry
from ipmasq_agent.planes.iptables.presence import legacy_table_exists
from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.planes.plane import AnyPlane
from ipmasq_agent.policy.addresses import Family

MARKS = ("KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY")


def choose(requested: str, *, large: bool = False) -> tuple[str, str]:
    """Return the name of the plane to use, and why; ``auto`` and ``iptables`` ask the node.

    Args:
        requested: as --backend has it. Where two planes are called so, the node decides
            between them.
        large: the policy is too large for one rule each; ``auto`` then takes the set form
            of the node's iptables, where the programs for it are there.

    Raises:
        AgentError: a mangle table cannot be read, and no other one has a mark. Taking the
            default then could move the rules of a running node because of a passing fault.
    """
    rows = registry.rows_of(requested)
    if len(rows) == 1:
        return rows[0].name, "asked for by --backend"
    variant, why = _variant()
    for row in rows:
        if row.form_of == variant:
            return row.name, f"asked for by --backend; {why}"
    larger = registry.larger_form(variant) if requested == "auto" and large else None
    if larger is not None:
        return larger.name, f"the policy is large; {why}"
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
                return name, f"{mark} is in the mangle table of {name} ({family.value})"
    if failures:
        raise failures[0]
    return "iptables-nft", "nothing tells; the default"


def make(name: str, placement: Placement) -> AnyPlane:
    """Return the plane of that name, which ``choose`` has returned."""
    return registry.row(name).make(placement)


def holders(placement: Placement) -> list[str]:
    """Return the planes that may hold rules here: those whose table exists."""
    return [row.name for row in registry.homes() if row.may_hold(placement)]


def leavings(placement: Placement) -> list[str]:
    """Return those of which cheap signs tell that they hold something of ours."""
    return [row.name for row in registry.homes() if row.holds(placement)]


def _nft_mark(family: Family) -> str | None:
    return next((mark for mark in MARKS if chain_info(family, "mangle", mark)), None)


def _legacy_mark(family: Family) -> str | None:
    from ipmasq_agent.planes.iptables.legacy import read_chains

    if not legacy_table_exists(family, "mangle"):
        return None
    chains = read_chains(family, "mangle", MARKS).chains
    return next((mark for mark in MARKS if mark in chains), None)
