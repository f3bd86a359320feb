"""``list``: the non-masquerade CIDRs in force in the kernel."""

from __future__ import annotations

from typing import Any

import click

from ipmasq_agent.cli.options import (
    BACKEND,
    ONLY_WRITTEN,
    RULES,
    SOCKET,
    hiding,
    settings_of,
    shared,
)
from ipmasq_agent.cli.output import emit, output_option, remark
from ipmasq_agent.policy.addresses import Family


@hiding(*ONLY_WRITTEN)
@click.command(
    "list",
    epilog="""\b
Examples:
  ipmasq-agent list
  ipmasq-agent list --backend iptables-legacy -o json
""",
)
@shared(BACKEND, *RULES, SOCKET)
@output_option
def command(output: str, **options: Any) -> None:
    """Show the destinations that are not masqueraded, as the kernel's rules say.

    Both families are shown, whoever wrote the rules and whatever the document says.
    """
    from ipmasq_agent.answers.in_force import cidrs_in_force, in_force
    from ipmasq_agent.answers.overrides import shadow
    from ipmasq_agent.cli.questions import here
    from ipmasq_agent.planes.interpretation import Decider

    kernels = []
    notes: list[str] = []
    asked = overridden = False
    with here(settings_of(options), at_work=True) as node:
        name = node.plane.name
        for family in Family:
            state = node.held(node.plane, family)
            if state is None:
                continue
            own, hook = node.plane.dialect.interpret(state), node.hook(family)
            kernels.append(in_force(own, hook))
            reasons = (entry.reason for entry in own.policy.decisions.ranges)
            asked |= own.policy.masquerades or any(isinstance(r, Decider) for r in reasons)
            found = shadow(own.policy, hook).overridden
            overridden |= bool(found)
            notes += (f"somebody else's rule decides: {item}" for item in found)
        elsewhere = node.elsewhere
        notes += (*(node.left if asked else ()), *node.unread)
    cidrs = cidrs_in_force(kernels, whole=not overridden)
    emit(
        {
            "backend": name,
            "nonMasqueradeCIDRs": cidrs,
            "inForce": asked and not overridden,
            "inForceElsewhere": elsewhere,
        },
        output,
        lambda: "\n".join(["IP PREFIX/ADDRESS", *cidrs]),
    )
    if not asked and elsewhere:
        notes.append(
            f"{name} holds no rules of ours; in force are those of "
            f"{' and '.join(elsewhere)}: `ipmasq-agent list --backend {elsewhere[0]}`"
        )
    elif not asked:
        notes.append(f"nothing is masqueraded by us: {name} holds no rules of ours")
    elif not any(kernel.policy.masquerades for kernel in kernels):
        notes.append(f"nothing is masqueraded by us: {name} keeps every destination")
    notes += (f"for some packets {item}" for kernel in kernels for item in kernel.exceptions)
    remark("note", notes)
