"""``list``: the non-masquerade CIDRs in force in the kernel."""

from __future__ import annotations

from typing import Any

import click

from ipmasq_agent.cli.options import kernel_options, settings_of
from ipmasq_agent.cli.output import emit, output_option


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
    from ipmasq_agent.answers.explain import cidrs_in_force
    from ipmasq_agent.cli.wiring import backend_choice
    from ipmasq_agent.policy.addresses import Family
    from ipmasq_agent.policy.decisions import Verdict

    settings = settings_of(options)
    choice = backend_choice(settings)
    try:
        backend, _ = choice.current()
        states = [backend.read_with_others(family) for family in Family]
        kernels = [backend.interpret(state) for state in states if backend.describe(state)]
    finally:
        choice.close()
    cidrs = cidrs_in_force(kernels)
    emit(
        {"backend": backend.name, "nonMasqueradeCIDRs": cidrs},
        output,
        lambda: "\n".join(["IP PREFIX/ADDRESS", *cidrs]),
    )
    if not any(
        entry.verdict is Verdict.MASQUERADE
        for kernel in kernels
        for entry in kernel.policy.decisions.ranges
    ):
        click.echo(
            f"note: nothing is masqueraded: {backend.name} has no chain "
            f"{settings.placement.chain} in force",
            err=True,
        )
    for kernel in kernels:
        for exception in kernel.exceptions:
            click.echo(f"note: for some packets {exception}", err=True)
