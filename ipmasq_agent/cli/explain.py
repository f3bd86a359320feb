"""``explain``: would this destination be masqueraded, and why?"""

from __future__ import annotations

from typing import Any

import click

from ipmasq_agent.cli.options import agent_options, settings_of
from ipmasq_agent.cli.output import emit, output_option


@click.command(
    "explain",
    epilog="""\b
Examples:
  ipmasq-agent explain 10.10.1.200
  ipmasq-agent explain 8.8.8.8 --src 172.20.0.5 -o json
""",
)
@click.argument("destination", metavar="DST")
@click.option("--src", metavar="IP", help="Ask for packets of this source only.")
@agent_options
@output_option
def command(destination: str, src: str | None, output: str, **options: Any) -> None:
    """Say what happens to the source of a packet to DST, by the kernel's own rules.

    Names the rule that decides, the line of the document it comes from, and the address
    that the receiver sees.
    """
    from ipmasq_agent.agent.moves import deciding
    from ipmasq_agent.answers.explain import EgressPath, explain
    from ipmasq_agent.cli.questions import ours_now
    from ipmasq_agent.cli.wiring import backend_choice, read_intent
    from ipmasq_agent.errors import AgentError, UsageError
    from ipmasq_agent.host.routes import look_up
    from ipmasq_agent.planes.hook.read import read_hook
    from ipmasq_agent.planes.rules.matching import question
    from ipmasq_agent.planes.rules.neighbours import neighbours
    from ipmasq_agent.policy.addresses import parse_address

    settings = settings_of(options)
    try:
        family, address = parse_address(destination)
        source = parse_address(src) if src is not None else None
    except ValueError as cause:
        raise UsageError(f"{cause}", remedy="give an address, like 10.10.1.200") from cause
    if source is not None and source[0] is not family:
        raise UsageError(f"{destination} and {src} are of two address families")

    route = EgressPath(*look_up(family, family.show(address), src))
    intent = None
    try:
        intent = read_intent(settings)
    except UsageError:
        raise
    except AgentError as error:
        click.echo(f"warning: no document to compare with: {error}", err=True)
    choice = backend_choice(settings)
    try:
        backend, left_behind = choice.current(large=intent is not None and intent.is_large)
        # One address is asked about: a set of a hundred thousand is not read for it.
        from_ = source[1] if source else None
        held = backend.read_at(family, address)
        now, held = ours_now(
            family, backend, held, left_behind, lambda p: p.read_at(family, address)
        )
        kernel = now.dialect.interpret(held, from_)
        # The question names the one device of the route, so which ones lead out is not asked.
        hook = read_hook(family, now.our_base(family), egress=())
        others = neighbours(hook, question(from_, route.device))
        wanted = None
        if intent is not None and family in intent.config.families:
            wanted = intent.policy(backend, family)
        beside = choice.unseen + deciding(left_behind).lines
    finally:
        choice.close()
    for line in beside:
        click.echo(f"warning: {line}", err=True)
    answer = explain(family, address, src, kernel, others, wanted, route)
    emit(answer.as_data(), output, answer.as_text)
