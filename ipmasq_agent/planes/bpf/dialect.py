"""The pure half of the plane, as one object."""

from __future__ import annotations

from ipmasq_agent.planes.bpf.compile import compile_policy
from ipmasq_agent.planes.bpf.interpret import interpret
from ipmasq_agent.planes.bpf.plan import BpfPlan, plan
from ipmasq_agent.planes.bpf.state import BpfRules, BpfState, describe
from ipmasq_agent.planes.plane import Dialect

DIALECT: Dialect[BpfState, BpfRules | None, BpfPlan] = Dialect(
    compile=compile_policy,
    absent=lambda family: None,
    plan=plan,
    describe=describe,
    interpret=interpret,
)
