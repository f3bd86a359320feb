"""A policy as the rules that the maps of the eBPF data plane hold."""

from __future__ import annotations

from ipmasq_agent.errors import HostError
from ipmasq_agent.planes.bpf.layout import MAX_PORT_RANGES
from ipmasq_agent.planes.bpf.state import DECISIONS, BpfRules
from ipmasq_agent.planes.prefixset import compile_set
from ipmasq_agent.policy.model import FamilyPolicy


def compile_policy(policy: FamilyPolicy) -> BpfRules:
    """Return what the maps must say to decide as ``policy`` does.

    Raises:
        ValueError: a verdict is unknown.
        HostError: there are more port ranges than the maps have room for.
    """
    action, guards = policy.action, policy.guards
    if len(action.ports) > MAX_PORT_RANGES:
        raise HostError(
            f"the eBPF data plane takes up to {MAX_PORT_RANGES} port ranges, "
            f"not {len(action.ports)}",
            remedy="join some of --to-ports, or choose another --backend",
        )
    return BpfRules(
        compile_set(policy.decisions, DECISIONS),
        guards.sources,
        guards.devices,
        action.ports,
        action.random_fully,
        action.fixed,
        guards.local_destinations,
    )
