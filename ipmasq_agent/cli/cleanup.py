"""``cleanup``: remove every trace of us, and nothing of anyone else's."""

from __future__ import annotations

from typing import Any

import click

from ipmasq_agent.cli.options import kernel_options, settings_of


@click.command(
    "cleanup",
    epilog="""\b
Examples:
  ipmasq-agent cleanup
  ipmasq-agent cleanup --masq-chain IP-MASQ-AGENT   (what upstream's agent left)
""",
)
@kernel_options
def command(**options: Any) -> int:
    """Remove our chains, jumps, sets and tables, from every backend and both families.

    With --backend only from that one. Exit status: 0 when nothing of ours is left.
    """
    from ipmasq_agent.agent.reconcile import clean
    from ipmasq_agent.backends import detect
    from ipmasq_agent.policy.addresses import Family

    settings = settings_of(options)
    named = settings.backend not in ("auto", "iptables")
    failed = 0
    for name in (
        [detect.choose(settings.backend)[0]] if named else detect.holders(settings.placement)
    ):
        backend = detect.make(name, settings.placement)
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
