"""``list``: the non-masquerade CIDRs in force in the kernel."""

from __future__ import annotations

from typing import Any

import click

from ipmasq_agent.cli.options import ONLY_WRITTEN, hiding, kernel_options, settings_of
from ipmasq_agent.cli.output import emit, output_option


@hiding(*ONLY_WRITTEN)
@click.command(
    "list",
    epilog="""\b
Examples:
  ipmasq-agent list
  ipmasq-agent list --backend iptables-legacy -o json
""",
)
@kernel_options
@output_option
def command(output: str, **options: Any) -> None:
    """Show the destinations that are not masqueraded, as the kernel's rules say.

    Both families are shown, whoever wrote the rules and whatever the document says.
    """
    from ipmasq_agent.agent.moves import deciding
    from ipmasq_agent.answers.in_force import cidrs_in_force, in_force
    from ipmasq_agent.answers.overrides import shadow
    from ipmasq_agent.cli.questions import at_work
    from ipmasq_agent.cli.wiring import backend_choice
    from ipmasq_agent.host.devices import egress_devices
    from ipmasq_agent.planes.hook.read import read_hook
    from ipmasq_agent.planes.interpretation import Decider
    from ipmasq_agent.policy.addresses import Family

    settings = settings_of(options)
    choice = backend_choice(settings)
    kernels = []
    notes: list[str] = []
    asked = overridden = False
    try:
        backend, others = at_work(choice, settings)
        beside = deciding(others)
        egress = egress_devices()
        for family in Family:
            state = backend.read(family)
            if not backend.dialect.describe(state):
                continue
            own = backend.dialect.interpret(state)
            hook = read_hook(family, backend.our_base(family), egress)
            kernels.append(in_force(own, hook))
            reasons = (entry.reason for entry in own.policy.decisions.ranges)
            asked |= own.policy.masquerades or any(isinstance(r, Decider) for r in reasons)
            found = shadow(own.policy, hook).overridden
            overridden |= bool(found)
            notes += (f"somebody else's rule decides: {item}" for item in found)
        notes += choice.unseen + (beside.lines if asked else beside.unread)
    finally:
        choice.close()
    cidrs = cidrs_in_force(kernels, whole=not overridden)
    emit(
        {
            "backend": backend.name,
            "nonMasqueradeCIDRs": cidrs,
            "inForce": asked and not overridden,
            "inForceElsewhere": list(beside.holding),
        },
        output,
        lambda: "\n".join(["IP PREFIX/ADDRESS", *cidrs]),
    )
    if not asked and beside.holding:
        notes.append(
            f"{backend.name} holds no rules of ours; in force are those of "
            f"{' and '.join(beside.holding)}: `ipmasq-agent list --backend {beside.holding[0]}`"
        )
    elif not asked:
        notes.append(f"nothing is masqueraded by us: {backend.name} holds no rules of ours")
    elif not any(kernel.policy.masquerades for kernel in kernels):
        notes.append(f"nothing is masqueraded by us: {backend.name} keeps every destination")
    for kernel in kernels:
        notes += (f"for some packets {exception}" for exception in kernel.exceptions)
    for note in notes:
        click.echo(f"note: {note}", err=True)
