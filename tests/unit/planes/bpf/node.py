"""A node's devices, for tests of the eBPF dialect."""

from __future__ import annotations

from dataclasses import replace

from ipmasq_agent.planes.bpf.compile import compile_policy
from ipmasq_agent.planes.bpf.plan import plan
from ipmasq_agent.planes.bpf.state import BpfState
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.facts import EgressDevice
from ipmasq_agent.policy.model import FamilyPolicy

PRESENT = {
    name: EgressDevice(number, dict.fromkeys(Family, 100 + number))
    for number, name in enumerate(("lo", "eth0", "eth1", "bond0.100", "wg-0"), start=1)
}


def empty(family: Family) -> BpfState:
    """A node with devices and nothing of ours."""
    own = frozenset({101, 102, 200})
    return BpfState(family, present=PRESENT, leading_out=("bond0.100", "eth0"), addresses=own)


def on_a_node(policy: FamilyPolicy) -> BpfState:
    """The table that a policy makes there."""
    return plan(empty(policy.family), compile_policy(policy)).result


def without(table: BpfState, *names: str) -> BpfState:
    """The same with a program gone from some devices."""
    hooks = {
        name: replace(hook, complete=hook.complete and name not in names)
        for name, hook in table.hooks.items()
    }
    return replace(table, hooks=hooks)
