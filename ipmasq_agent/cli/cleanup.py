"""``cleanup``: remove every trace of us, and nothing of anyone else's."""

from __future__ import annotations

from typing import Any

import click

from ipmasq_agent.cli.asking import by_command_line
from ipmasq_agent.cli.options import BACKEND, RULES, hiding, settings_of, shared


@hiding("jump_position", "random_fully", "to_ports", "bpf_flows")
@click.command(
    "cleanup",
    epilog="""\b
Examples:
  ipmasq-agent cleanup
  ipmasq-agent cleanup --masq-chain IP-MASQ-AGENT   (what upstream's agent left)
""",
)
@shared(BACKEND, *RULES)
@click.option(
    "--beside-agent",
    is_flag=True,
    help="Remove also what a running agent keeps, which writes it again.",
)
def command(beside_agent: bool, **options: Any) -> int:
    """Remove our chains, jumps, sets and tables, from every backend and both families.

    With the flag --backend only from that one; $IPMASQ_BACKEND, which tells what the agent of
    a container uses, does not narrow it. Refused where a running agent keeps the chain. Exit
    status: 0 when nothing of ours is left.
    """
    from ipmasq_agent.agent.reconcile import clean
    from ipmasq_agent.cli.wiring import refuse_beside_agent
    from ipmasq_agent.host import seat
    from ipmasq_agent.planes import detect, registry
    from ipmasq_agent.policy.addresses import Family

    settings = settings_of(options)
    placement = settings.placement
    if not beside_agent:
        refuse_beside_agent([placement.chain])
    # Programs have no chain's name: those of an agent with another chain stay.
    theirs = [] if beside_agent else seat.kept(registry.claims(placement))
    named = by_command_line("backend") and settings.backend not in registry.ASK_THE_NODE
    failed = 0
    for name in [detect.choose(settings.backend)[0]] if named else detect.holders(placement):
        claim = registry.row(name).claim(placement)
        if claim in theirs:
            click.echo(f"{name}: left alone, a running agent keeps {claim}")
            continue
        backend = detect.make(name, placement)
        try:
            for family, outcome in clean(backend, Family).items():
                if outcome.error:
                    failed += 1
                    click.echo(f"error: {backend.name} {family.value}: {outcome.error}", err=True)
                elif outcome.change:
                    _, count = outcome.change.counts
                    click.echo(f"{backend.name} {family.value}: removed {count} lines of ours")
        finally:
            backend.close()
    return 2 if failed else 0
