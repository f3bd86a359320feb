"""What on a node will bite: pure checks, each of which looks for one thing.

A check's name is the name of what it finds, and of the section of docs/doctor.md about it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from ipmasq_agent.answers.doctor import node, others, policy
from ipmasq_agent.answers.doctor.facts import Node, Severity, Symptom

Check = Callable[[Node], Iterator[Symptom]]

CHECKS: tuple[Check, ...] = (
    policy.document_refused,
    node.agent_fails,
    others.foreign_nat,
    others.native_nat_chain,
    others.foreign_source,
    others.notrack,
    others.unreadable_rule,
    others.table_dormant,
    others.both_iptables,
    others.upstream_chain,
    others.own_leftover,
    others.another_agent,
    others.cilium_masquerades,
    others.services_masqueraded,
    policy.pod_cidr_masqueraded,
    policy.pods_not_covered,
    policy.nothing_masqueraded,
    policy.link_local_masqueraded,
    policy.metadata_unreachable,
    policy.snat_unanswered,
    policy.snat_by_routers,
    policy.vxlan_masqueraded,
    node.forwarding_off,
    node.reverse_path_filter,
    node.mtu_mismatch,
    node.hairpin_off,
    node.conntrack_full,
    node.kernel_too_old,
    node.no_way_back,
    node.probe_unanswered,
)

_ORDER = list(Severity)


def name(check: Check) -> str:
    """Return the id of what a check finds."""
    return check.__name__.replace("_", "-")


def examine(found: Node) -> list[Symptom]:
    """Return all that is found, the worst first."""
    findings = [replace(one, id=name(check)) for check in CHECKS for one in check(found)]
    return sorted(findings, key=lambda one: _ORDER.index(one.severity))
